"""One dense pass over the calibration text leaves all that healing needs.

For the cut [s, s+n) a pass keeps, per token: the input of block s-1 (the frozen prefix never runs
again), the teacher (a number and a vector, see kernels/head_kl.py), and, streamed into Gram sums,
what the closed-form refit of block s-1 needs. So no tuning step ever runs the prefix or the dense
model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clp_edge.kernels.head_kl import Teacher, head_kl, teacher, token_rows
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.segment import Segment

Observe = Callable[[Tensor, Tensor, Tensor], None]
"""(MLP intermediate of block s-1, h_s, h_{s+n}) of one batch, flat over tokens."""


@dataclass(frozen=True)
class TailInputs:
    """Where the tail of the cut model begins, and what it should end in."""

    ids: Tensor
    """(sequences, tokens) int64"""
    entry: Tensor
    """(sequences, tokens, hidden): the input of the first block of the tail"""
    dense: Teacher
    """of all tokens, flat"""

    @property
    def tokens(self) -> int:
        return int(self.ids.shape[1])

    def rows(self, sequences: Tensor) -> Tensor:
        """Flat token rows of these sequences."""
        return token_rows(sequences, self.tokens)


def tail_blocks(segment: Segment, total: int) -> tuple[int, ...]:
    """Ids (dense) of the blocks from the first endpoint on, without the segment."""
    return tuple(i for i in range(max(segment.first - 1, 0), total) if i not in segment.blocks)


@torch.no_grad()
def collect_tail(
    body: Anatomy,
    segment: Segment,
    ids: Tensor,
    *,
    observe: Observe | None = None,
    batch: int = 4,
    progress: Progress = silent,
    note: str = "dense pass",
) -> TailInputs:
    """Run the dense model over ids (sequences, tokens); keep the tail's input and the teacher."""
    total = len(body)
    # After a cut from block 0 on, the first block that stays reads the embeddings.
    begin = max(segment.first - 1, 0)
    entries: list[Tensor] = []
    teachers: list[Teacher] = []
    inner: list[Tensor] = []
    handle = None
    if observe is not None:
        down = body.submodule(segment.first - 1, body.family.down_projection)
        handle = down.register_forward_pre_hook(lambda _module, inputs: inner.append(inputs[0]))
    try:
        for start in range(0, len(ids), batch):
            hidden, arguments = body.prepare(ids[start : start + batch])
            at_cut = hidden
            inner.clear()
            for index in range(total):
                if index == begin:
                    entries.append(hidden)
                if index == segment.first:
                    at_cut = hidden
                if index == segment.last + 1 and observe is not None:
                    observe(inner[0].flatten(0, 1), at_cut.flatten(0, 1), hidden.flatten(0, 1))
                hidden = body.run_block(index, hidden, arguments)
            if segment.last + 1 == total and observe is not None:
                observe(inner[0].flatten(0, 1), at_cut.flatten(0, 1), hidden.flatten(0, 1))
            teachers.append(teacher(body.head, body.normed(hidden).flatten(0, 1)))
            progress(min(start + batch, len(ids)), len(ids), note)
    finally:
        if handle is not None:
            handle.remove()
    return TailInputs(
        ids=ids,
        entry=torch.cat(entries),
        dense=Teacher.cat(teachers),
    )


@torch.no_grad()
def tail_kl(
    body: Anatomy,
    inputs: TailInputs,
    run: Callable[..., Tensor],
    *,
    batch: int = 4,
    sequences: Sequence[int] | None = None,
) -> float:
    """Mean KL(dense || tail) in nats over these sequences (all by default)."""
    picks = torch.arange(len(inputs.ids)) if sequences is None else torch.tensor(list(sequences))
    values = []
    for pick in picks.split(batch):
        _, arguments = body.prepare(inputs.ids[pick])
        final = run(inputs.entry[pick], arguments)
        dense = inputs.dense.select(inputs.rows(pick).to(final.device))
        values.append(head_kl(body.head, dense, final.flatten(0, 1)))
    return float(torch.cat(values).mean())
