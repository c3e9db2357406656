"""One table for both ways: a tokenizer that is written under a name is read back from that name."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tokenizers.models import BPE

from clp_edge.export.gguf import tokenizer as writing
from clp_edge.gguf_file.header import read_header
from clp_edge.gguf_file.pretokenizers import PRE_TOKENIZERS, built, named, names
from clp_edge.gguf_file.tokenizer import gguf_tokenizer
from tests.export.models import tiny_tokenizer
from tests.export.vocabulary import write_vocabulary
from tests.models.hard_texts import HARD_TEXTS

# composed: some names mean that accents are composed first, which llama.cpp does not do
TEXTS = [*(text.replace("e\u0301", "é") for text in HARD_TEXTS), "HELLOWorld Aa aA don'T a/\n/b"]


@pytest.mark.parametrize("row", PRE_TOKENIZERS, ids=lambda row: row.name)
def test_every_pre_tokenizer_that_is_written_is_read_back(tmp_path, row):
    hf = tiny_tokenizer("smollm")
    backend = hf.backend_tokenizer
    merges = [tuple(m) for m in json.loads(backend.to_str())["model"]["merges"]]
    vocabulary = backend.get_vocab(with_added_tokens=False)
    backend.model = BPE(vocab=vocabulary, merges=merges, ignore_merges=row.ignore_merges)
    backend.pre_tokenizer = built(row)
    config = SimpleNamespace(vocab_size=len(hf) + 3, eos_token_id=0)
    header = read_header(write_vocabulary(tmp_path / "t.gguf", writing.entries(config, hf)))
    found = named(header.value("tokenizer.ggml.pre"))
    assert found is not None
    assert (found.steps, found.ignore_merges) == (row.steps, row.ignore_merges)
    back = gguf_tokenizer(header)
    for text in TEXTS:
        assert back.encode(text) == hf.encode(text), text


def test_the_texts_tell_every_rule_from_every_other():
    rules = {
        row.steps: [built(row).pre_tokenize_str(text) for text in TEXTS] for row in PRE_TOKENIZERS
    }
    cuts = list(rules.values())
    assert len(cuts) >= 7
    assert all(a != b for i, a in enumerate(cuts) for b in cuts[:i])


def test_a_name_stands_in_one_row():
    assert len(names()) == len(set(names()))
