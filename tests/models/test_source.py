"""Hugging Face folders: what was saved is loaded, and what does not fit is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.models.source import (
    Source,
    load_config,
    load_model,
    load_tokenizer,
    locate,
    save_model,
    source_warnings,
    stored_dtype,
    tokenizer_gguf,
)
from tests.models.hard_texts import HARD_TEXTS
from tests.models.tiny_gguf import tiny_llama
from tests.tiny import random_ids

torch.set_num_threads(2)


def edit_json(path: Path, **changes) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


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


def test_loading_and_saving_say_nothing(gguf, folder, model, tokenizer, tmp_path, capfd):
    capfd.readouterr()
    for path in (gguf, folder):
        load_model(locate(str(path)))
        load_tokenizer(locate(str(path)))
    save_model(model, tokenizer, tmp_path / "said", dtype=torch.float16, source=None)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_sources_are_values():
    a = Source("x", "folder", "x", Path("x"))
    assert a == Source("x", "folder", "x", Path("x"))
    assert not a.is_gguf


def test_safetensors_written_here_say_their_format(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
