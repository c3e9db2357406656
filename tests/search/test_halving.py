"""The judge measures nothing twice and counts what it costs; halving answers as the oracle does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clp_edge.models.anatomy import dissect
from clp_edge.search import judge as judge_module
from clp_edge.search import search, window_starts
from clp_edge.search.cost import cost_of
from clp_edge.search.halving import HALVING, KEPT, rungs, survivors
from clp_edge.search.judge import Judge, paired
from clp_edge.search.method import Problem
from clp_edge.search.states import collect_states
from clp_edge.segment import Segment
from tests.tiny import random_ids, tiny_model


def judge_of(sequences: int = 5) -> Judge:
    body = dissect(tiny_model("llama"))
    return Judge(body, collect_states(body, random_ids(sequences, 24)), cost_of(body, 24), batch=2)


def test_what_was_looked_at_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_of()
    rows: list[tuple[int, int]] = []
    real = judge_module.window_kl

    def counted(body, states, segment, first, last, gone):
        rows.append((first, last))
        return real(body, states, segment, first, last, gone)

    monkeypatch.setattr(judge_module, "window_kl", counted)
    first = judge.look([Segment(1, 2)], 3)
    assert rows == [(0, 2), (2, 3)]
    again = judge.look([Segment(1, 2)], 2)
    assert len(rows) == 2
    np.testing.assert_array_equal(again, first[:, :2])
    whole = judge.scores([Segment(1, 2)])[0]
    assert rows[2:] == [(3, 5)]
    assert whole.by_sequence[:3] == tuple(first[0])


def test_the_judge_counts_what_the_closed_form_says() -> None:
    judge = judge_of()
    windows = [Segment(1, 2), Segment(4, 5)]
    judge.scores(windows)
    assert judge.spent == pytest.approx(judge.cost.windows(windows), rel=1e-9)
    assert judge.partial() == []
    judge.look([Segment(2, 3)], 2)
    third = judge.cost.windows([*windows, Segment(2, 3)]) - judge.cost.windows(windows)
    assert judge.spent == pytest.approx(judge.cost.windows(windows) + third * 2 / 5, rel=1e-9)
    assert [score.segment for score in judge.partial()] == [Segment(2, 3)]
    assert len(judge.partial()[0].by_sequence) == 2


def test_windows_are_compared_by_paired_differences() -> None:
    base = np.array([1.0, 5.0, 9.0])
    leader, gaps, errors = paired(np.stack([base + 0.1, base, base + np.array([0.0, 0.6, 0.0])]))
    assert leader == 1
    assert gaps == pytest.approx([0.1, 0.0, 0.2])
    assert errors == pytest.approx([0.0, 0.0, 0.2], abs=1e-12)
    assert np.isinf(paired(base[:, None])[2]).all()


def test_survivors_are_the_better_half_and_whoever_is_close() -> None:
    segments = [Segment(first, first) for first in range(1, 9)]
    rng = np.random.default_rng(0)
    text = rng.normal(5.0, 2.0, size=6)
    kl = np.stack([text + level for level in (3, 0, 2.5, 0.1, 4, 0.2, 5, 1)])
    assert survivors(segments, kl, keep=2) == [Segment(i, i) for i in (2, 4, 6, 8)]
    kl[6] = text + 2.6 + np.array([-5.0, 5.0, -5.0, 5.0, -5.0, 5.0])  # worse, but not for sure
    assert Segment(7, 7) in survivors(segments, kl, keep=2)
    kl[1] = np.inf  # the former leader overflows
    assert Segment(2, 2) not in survivors(segments, kl, keep=2)
    assert survivors(segments, np.full((8, 3), np.nan), keep=2) == segments


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_halving_answers_as_the_oracle_for_less(count: int, seed: int) -> None:
    body = dissect(tiny_model("llama", blocks=16))
    ids = random_ids(8, 24)
    whole = search(body, ids, count=count, method="exact", seed=seed)
    short = search(body, ids, count=count, method="halving", seed=seed)
    assert short.segment == whole.segment or short.kl_raw <= whole.kl_raw * 1.02
    assert len(short.windows) >= KEPT
    assert short.forward_equivalents < 0.7 * whole.forward_equivalents
    looked = [score.segment for score in (*short.windows, *short.partial)]
    assert sorted(looked) == [score.segment for score in whole.windows]
    exact = {score.segment: score for score in whole.windows}
    for score in short.partial:
        seen = len(score.by_sequence)
        assert seen < 8
        assert score.by_sequence == pytest.approx(exact[score.segment].by_sequence[:seen], rel=1e-4)


def test_the_prediction_is_what_halving_costs_without_close_calls() -> None:
    body = dissect(tiny_model("llama", blocks=16))
    ids = random_ids(8, 24)
    states = collect_states(body, ids)
    problem = Problem(body, states, 2, window_starts(16, 2), cost_of(body, 24))
    left = list(problem.windows())
    for upto in rungs(8)[:-1]:
        problem.judge.look(left, upto)
        left = left[: max(KEPT, math.ceil(len(left) / 2))]
    problem.judge.look(left, 8)
    assert HALVING.predict(problem.size) == pytest.approx(1.0 + problem.judge.spent, rel=0.25)


def test_states_past_the_bound_lie_in_files_and_are_the_same() -> None:
    body = dissect(tiny_model("llama"))
    ids = random_ids(5, 24)
    inside = collect_states(body, ids, batch=2)
    outside = collect_states(body, ids, batch=2, bound=1000)
    assert not inside.spilled
    assert outside.spilled
    for kept, filed in zip(inside.hidden, outside.hidden, strict=True):
        assert torch.equal(kept, filed)
    room = outside._room.folder.name
    windows = [Segment(1, 2), Segment(3, 4)]
    cost = cost_of(body, 24)
    before = Judge(body, inside, cost).look(windows, 5)
    np.testing.assert_array_equal(Judge(body, outside, cost).look(windows, 5), before)
    half = dissect(tiny_model("llama").bfloat16())
    filed = collect_states(half, ids, bound=0)
    assert filed.spilled
    assert filed.hidden[0].dtype == torch.bfloat16
    del outside
    import gc
    from pathlib import Path

    gc.collect()
    assert not Path(room).exists()
