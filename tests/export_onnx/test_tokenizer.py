"""onnxruntime-genai reads the tokenizers of every known kind as transformers does."""

from __future__ import annotations

import importlib.util
import json

import pytest
from transformers import AutoTokenizer

from clp_edge.export.onnx.tokenizer import make_portable, portable_steps
from clp_edge.export.reference_text import HARD_TEXTS
from tests.export.models import KINDS, tiny_tokenizer

if importlib.util.find_spec("onnxruntime_genai") is None:
    pytest.skip("no onnxruntime_genai; pip install -e '.[onnx]'", allow_module_level=True)

# " £" and " ½" begin with the same two bytes, and many signs like £ make those two a token.
TEXTS = (*HARD_TEXTS[:-1], "x ½ x² 1½ Ⅷ ①② ١٢", "a1b22 c333", " £5 ½")


def their_ids(folder):
    """onnxruntime-genai's ids of each text; it needs a genai_config.json, but no graph."""
    import onnxruntime_genai

    config = {"model": {"type": "llama", "vocab_size": 9, "context_length": 9, "decoder": {}}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Config(str(folder)))
    tokenizer.update_options(add_special_tokens="false")
    return [[int(i) for i in tokenizer.encode(text)] for text in TEXTS]


def saved(folder, kind):
    """A tokenizer of that kind that has merged a space with the byte that ½ begins with."""
    hf = tiny_tokenizer(kind)
    hf = hf.train_new_from_iterator(
        [" ¡ ¢ £ ¤ ¥ ¦ § ¨ © « ¬ ® ¯ ° ± ´ ¶" * 9, *TEXTS], 600, show_progress=False
    )
    hf.save_pretrained(folder)
    return hf


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_equal_for_every_kind(tmp_path, kind):
    hf = saved(tmp_path, kind)
    ours = [hf.encode(text) for text in TEXTS]
    assert make_portable(tmp_path / "tokenizer.json") == (kind == "smollm")
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [again.encode(text) for text in TEXTS] == ours  # the same tokenizer, written otherwise
    assert their_ids(tmp_path) == ours


def test_pitfall_the_digits_step_is_read_otherwise(tmp_path):
    """Without the rewriting the ids differ: when this fails, a newer runtime reads it rightly."""
    hf = saved(tmp_path, "smollm")
    assert their_ids(tmp_path) != [hf.encode(text) for text in TEXTS]


def test_other_sequences_stay_as_they_are(tmp_path):
    digits = {"type": "Digits", "individual_digits": True}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    assert len(portable_steps([digits, by_bytes])) == 3
    for steps in (
        [by_bytes],
        [{**digits, "individual_digits": False}, by_bytes],
        [digits, {**by_bytes, "use_regex": False}],
        [digits, {**by_bytes, "add_prefix_space": True}],
    ):
        assert portable_steps(steps) == steps
    assert not make_portable(tmp_path / "absent.json")
