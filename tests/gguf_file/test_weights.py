"""Weights of GGUF files in torch: what our exporter writes is read back, family by family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, quants
from packaging.version import Version

from clp_edge.errors import UnsupportedModelError
from clp_edge.export.gguf import tokenizer, writer
from clp_edge.gguf_file.family_table import FAMILIES
from clp_edge.gguf_file.tensors import tensors
from clp_edge.models.source import check_weights, load_config, load_model, load_tokenizer, locate
from tests.export.family_rows import ROWS, family_folder
from tests.models.tiny_gguf import permuted, tiny_llama, write_gguf

torch.set_num_threads(2)

# The others have no reader of their configuration in transformers; they are refused by name.
READ_BACK = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "stablelm")


_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4}
_LOCAL = {"rope_type": "default", "rope_theta": 3e4}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.05 * i for i in range(24)],
    "long_factor": [1.5 + 0.4 * i for i in range(24)],
    "partial_rotary_factor": 0.75,
}
# What transformers' own reader leaves at a default, so that a wrong model loads without a word.
UNUSUAL: dict[str, dict[str, Any]] = {
    "qwen2": {"rope_parameters": _LINEAR},
    "qwen3": {"head_dim": 32},
    "phi3": {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 320},
    "gemma2": {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 11.0},
    "gemma3_text": {"rope_parameters": {"full_attention": _LINEAR, "sliding_attention": _LOCAL}},
}


def as_transformers_4_says(changes: dict[str, Any]) -> dict[str, Any]:
    """The same rotation in the words of transformers 4, which has no `rope_parameters`."""
    rope = changes.get("rope_parameters")
    if rope is None or Version(transformers.__version__).major >= 5:
        return changes
    said = {name: value for name, value in changes.items() if name != "rope_parameters"}
    if "full_attention" in rope:
        said["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    said["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        said["partial_rotary_factor"] = rope["partial_rotary_factor"]
    apart = ("rope_theta", "partial_rotary_factor")
    scaling = {name: value for name, value in rope.items() if name not in apart}
    # Phi 3 takes the three alone, by the older word
    kind = "type" if scaling["rope_type"] == "longrope" else "rope_type"
    said["rope_scaling"] = {kind: scaling.pop("rope_type"), **scaling}
    return said


def written(folder: Path, model_type: str, **changes: Any) -> tuple[Path, Any, Any]:
    """A tiny model's F16 file; (path, model, tokenizer)."""
    model, hf = family_folder(folder / "hf", ROWS[model_type], **changes)
    path = folder / "m.gguf"
    entries = tokenizer.entries(model.config, hf)
    config = model.config
    writer.write_f16(folder / "hf", path, config=config, tokenizer_entries=entries, metadata={})
    return path, model, hf


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [*((name, {}) for name in READ_BACK), *UNUSUAL.items()],
)
def test_what_is_written_is_read_back(tmp_path, model_type, changes):
    path, model, hf = written(tmp_path, model_type, **as_transformers_4_says(changes))
    source = locate(str(path))
    check_weights(source, load_config(source))
    found = load_model(source)
    rows = {row.hf_name: row for row in tensors(model.config)}
    expected = model.state_dict()
    assert set(found.state_dict()) == set(expected)
    for name, tensor in found.state_dict().items():
        row = rows.get(name)
        wanted = expected[name]
        if row:  # q, or the norm of q, carries a scale that llama.cpp has no key for
            wanted = (wanted + row.added) * row.scale - row.added
        wanted = wanted if wanted.ndim == 1 else wanted.half().float()
        if row and row.added:  # + 1 - 1 in float32
            assert torch.allclose(tensor, wanted, atol=3e-7), name
        else:
            assert torch.equal(tensor, wanted), name
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())
        ids = torch.tensor([hf.encode("the text of the model is read by the model " * 12)])
        mine, theirs = model(ids).logits.log_softmax(-1), found(ids).logits.log_softmax(-1)
    kl = (mine.exp() * (mine - theirs)).sum(-1).mean()
    assert ids.shape[1] > 96  # beyond the sliding window
    assert float(kl) < 1e-5  # float16 rounds q with its scale otherwise
    assert load_tokenizer(source).encode("a1 22 text") == hf.encode("a1 22 text")


@pytest.mark.parametrize("model_type", sorted(set(ROWS) - set(READ_BACK)))
def test_other_families_are_refused_by_name(tmp_path, model_type):
    path, _, _ = written(tmp_path, model_type)
    name = FAMILIES[model_type].architecture
    with pytest.raises(UnsupportedModelError, match=f"architecture '{name}' cannot be read"):
        locate(str(path))


def test_a_half_precision_model_is_read_without_a_detour_through_float32(tmp_path):
    path, model, _ = written(tmp_path, "llama")
    found = load_model(locate(str(path)), dtype=torch.float16)
    assert {p.dtype for p in found.parameters()} == {torch.float16}
    name = "model.layers.3.self_attn.k_proj.weight"
    assert torch.equal(found.state_dict()[name], model.state_dict()[name].half())


def test_pitfall_12_quantized_rows_go_back_to_their_heads(tmp_path):
    """The rows of q and k are dequantized as they lie, and put back into torch's order."""
    from tests.models.tiny_gguf import byte_level_tokenizer

    model = tiny_llama()
    kind = GGMLQuantizationType.Q8_0
    path = write_gguf(tmp_path / "q.gguf", model, byte_level_tokenizer(), quantize=kind)
    found = load_model(locate(str(path))).state_dict()["model.layers.1.self_attn.q_proj.weight"]
    weight = model.state_dict()["model.layers.1.self_attn.q_proj.weight"]
    heads = model.config.num_attention_heads
    stored = quants.dequantize(quants.quantize(permuted(weight, heads).numpy(), kind), kind)
    assert np.array_equal(permuted(found, heads).numpy(), stored)
    assert not torch.equal(found, torch.from_numpy(stored))


def test_a_tensor_of_another_shape_is_named_before_any_weight_is_read(tmp_path):
    from tests.models.tiny_gguf import byte_level_tokenizer

    model = tiny_llama()
    model.model.norm.weight = torch.nn.Parameter(torch.ones(255))
    source = locate(str(write_gguf(tmp_path / "s.gguf", model, byte_level_tokenizer())))
    with pytest.raises(
        UnsupportedModelError, match=r"output_norm\.weight of s\.gguf has the shape \(255,\), not"
    ):
        check_weights(source, load_config(source))
