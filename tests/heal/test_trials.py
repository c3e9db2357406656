"""The trials of ideas for rungs run on tiny models, and their parts compute what they say."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from clp_edge.models.anatomy import dissect
from clp_edge.segment import Segment
from tests.heal.grafting import grafted, union
from tests.heal.ground import Ground, solved
from tests.heal.trials import TRIALS, Rounded, q_0
from tests.tiny import random_ids, tiny_model

SEGMENT = Segment(3, 4)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def ground(request: pytest.FixtureRequest) -> Ground:
    body = dissect(tiny_model(request.param, hidden_size=64, intermediate_size=96, head_dim=16))
    texts = [random_ids(count, 40, seed=seed) for seed, count in enumerate((24, 6, 4))]
    return Ground.of(body, SEGMENT, *texts)


@pytest.mark.parametrize("name", list(TRIALS))
def test_every_trial_runs_and_compares_with_what_stands(ground: Ground, name: str) -> None:
    arms: dict[str, dict[str, Any]] = dict(TRIALS[name](ground, 3))
    judged = {arm: facts for arm, facts in arms.items() if "held" in facts}
    compared = [facts for facts in judged.values() if "held less base" in facts]
    assert len(judged) >= 2
    assert compared
    for facts in judged.values():
        assert math.isfinite(facts["held"])
        assert facts["held"] > 0.0
        assert math.isfinite(facts["unseen"])


def test_the_plain_chain_is_what_the_ladder_refits(ground: Ground) -> None:
    from clp_edge.heal import heal

    found = heal(ground.body, SEGMENT, ground.fit.ids, ground.held.ids, rungs="refit")
    cut = ground.chain(SEGMENT.blocks)
    assert float(ground.kl(cut, ground.held).mean()) == pytest.approx(found.kl_cut, rel=1e-5)
    change = solved(ground.sums(cut, 2, 5, constant=False), 0.01, constant=False)
    refit = found.rung("refit")
    assert refit is not None
    module: Any = ground.copy_of(cut, 2)
    with torch.no_grad():
        module.mlp.down_proj.weight.add_(change.float())
    kl = float(ground.kl(cut.put(2, module), ground.held).mean())
    assert kl == pytest.approx(refit.facts["by_ridge"]["0.01"], rel=1e-4)


def test_a_bias_closes_a_gap_that_is_constant(ground: Ground) -> None:
    cut = ground.chain(SEGMENT.blocks)
    shift = torch.linspace(-1.0, 1.0, 64)
    came = torch.cat([ground.run(cut.until(2), ground.fit, p) for p in ground.fit.batches()])
    ground.fit.states[99] = came + shift
    try:
        sums = ground.sums(cut, 2, 99, constant=True)
        change = solved(sums, 0.01, constant=True)
    finally:
        del ground.fit.states[99]
    torch.testing.assert_close(change[:, -1].float(), shift, rtol=1e-3, atol=1e-3)
    assert float(change[:, :-1].abs().max()) < 1e-3
    assert sums.explained(change) > 0.9999


def test_a_graft_of_its_own_neurons_alone_is_one_more_refit(ground: Ground) -> None:
    found = union(ground)
    alone, facts = grafted(ground, found, torch.arange(96))
    assert facts["neurons"] == {2: 96}
    again, _ = ground.refit(ground.plain(), 2, 5)
    mine, theirs = ground.kl(alone, ground.held), ground.kl(again, ground.held)
    torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 5])
def test_the_rounding_is_ggmls_and_its_gradient_passes_straight_through(bits: int) -> None:
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(2))
    weight[0, :32] = 0.0
    kind = gguf.GGMLQuantizationType[f"Q{bits}_0"]
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    np.testing.assert_allclose(q_0(weight, bits).numpy(), theirs, rtol=1e-6, atol=0)
    weight.requires_grad_(True)
    Rounded(bits)(weight).square().sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2.0 * q_0(weight, bits))
