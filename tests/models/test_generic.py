"""Families without a row: found by looking at their code, proved, and carried through every stage.

The row that is found for a family with one must be the table's own. A family that breaks a rule is
refused with what broke.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from clp_edge.errors import UnsupportedModelError
from clp_edge.heal import TuningSettings, heal
from clp_edge.models import generic
from clp_edge.models.anatomy import dissect, family_of, take_apart
from clp_edge.models.families import FAMILIES
from clp_edge.models.generic import find_family
from clp_edge.models.surgery import remove_blocks
from clp_edge.search import search
from clp_edge.segment import Segment
from tests.tiny import make_mistakes_show, random_ids, tiny_config

_SHAPE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_hidden_layers": 6, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "starcoder2": {"num_key_value_heads": 2},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.25},
    "gpt_neox": {},
    "gpt_neox, one after the other": {"use_parallel_residual": False},
    "stablelm": {"num_key_value_heads": 2},
    "stablelm, parallel": {"use_parallel_residual": True, "num_key_value_heads": 4},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt2": {},
    "bloom": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
}
NO_REFIT = {"gpt2", "opt"}


def other_config(name: str, **changes: Any) -> Any:
    return CONFIG_MAPPING[name.partition(",")[0]](**{**_SHAPE, **OTHERS[name], **changes})


def other_model(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(other_config(name, **changes))
    return make_mistakes_show(model).eval().requires_grad_(False)


@pytest.mark.parametrize("name", OTHERS)
def test_search_cut_and_heal_go_through(name: str, tmp_path: Any) -> None:
    model = other_model(name)
    body = dissect(model)
    assert body.family.found == (body.family.model_type not in FAMILIES)
    fit, select = random_ids(6, 24, seed=1), random_ids(3, 24, seed=2)
    found = search(body, select, count=2, method="gate")
    segment = found.segment
    with torch.no_grad(), body.gated([float(i not in segment.blocks) for i in range(6)]):
        off = model(select).logits
    tuning = TuningSettings(steps=8)
    healed = heal(body, segment, fit, select, rungs="endpoints", tuning=tuning)
    refit = body.family.down_projection != ""
    assert refit == (name not in NO_REFIT)
    assert (healed.kl_refit is not None) == refit
    assert healed.kl < healed.kl_cut

    cut = copy.deepcopy(model)
    remove_blocks(cut, segment.blocks)
    cut.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(select).logits, off)
    healed.apply(cut)
    with torch.no_grad():
        logits, dense = cut(select).logits, model(select).logits
        kl = torch.nn.functional.kl_div(
            logits.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="none"
        )
    assert float(kl.sum(-1).mean()) == pytest.approx(healed.kl, rel=1e-3)


@pytest.mark.parametrize("name", ["starcoder2", "cohere", "gpt_neox", "falcon", "bloom", "gpt2"])
def test_pitfall_1_generation_is_the_same_with_and_without_cache(name: str) -> None:
    model = other_model(name)
    remove_blocks(model, Segment(1, 2).blocks)
    ids = random_ids(1, 20, seed=2)
    arguments = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(ids)
    cached = model.generate(ids, attention_mask=mask, use_cache=True, **arguments)
    plain = model.generate(ids, attention_mask=mask, use_cache=False, **arguments)
    assert cached.tolist() == plain.tolist()


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_what_is_found_for_a_known_family_is_the_tables_row(model_type: str) -> None:
    row, table = find_family(tiny_config(model_type), take_apart), FAMILIES[model_type]
    for name in ("decoder", "blocks", "embedding", "final_norm", "head", "residual_multiplier"):
        assert getattr(row, name) == getattr(table, name), name
    for found, named in (
        (row.attention_branch, table.attention_branch),
        (row.mlp_branch, table.mlp_branch),
    ):
        assert found == named or found.endswith("dropout")  # right behind it (Phi 3, StableLM)
    assert row.logit_divisor == table.logit_divisor
    capped = table.logit_softcap and getattr(tiny_config(model_type), table.logit_softcap)
    assert row.logit_softcap == (table.logit_softcap if capped else None)
    if not table.norm_after_mlp:
        assert row.down_projection == table.down_projection


def test_the_callers_random_numbers_and_device_stay() -> None:
    generic._found.cache_clear()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.device("meta"):
        row = family_of(other_config("starcoder2"))
    assert row.blocks == "model.layers"
    assert torch.equal(torch.rand(3), expected)


def _broken(monkeypatch: pytest.MonkeyPatch, forward: Any) -> Any:
    from transformers.models.starcoder2 import modeling_starcoder2

    monkeypatch.setattr(modeling_starcoder2.Starcoder2DecoderLayer, "forward", forward)
    generic._found.cache_clear()
    return other_config("starcoder2")


def _attended(block: Any, hidden: Any, arguments: dict[str, Any]) -> Any:
    return block.self_attn(hidden_states=block.input_layernorm(hidden), **arguments)[0]


def test_a_block_with_a_norm_behind_the_sum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, hidden_states: Any, **arguments: Any) -> Any:
        hidden = hidden_states + _attended(self, hidden_states, arguments)
        return self.post_attention_layernorm(hidden + self.mlp(hidden))

    with pytest.raises(UnsupportedModelError, match="enters the residual stream"):
        family_of(_broken(monkeypatch, forward))
    generic._found.cache_clear()


def test_a_block_that_knows_its_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, hidden_states: Any, **arguments: Any) -> Any:
        share = 1.0 / (1 + self.self_attn.layer_idx)  # as in GPT-2's scale_attn_by_inverse_...
        hidden = hidden_states + _attended(self, hidden_states * share, arguments) * share
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    with pytest.raises(UnsupportedModelError, match="cutting a block is not the same as gating"):
        family_of(_broken(monkeypatch, forward))
    generic._found.cache_clear()


def test_a_third_branch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, hidden_states: Any, **arguments: Any) -> Any:
        hidden = hidden_states + _attended(self, hidden_states, arguments)
        hidden = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return hidden + 0.1 * nn.functional.silu(hidden_states)

    with pytest.raises(UnsupportedModelError, match="all that enters"):
        family_of(_broken(monkeypatch, forward))
    generic._found.cache_clear()


@pytest.mark.parametrize(
    ("model_type", "says"),
    [("bert", "no single norm"), ("gpt_neo", "without block 0 it does not run")],
)
def test_what_does_not_fit_is_named(model_type: str, says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        family_of(CONFIG_MAPPING[model_type]())
