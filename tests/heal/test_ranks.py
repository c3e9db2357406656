"""Two processes heal as one does: the same decisions, the same weights; and they fail together."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clp_edge.heal import HealResult, TuningSettings, heal
from clp_edge.heal.ranks import SINGLE, RankLostError, Ranks
from clp_edge.models.anatomy import dissect
from clp_edge.segment import Segment
from tests.tiny import random_ids, tiny_model

SEGMENT = Segment(3, 4)
# 3 sequences a step, so that the shares are 2 and 1; 5 held back; the steps end on a check.
ODD = TuningSettings(steps=6, local_steps=6, tokens=144, epochs=9, checks=3, warmup=1)
# 1 sequence a step: the second process has nothing to learn from, and takes the step all the same.
LONE = TuningSettings(steps=3, local_steps=2, tokens=48, epochs=9, checks=1, warmup=0)
CASES = {"odd": ODD, "lone": LONE}


def healed(settings: TuningSettings, ranks: Ranks = SINGLE, **more: Any) -> HealResult:
    fit, select = random_ids(12, 48, seed=1), random_ids(5, 48, seed=2)
    body = dissect(tiny_model("llama"))
    return heal(body, SEGMENT, fit, select, tuning=settings, ranks=ranks, seed=3, **more)


def both_heal(ranks: Ranks) -> dict[str, HealResult]:
    return {name: healed(settings, ranks) for name, settings in CASES.items()}


def one_fails(ranks: Ranks) -> str:
    """The second process fails in its step, while the first waits for its gradients."""

    def progress(done: float, total: float, note: str = "") -> None:
        if note.startswith("local tuning") and not ranks.first:
            raise ZeroDivisionError

    try:
        healed(ODD, ranks, progress=progress)
    except (RankLostError, ZeroDivisionError) as error:
        return type(error).__name__
    return "nothing"


def talk(ranks: Ranks) -> Any:
    """What the small parts give: shares, sums, means, words of the first."""
    some = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
    some[0].grad = torch.full((3,), 1.0 + ranks.rank)
    if not ranks.first:
        some[1].grad = torch.ones(3)
    ranks.add_gradients(some)
    values = torch.tensor([1.0, 2.0, 6.0])[ranks.share(torch.arange(3))]
    level = torch.full((2,), float(ranks.rank))
    ranks.level([level])
    return {
        "gradients": [None if p.grad is None else p.grad.tolist() for p in some],
        "whole": ranks.whole(values).tolist(),
        "none here": ranks.whole(torch.ones(2, 1 if ranks.first else 0)).tolist(),
        "level": level.tolist(),
        "told": ranks.told("heal" if ranks.first else "not looked at"),
        "first to fail": ranks.fails_first(),
    }


def _process(
    rank: int, count: int, folder: str, work: Callable[[Ranks], Any], breaks: bool
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    try:
        found = work(Ranks(rank, count, store))
        Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(found))
        if breaks:
            os._exit(0)
    finally:
        dist.destroy_process_group()


def in_two(work: Callable[[Ranks], Any], folder: Path, *, breaks: bool = False) -> list[Any]:
    """What `work` returns in each of two processes.

    Args: breaks, whether it loses the connection: tearing gloo down after that has ended a process
        by SIGABRT ("terminate called without an active exception"), once in some twenty runs.
    """
    mp.spawn(_process, args=(2, str(folder), work, breaks), nprocs=2)
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(2)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, HealResult]]:
    return in_two(both_heal, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    ("case", "at_once", "apart"),
    [
        # One process that adds up its step from the very parts that the two have: the same bits.
        ("odd", 96, 0.0),
        # In one go the sums are rounded otherwise, and AdamW makes a full step also of a gradient
        # that is nothing but rounding: with and without parts, one process differs by 1.1e-5.
        ("odd", 2048, 3e-5),
        ("lone", 2048, 0.0),
    ],
)
def test_two_processes_come_to_what_one_comes_to(
    case: str, at_once: int, apart: float, pair: list[dict[str, HealResult]]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = healed(replace(CASES[case], at_once=at_once))
    finally:
        torch.set_num_threads(before)
    assert alone.kl < alone.kl_cut
    for result in (found[case] for found in pair):
        assert result.kl_cut == pytest.approx(alone.kl_cut, rel=1e-5)
        assert result.kl == pytest.approx(alone.kl, rel=1e-5)
        assert [r.kept for r in result.rungs] == [r.kept for r in alone.rungs]
        for ours, theirs in zip(alone.rungs, result.rungs, strict=True):
            assert theirs.kl_after == pytest.approx(ours.kl_after, rel=1e-5)
            assert theirs.facts.get("steps") == ours.facts.get("steps")
        assert result.state.keys() == alone.state.keys()
        for index, tensors in alone.state.items():
            for name, value in tensors.items():
                gap = (result.state[index][name] - value).norm() / value.norm()
                assert float(gap) <= apart, (index, name)


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_bits(case: str, pair: list[dict[str, HealResult]]) -> None:
    ours, theirs = (found[case] for found in pair)
    assert [r.kl_after for r in ours.rungs] == [r.kl_after for r in theirs.rungs]
    for index, tensors in ours.state.items():
        for name, value in tensors.items():
            assert torch.equal(value, theirs.state[index][name]), (index, name)


def test_what_is_shared_adds_up(tmp_path: Path) -> None:
    first, second = in_two(talk, tmp_path)
    assert {first.pop("first to fail"), second.pop("first to fail")} == {True, False}
    assert first == second
    assert first["gradients"] == [[3.0, 3.0, 3.0], [1.0, 1.0, 1.0], None]
    assert first["whole"] == [1.0, 2.0, 6.0]
    assert first["none here"] == [[1.0], [1.0]]
    assert first["level"] == [0.0, 0.0]
    assert first["told"] == "heal"


def test_where_one_fails_the_other_does_not_wait(tmp_path: Path) -> None:
    assert in_two(one_fails, tmp_path, breaks=True) == ["RankLostError", "ZeroDivisionError"]


def test_alone_nothing_is_asked_of_a_group() -> None:
    ids = torch.arange(5)
    assert torch.equal(SINGLE.share(ids), ids)
    assert torch.equal(Ranks(1, 4).share(ids[:2]), ids[1:2])
    assert len(Ranks(3, 4).share(ids[:2])) == 0
    assert SINGLE.told("x") == "x"
    assert SINGLE.fails_first()
    assert torch.equal(SINGLE.whole(ids), ids)
