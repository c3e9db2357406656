"""Search: the exact curve against whole models, the gate's formula, the gate against the oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.metrics import token_kl
from clp_edge.models.anatomy import dissect
from clp_edge.models.families import FAMILIES
from clp_edge.search import choose_method, search, window_starts
from clp_edge.search.cost import Cost, Size, cost_of
from clp_edge.search.gate import gate_values
from clp_edge.search.judge import Judge
from clp_edge.search.sparing import sparing
from clp_edge.search.states import collect_states
from clp_edge.search.windows import WindowScore, stability, surely_better
from clp_edge.segment import Segment
from tests.tiny import random_ids, tiny_model


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_window_kl_equals_kl_of_the_gated_off_model(model_type: str) -> None:
    body = dissect(tiny_model(model_type))
    ids = random_ids(3, 40)
    segments = [Segment(1, 2), Segment(4, 5), Segment(6, 7)]
    states = collect_states(body, ids, batch=2)
    scores = Judge(body, states, cost_of(body, 40), batch=2).scores(segments)
    with torch.no_grad():
        dense = body.model(ids).logits
        for segment, score in zip(segments, scores, strict=True):
            gates = [0.0 if i in segment.blocks else 1.0 for i in range(len(body))]
            with body.gated(gates):
                cut = body.model(ids).logits
            expected = token_kl(dense, cut).mean(dim=1)
            assert score.by_sequence == pytest.approx(expected.tolist(), rel=2e-3, abs=2e-4)
            assert score.kl == pytest.approx(float(expected.mean()), rel=2e-3)


def test_pitfall_4_stored_states_are_block_outputs_before_the_final_norm() -> None:
    body = dissect(tiny_model("llama"))
    ids = random_ids(2, 24)
    states = collect_states(body, ids)
    with torch.no_grad():
        output = body.model(ids, output_hidden_states=True)
    torch.testing.assert_close(states.hidden[0], output.hidden_states[0])
    torch.testing.assert_close(states.hidden[3], output.hidden_states[3])
    torch.testing.assert_close(body.normed(states.hidden[-1]), output.hidden_states[-1])
    assert (states.hidden[-1] - output.hidden_states[-1]).abs().max() > 0.1


@pytest.mark.parametrize("temperature", [0.2, 0.7, 2.0, 6.0])
@pytest.mark.parametrize("start", [0.0, 0.4, 7.3, 12.0, 24.0])
def test_gate_drops_its_budget_everywhere(temperature: float, start: float) -> None:
    at = torch.tensor(start, dtype=torch.float64)
    gates = gate_values(at, 6, 30, temperature)
    assert float((1 - gates).sum()) == pytest.approx(6.0, abs=1e-6)
    assert ((gates >= 0) & (gates <= 1)).all()
    # one valley: going outwards from the deepest block the gates never close again
    deepest = int(gates.argmin())
    steps = gates.diff()
    assert (steps[deepest:] >= -1e-9).all()
    assert (steps[:deepest] <= 1e-9).all()


def test_a_cold_gate_is_the_window() -> None:
    gates = gate_values(torch.tensor(4.0, dtype=torch.float64), 3, 10, 0.01)
    assert gates.tolist() == pytest.approx([1, 1, 1, 1, 0, 0, 0, 1, 1, 1], abs=1e-6)


def test_the_gate_has_a_slope_towards_the_better_side() -> None:
    """The gradient is that of the loss: against a central difference."""
    body = dissect(tiny_model("llama"))
    ids = random_ids(2, 24)
    with torch.no_grad():
        dense = body.model(ids).logits.double()

    def loss(at: torch.Tensor) -> torch.Tensor:
        with body.gated(gate_values(at, 2, 8, 0.8)):
            return token_kl(dense, body.model(ids).logits).mean()

    at = torch.tensor(2.7, requires_grad=True)
    loss(at).backward()
    with torch.no_grad():
        numeric = (loss(torch.tensor(2.72)) - loss(torch.tensor(2.68))) / 0.04
    # c is detached by design, so the slope keeps its sign rather than its very value
    assert at.grad is not None
    assert torch.sign(at.grad) == torch.sign(numeric)


def make_one_window_free(body, free: Segment) -> None:
    """Blocks of `free` do next to nothing, so that window is the best by far."""
    with torch.no_grad():
        for index in free.blocks:
            body.submodule(index, "self_attn.o_proj").weight.mul_(0.01)
            body.submodule(index, "mlp.down_proj").weight.mul_(0.01)


@pytest.mark.parametrize("method", ["exact", "halving", "gate"])
@pytest.mark.parametrize("first", [2, 7])
def test_both_methods_find_the_free_window(method: str, first: int) -> None:
    body = dissect(tiny_model("llama", blocks=12))
    make_one_window_free(body, Segment.from_start(first, 3))
    found = search(body, random_ids(4, 32), count=3, method=method)
    assert found.segment == Segment.from_start(first, 3)
    assert found.kl_raw < 0.05
    assert found.method == method
    if method == "exact":
        assert len(found.windows) == 12 - 3 - 1
        assert found.regret == 0.0
    elif method == "halving":
        assert len(found.windows) == 3
        assert len(found.windows) + len(found.partial) == 12 - 3 - 1
    else:
        assert found.trace is not None
        assert len(found.windows) <= 5
    assert found.criterion == "raw"
    assert found.kl_healed is None


def test_search_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    search(dissect(model), random_ids(2, 24), count=2, method="gate")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_search_respects_what_targets_allow() -> None:
    body = dissect(tiny_model("llama"))
    found = search(
        body, random_ids(2, 24), count=2, method="exact", allowed=lambda s: s.first in (3, 4)
    )
    assert [w.segment.first for w in found.windows] == [3, 4]
    with pytest.raises(UsageError, match="no run of 2 blocks"):
        search(body, random_ids(2, 24), count=2, allowed=lambda s: False)


def test_stability_counts_wins_and_says_near_ties() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(1.0, 0.3, size=40)
    clear = [
        WindowScore(Segment(1, 2), 0, 0, tuple(base)),
        WindowScore(Segment(2, 3), 0, 0, tuple(base + 1.0)),
    ]
    assert stability(clear).wins == 1.0
    assert stability(clear).rivals == ()
    assert not stability(clear).near_tie
    noise = rng.normal(0.0, 0.3, size=40)
    close = [clear[0], WindowScore(Segment(2, 3), 0, 0, tuple(base + noise - noise.mean() + 0.01))]
    result = stability(close)
    assert 0.4 < result.wins < 0.8
    assert result.near_tie
    paired = np.array(close[1].by_sequence) - np.array(close[0].by_sequence)
    stats = pytest.importorskip("scipy.stats")
    assert result.gap_se == pytest.approx(float(stats.sem(paired)))


def test_a_window_takes_the_place_of_another_only_where_it_is_surely_better() -> None:
    start = np.array([1.0, 1.2, 0.9, 1.1])
    kept = WindowScore.of(Segment(1, 2), start)
    noisy = WindowScore.of(Segment(2, 3), start + np.array([-0.9, 0.5, 0.4, -0.4]))  # -0.10 +- 0.33
    sure = WindowScore.of(Segment(3, 4), start + np.array([-0.06, -0.04, -0.05, -0.05]))
    assert noisy.kl < sure.kl < kept.kl
    assert surely_better([noisy, kept], kept.segment, errors=1.0) == kept
    assert surely_better([noisy, kept], kept.segment, errors=0.0) == noisy
    assert surely_better([noisy, sure, kept], kept.segment, errors=1.0) == sure
    assert surely_better([noisy, kept, sure], noisy.segment, errors=0.0) == noisy
    assert surely_better([kept], kept.segment, errors=1.0) == kept
    one = [WindowScore.of(Segment(1, 2), [2.0]), WindowScore.of(Segment(2, 3), [1.0])]
    assert surely_better(one, Segment(1, 2), errors=1.0) == one[0]  # no error is known


def test_stability_may_speak_of_another_window_than_the_least() -> None:
    start = np.linspace(0.5, 1.5, 8)
    scores = [WindowScore.of(Segment(first, first), start + 0.1 * first) for first in (3, 1, 2)]
    found = stability(scores, chosen=Segment(2, 2))
    assert found.gap == pytest.approx(-0.1)
    assert found.wins == 0.0
    assert found.rivals == ((Segment(1, 1), 1.0),)
    assert stability(scores, chosen=Segment(1, 1)) == stability(scores)


@pytest.mark.parametrize("sequences", [1, 2, 3, 4])
def test_stability_of_fewer_than_four_sequences_is_not_known(sequences: int) -> None:
    scores = [
        WindowScore(Segment(first, first), 0, 0, (float(first),) * sequences) for first in (1, 2)
    ]
    found = stability(scores)
    assert found.gap == 1.0
    if sequences < 4:
        assert found.wins is None
        assert found.rivals == ()
        assert math.isnan(found.gap_se)
        assert not found.near_tie
    else:
        assert found.wins == 1.0
    body = dissect(tiny_model("llama", blocks=4))
    searched = search(body, random_ids(sequences, 24), count=1, method="exact")
    assert (searched.stability.wins is None) == (sequences < 4)


def test_costs_of_the_demo_shape_are_those_of_the_methods_page() -> None:
    """14.2 forward equivalents for n = 6 of 30 blocks with all 25 starts, at 256 tokens."""
    block = 2 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536) + 4 * 576 * 256 / 2
    cost = Cost(blocks=30, block=block, head=2 * 576 * 49_152)
    segments = [Segment.from_start(s, 6) for s in range(25)]
    assert cost.oracle(segments) == pytest.approx(14.2, abs=0.1)


def size_of(cost: Cost, count: int, sequences: int) -> Size:
    return Size(cost, count, window_starts(cost.blocks, count), sequences, 256)


def test_auto_takes_the_cheaper_method_and_says_why() -> None:
    small = size_of(Cost(blocks=30, block=1.0, head=8.0), 6, 8)
    large = size_of(Cost(blocks=80, block=1.0, head=1.0), 16, 128)
    name, reason = choose_method("auto", small)
    assert name == "halving"
    assert reason.startswith("predicted cost in forward passes: exact 13.3, halving ")
    assert reason.endswith(" (23 windows)")
    assert choose_method("auto", large)[0] != "exact"
    assert choose_method("Oracle", small) == ("exact", "as asked for")
    with pytest.raises(UsageError, match="nearest"):
        choose_method("nearest", small)


@pytest.mark.parametrize(("total", "count"), [(2, 1), (8, 7), (8, 0)])
def test_impossible_counts_are_refused(total: int, count: int) -> None:
    with pytest.raises(UsageError, match=r"at least 2 blocks must stay|drops nothing"):
        window_starts(total, count)


def test_cost_counts_weights_of_a_real_block() -> None:
    body = dissect(tiny_model("llama"))
    cost = cost_of(body, tokens=0)
    block = body.blocks[0]
    assert cost.block == 2 * sum(p.numel() for p in block.parameters() if p.dim() == 2)


def test_windows_that_overflow_float16_are_no_choice() -> None:
    """Block 3 brings the residual stream back into range, so it may not go."""
    model = tiny_model("llama", blocks=6)
    with torch.no_grad():
        for index in range(6):
            model.model.layers[index].mlp.down_proj.weight.mul_(1e-3)
            model.model.layers[index].self_attn.o_proj.weight.mul_(1e-3)
        # a bias by way of embeddings: the same large value for every token, taken away by block 3
        model.model.embed_tokens.weight[:, 0] = 3e4
    body = dissect(model.half())

    class Shift(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module, change: float) -> None:
            super().__init__()
            self.inner, self.change = inner, change

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            output = self.inner(hidden)
            output[..., 0] += self.change
            return output

    for index, change in ((2, 3e4), (3, -3e4), (4, 3e4), (5, -3e4)):
        body.blocks[index].mlp = Shift(body.blocks[index].mlp, change)
    found = search(body, random_ids(4, 24), count=1, method="exact", allowed=lambda s: s.first < 4)
    assert [w.segment.first for w in found.windows] == [1, 2]
    with pytest.raises(ClpEdgeError, match="not finite whichever 1 blocks go"):
        search(body, random_ids(4, 24), count=1, method="exact", allowed=lambda s: s.first == 3)


def test_dead_models_are_named_and_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ClpEdgeError, match="not finite"):
        search(dissect(model), random_ids(2, 24), count=2)
    constant = tiny_model("llama")
    with torch.no_grad():
        constant.model.norm.weight.zero_()
    with pytest.raises(ClpEdgeError, match="same for every token"):
        search(dissect(constant), random_ids(2, 24), count=2)


def test_a_search_holds_fewer_logits_at_once_and_finds_the_same() -> None:
    body = dissect(tiny_model("gemma2"))  # with a soft cap, and a scale of the logits
    lean = sparing(body)
    assert lean.head.chunk() == body.head.chunk() // 3
    assert (lean.head.scale, lean.head.softcap) == (body.head.scale, body.head.softcap)
    assert lean.head.weight is body.head.weight
    ids = random_ids(2, 24)
    one, other = (collect_states(each, ids).dense for each in (body, lean))
    assert torch.equal(one.offset, other.offset)
    assert torch.equal(one.expected, other.expected)
    assert replace(lean, autocast=torch.bfloat16).head.chunk() == lean.head.chunk()
