"""The dense pass in two processes: each runs its batches, and both hold what one process holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from clp_edge.heal.collect import TailInputs
from clp_edge.heal.ranks import SINGLE, Ranks
from clp_edge.heal.refit import REFIT, GainSums, RefitSums
from clp_edge.heal.shared_pass import collect_together, spans
from clp_edge.models.anatomy import dissect
from clp_edge.segment import Segment
from tests.heal.test_ranks import in_two
from tests.tiny import random_ids, tiny_model

SEGMENT = Segment(3, 4)
IDS = random_ids(21, 16, seed=1)
BATCH = 4


@dataclass
class Count:
    """Counts the tokens that it is fed; cannot add up."""

    tokens: int = 0

    def add(self, inner: Tensor, at_cut: Tensor, target: Tensor) -> None:
        self.tokens += len(target)


def passes(ranks: Ranks) -> dict[str, Any]:
    """What a process holds after every kind of pass, and how many sequences it ran itself."""
    found: dict[str, Any] = {}
    for kind in ("llama", "gemma2"):
        body = dissect(tiny_model(kind))
        sums = REFIT.watch(body, SEGMENT)
        ran: list[float] = []
        found[kind] = collect_together(
            body,
            SEGMENT,
            IDS,
            ranks=ranks,
            watchers=[sums],
            reach=7,
            batch=BATCH,
            progress=lambda done, total, note="", ran=ran: ran.append(total),
        )
        found[f"{kind} sums"], found[f"{kind} ran"] = sums, ran[-1]
    body = dissect(tiny_model("llama"))
    found["taught"] = collect_together(
        body, SEGMENT, IDS, ranks=ranks, teach=True, batch=BATCH, entry=1
    )
    for name, ids, watchers in (("one batch", IDS[:3], []), ("counted", IDS, [Count()])):
        found[name] = collect_together(
            body, SEGMENT, ids, ranks=ranks, watchers=watchers, batch=BATCH
        )
        found[f"{name} tokens"] = [one.tokens for one in watchers]
    return found


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of one process, and of each of two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [passes(SINGLE), *in_two(passes, tmp_path_factory.mktemp("passes"))]
    finally:
        torch.set_num_threads(before)


def tensors(inputs: TailInputs) -> list[Tensor]:
    dense = inputs.dense
    found = [inputs.ids, inputs.entry, inputs.goal, inputs.dense_nll]
    found += [] if dense is None else [dense.offset, dense.expected]
    return [one for one in found if one is not None]


@pytest.mark.parametrize("name", ["llama", "gemma2", "taught", "one batch", "counted"])
def test_the_states_are_the_same_bits(name: str, held: list[dict[str, Any]]) -> None:
    alone, *pair = (found[name] for found in held)
    assert len(tensors(alone)) == (5 if name == "taught" else 3)
    for inputs in pair:
        assert inputs.reach == alone.reach
        for ours, theirs in zip(tensors(alone), tensors(inputs), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("kind", "sums"), [("llama", RefitSums), ("gemma2", GainSums)])
def test_the_sums_are_those_of_the_whole_text(
    kind: str, sums: type, held: list[dict[str, Any]]
) -> None:
    alone, *pair = (found[f"{kind} sums"] for found in held)
    assert isinstance(alone, sums)
    assert alone.tokens == IDS.numel()
    for one in pair:
        assert one.tokens == alone.tokens
        assert one.gap == pytest.approx(alone.gap, rel=1e-12)
        change = alone.change(0.01)
        assert float((one.change(0.01) - change).norm() / change.norm()) < 1e-9
        assert one.explained(change) == pytest.approx(alone.explained(change), rel=1e-9)


def test_each_runs_its_batches(held: list[dict[str, Any]]) -> None:
    assert [found["llama ran"] for found in held] == [21, 12, 9]


def test_a_watcher_that_cannot_add_up_sees_the_whole_text(held: list[dict[str, Any]]) -> None:
    assert [found["counted tokens"] for found in held] == [[IDS.numel()]] * 3


@pytest.mark.parametrize(
    ("sequences", "count", "parts"),
    [
        (40, 2, [(0, 24), (24, 40)]),
        (21, 3, [(0, 8), (8, 16), (16, 21)]),
        (5, 3, [(0, 5), (5, 5), (5, 5)]),
    ],
)
def test_parts_are_whole_batches(sequences: int, count: int, parts: list[tuple[int, int]]) -> None:
    assert spans(sequences, 8, count) == parts
