"""What the writer writes, by value, and what it refuses by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.export import plan, resolve
from clp_edge.export.gguf import families
from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.gguf.writer import metadata_entries, write_f16
from clp_edge.gguf_file.rope import llama3_factors, read_rope
from tests.export.models import tiny_folder, tiny_tokenizer
from tests.tiny import tiny_config

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write(folder, config, hf, path, **metadata):
    entries = tokenizers.entries(config, hf)
    write_f16(folder, path, config=config, tokenizer_entries=entries, metadata=metadata)
    return GGUFReader(path)


def test_keys_and_values(tiny, tmp_path):
    reader = GGUFReader(tiny.write(tmp_path / "m.gguf"))
    value = {key: part.contents() for key, part in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "clp_edge.segment": "1-2",
        "llama.block_count": 3,
        "llama.context_length": 512,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 64,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 10_000.0,
        "llama.vocab_size": tiny.config.vocab_size,
    }
    assert {key: value.get(key) for key in expected} == expected
    assert "llama.rope.scaling.type" not in value


def test_pitfall_12_q_and_k_are_permuted_and_nothing_else(tiny, tmp_path):
    tensors = {t.name: t for t in GGUFReader(tiny.write(tmp_path / "m.gguf")).tensors}
    weights = tiny.model.state_dict()
    q = weights["model.layers.1.self_attn.q_proj.weight"].half().numpy()
    by_hand = np.stack(
        [
            q[64 * head + 32 * half + pair]
            for head in range(4)
            for pair in range(32)
            for half in (0, 1)
        ]
    )
    assert np.array_equal(tensors["blk.1.attn_q.weight"].data, by_hand)
    k = weights["model.layers.2.self_attn.k_proj.weight"].half()
    assert np.array_equal(tensors["blk.2.attn_k.weight"].data, families.permute(k, 2).numpy())
    v = weights["model.layers.1.self_attn.v_proj.weight"].half().numpy()
    assert np.array_equal(tensors["blk.1.attn_v.weight"].data, v)
    norm = tensors["blk.0.attn_norm.weight"]
    assert norm.tensor_type.name == "F32"
    assert np.array_equal(norm.data, weights["model.layers.0.input_layernorm.weight"].numpy())


def test_pitfall_12_transformers_undoes_the_permutation(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    tiny.write(tmp_path / "m.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    for name, value in tiny.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].float(), value.half().float()) or (
            value.dim() == 1 and torch.equal(loaded.state_dict()[name].float(), value)
        ), name


def test_pitfall_15_rope_is_read_from_both_generations_of_configs():
    new = tiny_config("llama", rope_parameters=LLAMA3)

    class Old:  # transformers 4.57
        rope_theta = 5e5
        rope_scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}  # noqa: RUF012
        head_dim = 64
        max_position_embeddings = 512

    assert read_rope(Old) == read_rope(new)
    assert read_rope(Old).kind == "llama3"
    assert np.array_equal(llama3_factors(Old), llama3_factors(new))
    factors = llama3_factors(new)
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert ((factors > 1.01) & (factors < 7.99)).any()


def test_pitfall_15_an_unknown_rope_scaling_is_refused(tiny):
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    config = tiny_config("llama", rope_parameters=yarn, vocab_size=tiny.config.vocab_size)
    found = plan(config, tiny.hf, resolve("q4_0")).problems
    assert ["'yarn'" in str(problem) for problem in found] == [True]


def test_pitfall_15b_mistrals_window_bounds_the_context(tiny):
    config = tiny_config("mistral", sliding_window=96, vocab_size=tiny.config.vocab_size)
    assert families.context_length(config) == 96
    notes = plan(config, tiny.hf, resolve("q4_0")).notes
    assert any("context length 96 instead of 512" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized already"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(tiny, changes, named):
    config = tiny_config("llama", vocab_size=tiny.config.vocab_size, **changes)
    found = plan(config, tiny.hf, resolve("q4_0")).problems
    assert [named in str(problem) for problem in found] == [True]


def test_every_problem_is_listed_at_once(tiny):
    hf = tiny_tokenizer("smollm")
    hf.add_tokens([f"extra{i}" for i in range(9)])
    config = tiny_config("llama")
    config.model_type = "starcoder2"
    found = plan(config, hf, resolve("q4_0"))
    assert len(found.problems) == 2
    assert "'starcoder2'" in str(found.problems[0])
    assert found.predicted_bytes == 0


@pytest.mark.parametrize(
    ("value", "named"), [(float("nan"), "NaN or Inf"), (1e5, "beyond float16's 65504")]
)
def test_values_that_float16_cannot_hold_are_refused(tmp_path, value, named):
    folder, model, hf = tiny_folder(tmp_path / "m", blocks=2)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ClpEdgeError, match=rf"layers\.1\.mlp\.up_proj\.weight holds .*{named}|{named}"
    ):
        write(folder, model.config, hf, tmp_path / "m.gguf")


def test_missing_and_unknown_tensors_are_listed(tmp_path):
    folder, model, hf = tiny_folder(tmp_path / "m", blocks=2)
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"misses model\.layers\.1\.mlp\.up_proj"):
        write(folder, model.config, hf, tmp_path / "m.gguf")
    weights["model.layers.1.mlp.up_proj.weight"] = lost
    weights["model.layers.1.adapter.weight"] = lost.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"no place for model\.layers\.1\.adapter"):
        write(folder, model.config, hf, tmp_path / "m.gguf")
    (folder / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ClpEdgeError, match="cannot be read"):
        write(folder, model.config, hf, tmp_path / "m.gguf")


def test_metadata_types():
    found = {e.key: e.value for e in metadata_entries({"segment": "1-2", "a.b": 3, "none": None})}
    assert found == {"clp_edge.segment": "1-2", "a.b": 3}
    with pytest.raises(TypeError, match=r"clp_edge\.x is a dict"):
        metadata_entries({"x": {}})
