"""Scaled rotations through onnxruntime-genai's builder: proved past the first context, or refused.

The first context is 128 tokens here and the text has 256, so positions beyond it are compared.
"""

from __future__ import annotations

import importlib.util

import pytest
from transformers import AutoConfig, AutoTokenizer

from clp_edge.errors import PreflightError, VerificationError
from clp_edge.export.onnx import configs, genai, verify
from clp_edge.export.onnx.angles import check_angles
from clp_edge.export.onnx.contents import Graph
from clp_edge.export.onnx.plan import plan
from clp_edge.export.onnx.reference import reference_ids
from clp_edge.export.onnx.targets import TARGETS
from clp_edge.export.torch_reference import exact_model
from clp_edge.progress import silent
from tests.export.models import tiny_folder

if importlib.util.find_spec("onnxruntime_genai") is None:
    pytest.skip("no onnxruntime_genai; pip install -e '.[onnx]'", allow_module_level=True)

TARGET = {target.quantization: target for target in TARGETS}
FIRST = 128
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": FIRST,
    "rope_theta": 1e4,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "truncate": False,
    "beta_fast": 16.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": FIRST,
    "rope_theta": 1e4,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
HALVES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def longrope(pairs=32, **more):
    return {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.02 * i for i in range(pairs)],
        "long_factor": [1.0 + 0.3 * i for i in range(pairs)],
        "original_max_position_embeddings": FIRST,
        "rope_theta": 1e4,
        **more,
    }


def made(place, family, rope):
    """A tiny folder of two blocks with that rotation, without a window."""
    changes = {"sliding_window": None} if family in ("mistral", "phi3") else {}
    if family == "phi3" and rope["rope_type"] == "longrope":
        changes["original_max_position_embeddings"] = FIRST
    return tiny_folder(place, model_type=family, blocks=2, rope_parameters=rope, **changes)[0]


def written(folder, place):
    return genai.export(
        folder, TARGET["fp32"], place / "out", metadata={}, threads=1, progress=silent
    )


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("llama", LLAMA3),
        ("mistral", LINEAR),
        ("qwen2", LINEAR),
        ("qwen3", LINEAR),
        ("mistral", YARN),
        ("qwen2", YARN),
        ("qwen3", YARN),
        ("phi3", longrope()),
        ("phi3", longrope(factor=3.0, attention_factor=1.7)),
        ("phi3", longrope(pairs=24, partial_rotary_factor=0.75)),
    ],
    ids=lambda value: value if isinstance(value, str) else value["rope_type"],
)
def test_pitfall_15_a_scaled_rotation_is_torchs_past_the_first_context(tmp_path, family, rope):
    folder = made(tmp_path / "hf", family, rope)
    config = AutoConfig.from_pretrained(folder)
    ids = reference_ids(config, AutoTokenizer.from_pretrained(folder))
    assert len(ids) >= 2 * FIRST
    measured = written(folder, tmp_path).verify
    assert measured["tokens"] == len(ids)
    assert measured["kl"] < 1e-6
    assert measured["kl_cached_steps"] < 1e-6
    assert measured["top1_agreement"] == 1.0
    assert measured["angle_tables"] == (4 if rope["rope_type"] == "longrope" else 2)


@pytest.mark.parametrize(
    ("family", "rope", "said"),
    [
        ("llama", LINEAR, "rope type 'linear' for llama"),
        ("llama", YARN, "rope type 'yarn' for llama"),
        ("llama", DYNAMIC, "rope type 'dynamic' for llama"),
        ("qwen2", LLAMA3, "rope type 'llama3' for qwen2"),
        ("gemma3_text", HALVES, "rope type 'linear' for gemma3_text"),
        ("qwen3", {**YARN, "truncate": True}, "rounds its range of frequencies"),
        ("qwen3", {k: v for k, v in YARN.items() if k != "truncate"}, "rounds its range"),
        ("qwen3", {k: v for k, v in YARN.items() if k != "beta_slow"}, "numbers to defaults"),
        ("qwen3", {**YARN, "attention_factor": 1.3}, "factor of attention"),
        ("qwen3", {**YARN, "mscale": 1.0}, "factor of attention"),
        ("qwen3", {**YARN, "beta_fast": 32.0}, "frequencies beyond the head"),
    ],
)
def test_pitfall_15_a_rotation_written_otherwise_is_refused_with_optimum_offered(
    tmp_path, family, rope, said
):
    folder = made(tmp_path / "hf", family, rope)
    with pytest.raises(PreflightError, match=said) as refused:
        written(folder, tmp_path)
    assert "take onnx-optimum-fp32" in str(refused.value)
    assert not list(tmp_path.glob("out*"))
    config = AutoConfig.from_pretrained(folder)
    assert plan(config, None, TARGET["int4"]).predicted_bytes == 0


def test_pitfall_15_without_the_refusal_the_proof_would_fail(tmp_path, monkeypatch):
    """Llama's class in builder 0.18 drops linear scaling without a word."""
    folder = made(tmp_path / "hf", "llama", LINEAR)
    monkeypatch.setattr(configs, "problems", lambda config: [])
    with pytest.raises(VerificationError, match="cos_cache is off by"):
        written(folder, tmp_path)
    monkeypatch.setattr(verify, "check_angles", lambda graph, model: 0)
    with pytest.raises(VerificationError, match="prefill: KL"):
        written(folder, tmp_path)


def test_pitfall_15_a_table_that_is_wrong_far_out_is_seen(tmp_path, monkeypatch):
    """The long table of a Phi-3 of 4,096 tokens starts where no text of a test comes to."""
    folder = made(tmp_path / "hf", "phi3", longrope())
    graph = Graph(written(folder, tmp_path).path)
    model = exact_model(folder)
    assert check_angles(graph, model) == 4
    tables = graph.angle_tables()
    far = {**tables, "cos_cache_large": tables["cos_cache_large"].copy()}
    far["cos_cache_large"][-1] += 0.3
    monkeypatch.setattr(graph, "angle_tables", lambda: far)
    with pytest.raises(VerificationError, match=r"cos_cache_large is off by 0\.3 at position 511"):
        check_angles(graph, model)
    monkeypatch.setattr(graph, "angle_tables", dict)
    with pytest.raises(VerificationError, match="no table of angles"):
        check_angles(graph, model)
