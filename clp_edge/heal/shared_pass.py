"""The dense pass in several processes: each runs its batches, and all get the whole of it.

The batches are those of one process, so the states are the same bits; a watcher's sums are added up
in another order. Where a watcher cannot add up, or there are fewer batches than processes, every
process runs the whole pass.

>>> spans(40, 8, 2), spans(20, 8, 2)
([(0, 24), (24, 40)], [(0, 16), (16, 20)])
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Protocol, runtime_checkable

from torch import Tensor

from clp_edge.heal.collect import TailInputs, collect_tail
from clp_edge.heal.ranks import Ranks
from clp_edge.heal.rung import Watcher
from clp_edge.kernels.head_kl import Teacher
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.segment import Segment


@runtime_checkable
class SharedWatcher(Watcher, Protocol):
    """A watcher that need not see the whole text itself."""

    def add_up(self, ranks: Ranks) -> None:
        """Each process's has been fed its part: become what one that saw all would be."""
        ...


def spans(sequences: int, batch: int, count: int) -> list[tuple[int, int]]:
    """Each process's part of the sequences, [first, end): whole batches of one process."""
    batches = -(-sequences // batch)
    more, rest = divmod(batches, count)
    ends = [min(sequences, batch * (more * n + min(n, rest))) for n in range(count + 1)]
    return list(pairwise(ends))


def collect_together(
    body: Anatomy,
    segment: Segment,
    ids: Tensor,
    *,
    ranks: Ranks,
    watchers: Collection[Watcher] = (),
    entry: int | None = None,
    reach: int | None = None,
    teach: bool = False,
    batch: int = 4,
    progress: Progress = silent,
    note: str = "dense pass",
) -> TailInputs:
    """`collect_tail` of all ids (sequences, tokens), in every process; feeds the watchers."""
    parts = spans(len(ids), batch, ranks.count)
    able = all(isinstance(watcher, SharedWatcher) for watcher in watchers)
    shared = not ranks.alone and able and all(end > first for first, end in parts)
    first, end = parts[ranks.rank] if shared else (0, len(ids))

    def observe(inner: Tensor, at_cut: Tensor, target: Tensor) -> None:
        for watcher in watchers:
            watcher.add(inner, at_cut, target)

    mine = collect_tail(
        body,
        segment,
        ids[first:end],
        entry=entry,
        reach=reach,
        teach=teach,
        observe=observe if watchers else None,
        batch=batch,
        progress=progress,
        note=note,
    )
    if not shared:
        return mine
    for watcher in watchers:
        assert isinstance(watcher, SharedWatcher)
        watcher.add_up(ranks)
    counts = [end - first for first, end in parts]
    flat = [count * mine.tokens for count in counts]

    def whole(part: Tensor | None) -> Tensor | None:
        return None if part is None else ranks.rows(part, counts)

    dense = mine.dense
    if dense is not None:
        dense = Teacher(ranks.rows(dense.offset, flat), ranks.rows(dense.expected, flat))
    return TailInputs(
        ids=ids,
        entry=ranks.rows(mine.entry, counts),
        dense=dense,
        goal=whole(mine.goal),
        reach=mine.reach,
        dense_nll=whole(mine.dense_nll),
    )
