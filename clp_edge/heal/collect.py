"""One dense pass over the calibration text leaves all that healing needs.

For the cut [s, s+n) a pass keeps, per token: the input of the tail's first block (the frozen prefix
never runs again), the dense model's state behind the blocks that are trained (its goal), and,
streamed into sums, what the closed-form refit of block s-1 needs. It stops there: the head is not
run. Where the dense model's distribution is needed, `Teachers` takes it from the goal on, once per
sequence. So no tuning step ever runs the prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clp_edge.heal.fast_head import fast_teacher, is_fast
from clp_edge.heal.tail import Tail
from clp_edge.kernels.head_kl import Teacher, head_nll, teacher, token_rows
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.segment import Segment

Observe = Callable[[Tensor, Tensor, Tensor], None]
"""(what the last matrix of block s-1 reads - or, in a family with a norm behind it, what that norm
reads -, h_s, h_{s+n}) of one batch, flat over tokens."""


@dataclass(frozen=True)
class TailInputs:
    """Where the tail of the cut model begins, and what it should come to."""

    ids: Tensor
    """(sequences, tokens) int64"""
    entry: Tensor
    """(sequences, tokens, hidden): the input of the first block of the tail"""
    dense: Teacher | None = None
    """of all tokens, flat; None: `Teachers` makes it where it is wanted"""
    goal: Tensor | None = None
    """(sequences, tokens, hidden): what block `reach` reads in the dense model"""
    reach: int = 0
    dense_nll: Tensor | None = None
    """(sequences,) float64: the dense model's mean over the next tokens, nats; with `dense` only"""

    @property
    def tokens(self) -> int:
        return int(self.ids.shape[1])

    def rows(self, sequences: Tensor) -> Tensor:
        """Flat token rows of these sequences."""
        return token_rows(sequences, self.tokens)


def next_tokens(ids: Tensor) -> Tensor:
    """ids (sequences, tokens) -> flat: what follows each token; after the last, which has no
    target, its sequence's first (`sequence_nll` leaves it out)."""
    return ids.roll(-1, dims=1).flatten()


def sequence_nll(each: Tensor, tokens: int) -> Tensor:
    """Flat (sequences * tokens,) -> (sequences,) float64 on the CPU, each's last token left out."""
    return each.view(-1, tokens)[:, :-1].double().mean(-1).cpu()


@dataclass
class Teachers:
    """The dense model's distributions of a text, made when they are first asked for and kept."""

    tail: Tail
    inputs: TailInputs
    light: Tensor | None = None
    """the head's matrix in bfloat16: teach by fast products, for gradients alone"""
    _known: dict[int, Teacher] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def of(self, sequences: Tensor) -> Teacher:
        """Of all tokens of these sequences, flat."""
        inputs = self.inputs
        if inputs.dense is not None:
            return inputs.dense.select(inputs.rows(sequences).to(inputs.entry.device))
        missing = [i for i in sequences.tolist() if i not in self._known]
        if missing:
            assert inputs.goal is not None
            pick = torch.tensor(missing)
            _, arguments = self.tail.body.prepare(inputs.ids[pick])
            final = self.tail.dense_end(inputs.reach, inputs.goal[pick], arguments).flatten(0, 1)
            head = self.tail.body.head
            if self.light is None:
                made = teacher(head, final)
            else:
                made = fast_teacher(self.light, head.scale, final)
            size = inputs.tokens
            for row, index in enumerate(missing):
                self._known[index] = made.select(slice(row * size, (row + 1) * size))
        return Teacher.cat([self._known[i] for i in sequences.tolist()])


def light_head(body: Anatomy) -> Tensor | None:
    """The head's matrix for fast products, where the learning runs under autocast."""
    fits = body.autocast is not None and is_fast(body.head)
    return body.head.weight.to(body.autocast) if fits else None


@torch.no_grad()
def collect_tail(
    body: Anatomy,
    segment: Segment,
    ids: Tensor,
    *,
    entry: int | None = None,
    reach: int | None = None,
    teach: bool = False,
    observe: Observe | None = None,
    batch: int = 4,
    progress: Progress = silent,
    note: str = "dense pass",
) -> TailInputs:
    """Run the dense model over ids (sequences, tokens) up to block `reach`, s+n by default.

    Args: entry, the block whose input the tail begins with: s-1 by default; teach, go on to the
        head and keep the dense distributions in place of the goal.
    """
    after = segment.last + 1
    reach = after if reach is None else max(reach, after)
    total = len(body)
    # After a cut from block 0 on, the first block that stays reads the embeddings.
    begin = max(segment.first - 1, 0) if entry is None else entry
    entries: list[Tensor] = []
    goals: list[Tensor] = []
    teachers: list[Teacher] = []
    nll: list[Tensor] = []
    inner: list[Tensor] = []
    handle = None
    if observe is not None:
        path = body.family.before_residual
        handle = body.submodule(segment.first - 1, path).register_forward_pre_hook(
            lambda _module, inputs: inner.append(inputs[0])
        )
    try:
        for start in range(0, len(ids), batch):
            hidden, arguments = body.prepare(ids[start : start + batch])
            at_cut = hidden
            inner.clear()
            for index in range((total if teach else reach) + 1):
                if index == begin:
                    entries.append(hidden)
                if index == segment.first:
                    at_cut = hidden
                if index == after and observe is not None:
                    observe(inner[0].flatten(0, 1), at_cut.flatten(0, 1), hidden.flatten(0, 1))
                if index == reach and not teach:
                    goals.append(hidden)
                    break
                if index == total:
                    final = body.normed(hidden).flatten(0, 1)
                    teachers.append(teacher(body.head, final))
                    targets = next_tokens(ids[start : start + batch]).to(final.device)
                    each = head_nll(body.head, teachers[-1], final, targets)
                    nll.append(sequence_nll(each, ids.shape[1]))
                    break
                hidden = body.run_block(index, hidden, arguments)
            progress(min(start + batch, len(ids)), len(ids), note)
    finally:
        if handle is not None:
            handle.remove()
    return TailInputs(
        ids=ids,
        entry=torch.cat(entries),
        dense=Teacher.cat(teachers) if teach else None,
        goal=None if teach else torch.cat(goals),
        reach=total if teach else reach,
        dense_nll=torch.cat(nll) if teach else None,
    )
