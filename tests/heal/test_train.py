"""The training that the rungs share: rates relative to the weights, parts, stopping, the mean."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from clp_edge.heal import Job, TuningSettings, heal
from clp_edge.heal.blocks import tuned_blocks
from clp_edge.heal.collect import Teachers, collect_tail, light_head
from clp_edge.heal.endpoints import ENDPOINTS
from clp_edge.heal.fast_head import fast_kl
from clp_edge.heal.held import judge_tail
from clp_edge.heal.local import LOCAL
from clp_edge.heal.tail import Tail
from clp_edge.heal.train import relative_sizes, schedule, train
from clp_edge.kernels.head_kl import head_kl
from clp_edge.models.anatomy import dissect
from clp_edge.progress import silent
from clp_edge.segment import Segment
from tests.tiny import random_ids, tiny_model

SEGMENT = Segment(3, 4)


@torch.no_grad()
def shrunk(model: Any, blocks: tuple[int, ...], by: float) -> Any:
    """The same function with matrices `by` times smaller or more, by larger norm gains."""
    for index in blocks:
        block = model.model.layers[index]
        block.input_layernorm.weight.mul_(by * by)
        for name in ("q_proj", "k_proj"):
            getattr(block.self_attn, name).weight.div_(by * by)
        block.self_attn.v_proj.weight.div_(by)  # by times larger values
        block.self_attn.o_proj.weight.div_(by)
        block.post_attention_layernorm.weight.mul_(by * by)
        block.mlp.gate_proj.weight.div_(by * by)
        block.mlp.up_proj.weight.div_(by)
        block.mlp.down_proj.weight.div_(by)
    return model


@pytest.mark.parametrize("rungs", ["local", "endpoints"])
def test_tuning_survives_weights_ten_times_smaller_in_the_same_function(rungs: str) -> None:
    """An absolute rate that suits large weights raises KL here (docs/LOG.md: 0.374 to 0.414)."""
    fit, select = random_ids(24, 48, seed=1), random_ids(6, 48, seed=2)
    tuning = TuningSettings(steps=20, local_steps=20, tokens=192, epochs=9, checks=2)
    plain = tiny_model("llama")
    small = shrunk(tiny_model("llama"), (2, 5, 6, 7), 10.0)
    ids = random_ids(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, plain(ids).logits, atol=2e-3, rtol=1e-3)
    # each rung by itself: the endpoints alone have no local rung
    words = "endpoints" if rungs == "endpoints" else "near"
    found = [
        heal(dissect(model), SEGMENT, fit, select, rungs=rungs, tune_blocks=words, tuning=tuning)
        for model in (plain, small)
    ]
    ours, theirs = (one.rung(rungs) for one in found)
    assert ours is not None
    assert theirs is not None
    assert theirs.kept
    assert theirs.kl_after < theirs.kl_before
    assert theirs.kl_after == pytest.approx(ours.kl_after, rel=1e-3)


def test_a_tensor_of_zeros_is_trained_at_the_size_of_its_neighbours() -> None:
    block = tiny_model("qwen2").model.layers[0]
    with torch.no_grad():
        block.self_attn.q_proj.bias.zero_()
    sizes = relative_sizes(block)
    usual = float(block.mlp.up_proj.weight.square().mean().sqrt())
    assert sizes[block.mlp.up_proj.weight] == pytest.approx(usual)
    assert 0.01 * usual < sizes[block.self_attn.q_proj.bias] < usual


def job(body: Any, *, tuned: tuple[int, ...] | None = None, **settings: Any) -> Job:
    tail = Tail(body, SEGMENT, tuned or tuned_blocks("near", SEGMENT, len(body)))
    reach = LOCAL.reach(tail)
    ids = random_ids(8, 32, seed=1)
    fit = collect_tail(body, SEGMENT, ids, entry=tail.entry, reach=reach)
    held = collect_tail(body, SEGMENT, random_ids(3, 32, seed=2), entry=tail.entry, teach=True)
    asked = TuningSettings(**{"steps": 4, "tokens": 128, "warmup": 0, **settings})
    return Job(tail, fit, held, judge_tail(held, tail), asked)


@pytest.mark.parametrize("rung", [LOCAL, ENDPOINTS], ids=lambda rung: rung.name)
def test_a_step_in_parts_is_the_step_at_once(rung: Any) -> None:
    body = dissect(tiny_model("llama"))
    states = []
    for at_once in (128, 32):
        one = job(body, at_once=at_once, checks=1)
        rung.mend(one, silent)
        states.append(one.tail.state())
    for index, tensors in states[0].items():
        for name, value in tensors.items():
            torch.testing.assert_close(states[1][index][name], value, atol=2e-5, rtol=1e-3)


def test_it_stops_after_two_checks_that_do_not_fall_and_goes_back() -> None:
    body = dissect(tiny_model("llama"))
    one = job(body, epochs=100, checks=10)

    def upwards(pick: torch.Tensor) -> torch.Tensor:
        _, arguments = body.prepare(one.fit.ids[pick])
        final = one.tail(one.fit.entry[pick], arguments)
        return -head_kl(body.head, Teachers(one.tail, one.fit).of(pick), final.flatten(0, 1)).mean()

    found = train(one, upwards, steps=50, rate=5e-2, seed=0, progress=silent, noun="it")
    assert [point.step for point in found.points] == [0, 5, 10]
    assert found.judged is not None
    assert found.judged.kl > one.kl


def test_no_more_than_an_epoch_and_a_half_is_taken() -> None:
    one = job(dissect(tiny_model("llama")), steps=500)
    mended = ENDPOINTS.mend(one, silent)
    assert mended.facts["steps"] * 128 <= 1.5 * 8 * 32
    assert mended.facts["tokens"] == 128


@pytest.mark.parametrize(("rate", "averaged"), [(5e-3, False), (5e-2, True)])
def test_the_state_that_stays_is_the_one_whose_kl_is_told(
    rate: float, averaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check's, or where the steps are too long the mean of the last third's weights."""
    monkeypatch.setattr("clp_edge.heal.train.schedule", lambda *_: 1.0)
    one = job(dissect(tiny_model("llama")), steps=24, epochs=100, rate=rate, checks=2)
    mended = ENDPOINTS.mend(one, silent)
    assert mended.facts["averaged"] is averaged
    assert one.judge().kl == pytest.approx(mended.kl, rel=1e-5)
    checks = [point["kl"] for point in mended.facts["history"][1:]]
    assert (mended.kl < min(checks)) is averaged


def test_the_rate_warms_up_and_falls_to_a_twentieth() -> None:
    assert [schedule(step, 100, 10) for step in (0, 9, 10)] == pytest.approx([0.1, 1.0, 1.0])
    assert schedule(100, 100, 10) == pytest.approx(0.05)


@pytest.mark.parametrize("model_type", ["llama", "granite", "gemma2", "qwen2"])
def test_under_autocast_it_heals_as_in_float32(model_type: str) -> None:
    fit, select = random_ids(24, 48, seed=1), random_ids(6, 48, seed=2)
    tuning = TuningSettings(steps=16, local_steps=16, tokens=192, epochs=9, checks=2)
    exact = dissect(tiny_model(model_type))
    light = dataclasses.replace(dissect(tiny_model(model_type)), autocast=torch.bfloat16)
    before = {name: value.clone() for name, value in light.model.state_dict().items()}
    ours, theirs = (heal(b, SEGMENT, fit, select, tuning=tuning) for b in (exact, light))
    assert theirs.kl_cut == pytest.approx(ours.kl_cut, rel=0.03, abs=3e-4)
    assert theirs.kl == pytest.approx(ours.kl, rel=0.03, abs=3e-4)
    assert all(t.dtype == torch.float32 for s in theirs.state.values() for t in s.values())
    assert all(torch.equal(v, before[k]) for k, v in light.model.state_dict().items())


def test_the_fast_head_is_the_exact_one_but_for_noise() -> None:
    body = dataclasses.replace(dissect(tiny_model("llama")), autocast=torch.bfloat16)
    one = job(body)
    pick = torch.arange(4)
    weight = light_head(body)
    assert weight is not None
    dense = Teachers(one.tail, one.fit, weight).of(pick)
    exact = Teachers(one.tail, one.fit).of(pick)
    torch.testing.assert_close(dense.expected, exact.expected, atol=0.05, rtol=0.05)
    _, arguments = body.prepare(one.fit.ids[pick])
    with torch.no_grad():
        final = one.tail(one.fit.entry[pick], arguments).flatten(0, 1)
    gradients = []
    for which in ("fast", "exact"):
        state = final.clone().requires_grad_(True)
        with torch.enable_grad():
            if which == "fast":
                value = fast_kl(weight, body.head.scale, dense, state).mean()
            else:
                value = head_kl(body.head, exact, state).mean()
            value.backward()
        gradients.append(state.grad)
    cosine = torch.nn.functional.cosine_similarity(
        gradients[0].flatten(), gradients[1].flatten(), dim=0
    )
    assert cosine > 0.95
    assert math.isfinite(float(value.detach()))


def test_light_head_leaves_soft_caps_to_the_exact_way() -> None:
    gemma = dataclasses.replace(dissect(tiny_model("gemma2")), autocast=torch.bfloat16)
    assert light_head(gemma) is None
    assert light_head(dissect(tiny_model("llama"))) is None
