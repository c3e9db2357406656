"""Each family of the table: HF -> GGUF F16 -> llama.cpp says what torch says; mistakes show."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from clp_edge.errors import VerificationError
from clp_edge.export import plan, resolve
from clp_edge.export.gguf import families, writer
from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.gguf import verify as verify_module
from clp_edge.export.gguf.cuts import after_cut
from clp_edge.export.gguf.reference import Reference, make_reference
from clp_edge.export.gguf.verify import F16_KL, F16_LARGEST, F16_TOP1, compare, verify
from clp_edge.export.torch_reference import Comparison
from clp_edge.gguf_file import tensors as file_tensors
from clp_edge.gguf_file.family_table import FAMILIES, sliding_blocks
from clp_edge.gguf_file.rope import attention_gain, read_rope, rope_dimensions
from clp_edge.models.surgery import remove_blocks
from clp_edge.runtimes import open_artifact
from tests.export.family_rows import ROWS, WINDOW, family_folder
from tests.tiny import tiny_config

pytestmark = pytest.mark.llama
F16 = resolve("f16")
MUTATIONS = [(row.model_type, name) for row in ROWS.values() for name in row.mutations]


@dataclass
class Made:
    """A tiny model of one family in its folder."""

    folder: Path
    model: Any
    hf: Any
    reference: Reference

    def write(self, path: Path) -> Path:
        config = self.model.config
        entries = tokenizers.entries(config, self.hf)
        writer.write_f16(self.folder, path, config=config, tokenizer_entries=entries, metadata={})
        return path

    def verified(self, path: Path) -> dict[str, Any]:
        return verify(
            path,
            F16,
            folder=self.folder,
            config=self.model.config,
            hf=self.hf,
            reference=self.reference,
            threads=1,
        )

    def compared(self, path: Path) -> Comparison:
        """The logits alone, past every other check."""
        ids, logits = self.reference.ids, self.reference.logits
        with open_artifact(path, threads=1, context=len(ids), kv_type="f32") as session:
            return compare(session, path, ids, logits)


def make(folder: Path, model_type: str, **changes: Any) -> Made:
    model, hf = family_folder(folder, ROWS[model_type], **changes)
    return Made(folder, model, hf, make_reference(folder, model.config, hf))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model of a family, made once."""
    known: dict[str, Made] = {}

    def get(model_type: str) -> Made:
        if model_type not in known:
            folder = tmp_path_factory.mktemp("families") / model_type
            known[model_type] = make(folder, model_type)
        return known[model_type]

    return get


def assert_exact(measured: dict[str, Any]) -> None:
    """The tight limits, whatever rounding would have excused."""
    assert measured["kl"] <= F16_KL
    assert measured["top1_agreement"] >= F16_TOP1
    assert measured["largest_logit_difference"] <= F16_LARGEST
    assert measured["greedy_tokens"] == 32
    assert measured["rope_difference"] < 1e-5


def test_every_family_of_the_table_has_a_test_row():
    assert set(ROWS) == set(FAMILIES)


@pytest.mark.parametrize("model_type", ROWS)
def test_the_tiny_models_show_mistakes(made, model_type):
    """The next token is fairly certain, and attention is far from uniform."""
    it = made(model_type)
    logs = it.reference.logits.log_softmax(-1)
    entropy = float(-(logs.exp() * logs).sum(-1).mean())
    assert 0.1 < entropy / math.log(it.model.config.vocab_size) < 0.5
    model = AutoModelForCausalLM.from_pretrained(it.folder, attn_implementation="eager")
    with torch.no_grad():
        weights = model(torch.tensor([it.reference.ids]), output_attentions=True).attentions
    for block in weights:
        seen = (block[0] > 0).sum(-1)[:, WINDOW:].float()
        shares = -torch.special.xlogy(block, block).sum(-1)[0][:, WINDOW:] / seen.log()
        assert float(shares.mean()) < 0.85


@pytest.mark.parametrize("model_type", ROWS)
def test_a_family_agrees_with_torch(made, tmp_path, model_type):
    it = made(model_type)
    path = it.write(tmp_path / "m.gguf")
    assert_exact(it.verified(path))
    foretold = plan(it.model.config, it.hf, F16)
    assert foretold.problems == ()
    assert foretold.predicted_bytes == pytest.approx(path.stat().st_size, abs=400)


@pytest.mark.parametrize("model_type", ROWS)
def test_pitfall_15a_a_cut_family_agrees_with_torch(made, tmp_path, model_type):
    it = made(model_type)
    model = AutoModelForCausalLM.from_pretrained(it.folder)
    remove_blocks(model, ROWS[model_type].dropped)
    folder = tmp_path / "cut"
    model.save_pretrained(folder)
    it.hf.save_pretrained(folder)
    cut = Made(folder, model, it.hf, make_reference(folder, model.config, it.hf))
    if FAMILIES[model_type].windows:
        period = {"gemma2": 2, "gemma3": 6}[FAMILIES[model_type].architecture]
        kinds = sliding_blocks(model.config)
        assert kinds != [i % period < period - 1 for i in range(len(kinds))]  # llama.cpp's guess
        assert len(cut.reference.ids) > 2 * WINDOW
    assert_exact(cut.verified(cut.write(tmp_path / "m.gguf")))


def change_rows(monkeypatch, change):
    right = families.tensors
    monkeypatch.setattr(families, "tensors", lambda config: [change(r) for r in right(config)])


def change_key(monkeypatch, ending, change):
    right = writer.hyper_parameters

    def wrong(config):
        entries = right(config)
        assert any(entry.key.endswith(ending) for entry in entries)
        return [
            dataclasses.replace(e, value=change(e.value)) if e.key.endswith(ending) else e
            for e in entries
        ]

    monkeypatch.setattr(writer, "hyper_parameters", wrong)


def change_values(monkeypatch, name, change):
    right = families.to_file

    def wrong(row, values):
        stored = right(row, values)
        return change(stored) if row.gguf_name == name else stored

    monkeypatch.setattr(families, "to_file", wrong)


def doubled(value):
    return 2 * value


def mutate(name, model_type, monkeypatch):
    """Break one thing on the way into the file."""
    if name == "permutation":
        monkeypatch.setattr(file_tensors, "permute", lambda weight, heads: weight)
    elif name == "norm":
        change_rows(monkeypatch, lambda row: dataclasses.replace(row, added=0.0))
    elif name == "attention scale" and model_type == "granite":
        change_key(monkeypatch, "attention.scale", doubled)
    elif name == "attention scale":
        change_rows(monkeypatch, lambda row: dataclasses.replace(row, scale=1.0))
    elif name == "rope base":
        change_key(monkeypatch, "rope.freq_base", doubled)
    elif name == "local rope base":
        change_key(monkeypatch, "rope.freq_base_swa", doubled)
    elif name == "window":
        change_key(monkeypatch, "window_pattern", lambda kinds: [not kinds[0], *kinds[1:]])
    elif name == "bias":
        change_values(monkeypatch, "blk.1.attn_v.bias", torch.zeros_like)
    elif name == "norm bias":
        change_values(monkeypatch, "blk.1.attn_norm.bias", torch.zeros_like)
    elif name == "rotated part":
        change_key(monkeypatch, "rope.dimension_count", doubled)
    elif name == "query norm":
        change_values(monkeypatch, "blk.1.attn_q_norm.weight", torch.ones_like)
    elif name == "halves":
        change_values(monkeypatch, "blk.1.ffn_up.weight", lambda v: v.roll(v.shape[0] // 2, 0))


@pytest.mark.parametrize(("model_type", "name"), MUTATIONS)
def test_a_mistake_shows(made, tmp_path, monkeypatch, model_type, name):
    it = made(model_type)
    mutate(name, model_type, monkeypatch)
    path = it.write(tmp_path / "m.gguf")
    monkeypatch.undo()
    assert it.compared(path).kl >= 1e-2
    with pytest.raises(VerificationError):
        it.verified(path)


def test_pitfall_15a_a_wrong_window_entry_fails_without_a_long_text(made, tmp_path, monkeypatch):
    it = made("gemma3_text")
    mutate("window", "gemma3_text", monkeypatch)
    path = it.write(tmp_path / "m.gguf")
    read = verify_module.read_back(path)
    with pytest.raises(VerificationError, match=r"blocks \[0\] are local for global"):
        verify_module.check_windows(read, path, it.model.config)
    it.model.config.sliding_window += 1
    try:
        with pytest.raises(VerificationError, match="its sliding window is 48"):
            verify_module.check_windows(read, path, it.model.config)
    finally:
        it.model.config.sliding_window -= 1


@pytest.mark.parametrize(("model_type", "blocks"), [("gemma2", 46), ("gemma3_text", 62)])
def test_pitfall_15b_the_attention_scale_survives_the_count_of_the_largest(
    tmp_path, model_type, blocks
):
    """At 46 (Gemma 2) and 62 blocks (Gemma 3) llama.cpp takes hidden // heads for head_dim."""
    it = make(
        tmp_path / "m",
        model_type,
        blocks=blocks,
        hidden_size=96,
        head_dim=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=96,
        query_pre_attn_scalar=48,
        layer_types=["sliding_attention", "full_attention"] * (blocks // 2),
    )
    scales = {row.scale for row in families.tensors(it.model.config)}
    assert scales == {1.0}  # as the model wants it: 96 // 2 = 48
    assert it.compared(it.write(tmp_path / "m.gguf")).kl < 1e-3
    cut = after_cut(it.model.config, [3])
    scales = {row.scale for row in families.tensors(cut)}
    assert scales == {1.0, (32 / 48) ** 0.5}


def longrope(pairs, **more):
    """Factors that differ from pair to pair, and from the short to the long context."""
    factors = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0 + 0.05 * i for i in range(pairs)],
        "long_factor": [1.5 + 0.4 * i for i in range(pairs)],
    }
    return {"rope_parameters": {**factors, **more}, "original_max_position_embeddings": 320}


SHAPES = {
    "phi3, LongRoPE": ("phi3", longrope(32)),
    "phi3, three quarters of a head, tied": (
        "phi3",
        {
            **longrope(24, partial_rotary_factor=0.75),
            "tie_word_embeddings": True,
        },
    ),
    "gemma3, linear scaling of the global blocks, tied": (
        "gemma3_text",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
            "final_logit_softcapping": 20.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3, local blocks alone": (
        "gemma3_text",
        {"blocks": 4, "layer_types": ["sliding_attention"] * 4},
    ),
    "granite, biases everywhere, tied": (
        "granite",
        {"mlp_bias": True, "tie_word_embeddings": True},
    ),
    "qwen3, wide heads, tied": ("qwen3", {"head_dim": 96, "tie_word_embeddings": True}),
    "qwen2, linear scaling, tied": (
        "qwen2",
        {
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            "tie_word_embeddings": True,
        },
    ),
}


@pytest.mark.parametrize(("model_type", "changes"), SHAPES.values(), ids=SHAPES.keys())
def test_each_shape_of_a_family_agrees_with_torch(tmp_path, model_type, changes):
    it = make(tmp_path / "m", model_type, **changes)
    measured = it.verified(it.write(tmp_path / "m.gguf"))
    assert measured["kl"] <= F16_KL
    assert measured["largest_logit_difference"] <= F16_LARGEST


def test_pitfall_15_longrope_beyond_the_original_length(tmp_path, monkeypatch):
    """llama.cpp takes the long factors when its context is longer than the original one."""
    it = make(tmp_path / "m", "phi3", **longrope(32))
    assert len(it.reference.ids) < 320
    ids = tuple((7 * i * i + 3 * i) % 400 + 3 for i in range(400))
    with torch.no_grad():
        logits = it.model(torch.tensor([ids])).logits[0]
    it.reference = dataclasses.replace(it.reference, ids=ids, logits=logits)
    assert it.compared(it.write(tmp_path / "m.gguf")).kl < F16_KL
    right = families.computed_tensors

    def swapped(config):
        made = right(config)
        return dict(zip(made, reversed(made.values()), strict=True))

    monkeypatch.setattr(families, "computed_tensors", swapped)
    path = it.write(tmp_path / "wrong.gguf")
    assert it.compared(path).kl > 1e-2
    with pytest.raises(VerificationError, match="rope frequencies differ by"):
        verify_module.check_rope(verify_module.read_back(path), path, it.model.config, it.reference)


REFUSED = [
    ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("qwen2", {"num_attention_heads": 2, "head_dim": 64}, "heads times head_dim"),
    ("qwen3", {"attention_bias": True}, "attention_bias is True"),
    ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma2", {"final_logit_softcapping": None}, "final logits are soft-capped"),
    ("gemma2", {"layer_types": ["full_attention"] * 8}, "at least one block has a sliding window"),
    ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
    ("smollm3", {"no_rope_layers": [1] * 8}, "every fourth block"),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 16}, "use_sliding_window is True"),
    ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
]


@pytest.mark.parametrize(("model_type", "changes", "named"), REFUSED)
def test_what_llama_cpp_would_not_compute_is_refused_by_name(model_type, changes, named):
    row = {key: value for key, value in ROWS[model_type].changes.items() if key != "seed"}
    assert families.problems(tiny_config(model_type, **row)) == []
    wrong = tiny_config(model_type, **{**row, **changes})
    assert any(named in str(problem) for problem in families.problems(wrong))


def test_rope_is_read_from_transformers_4_too():
    """Gemma 3 and Phi 3 hold theirs in other attributes there."""

    class Gemma3:
        rope_theta = 1e6
        rope_local_base_freq = 1e4
        rope_scaling = {"rope_type": "linear", "factor": 8.0}  # noqa: RUF012
        max_position_embeddings = 512

    assert (read_rope(Gemma3).theta, read_rope(Gemma3).kind) == (1e6, "linear")
    assert (read_rope(Gemma3, local=True).theta, read_rope(Gemma3, local=True).kind) == (
        1e4,
        "default",
    )

    class Phi3:
        rope_theta = 1e4
        rope_scaling = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}  # noqa: RUF012
        original_max_position_embeddings = 64
        max_position_embeddings = 1024
        partial_rotary_factor = 0.75
        hidden_size, num_attention_heads = 256, 4

    assert read_rope(Phi3).original_length == 64
    assert rope_dimensions(Phi3) == 48
    assert attention_gain(Phi3) == pytest.approx(math.sqrt(1 + math.log(16) / math.log(64)))
