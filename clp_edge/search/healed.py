"""What is left after mending: the exact KL of windows after the closed-form refit of each.

Mending changes the ranking (METHODS, section 4: of the demo model's windows of 6 blocks, the one
from 3 goes from 3.5 to 0.5, the one from 11 from 2.6 to 6.6), so a window is chosen by what it
leaves. One dense pass over the text to fit on feeds the refits of all windows at once; each is
then judged, refitted, on the text of the search. A refit that makes a window worse counts as not
made, as in healing.

Memory: two Gram sums a window, in the sizes of its last matrix. Where they do not fit beside each
other, there is one pass for each group that does. What was freed before goes back to the system:
here is the peak of a search.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from clp_edge.heal.collect import TailInputs
from clp_edge.heal.held import Judged
from clp_edge.heal.refit import REFIT
from clp_edge.heal.rung import Job, Watcher
from clp_edge.heal.tail import Tail
from clp_edge.kernels.head_kl import head_kl
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.runtimes.memory import hand_back
from clp_edge.search.gated import free_bytes
from clp_edge.search.method import Problem
from clp_edge.search.windows import WindowScore
from clp_edge.segment import Segment

RIDGE_SHARE = 4
"""The ridge is chosen on the first quarter of the sequences; the refitted window is judged on all.
"""


@dataclass(frozen=True)
class Healed:
    """Windows after their refit."""

    scores: dict[Segment, WindowScore]
    """those that have a refit and finite logits after it"""
    refused: dict[Segment, str]
    """why the others have none"""
    spent: float
    """forward equivalents"""


@torch.no_grad()
def healed_scores(
    problem: Problem,
    segments: Sequence[Segment],
    fit: Tensor,
    *,
    room: int | None = None,
    progress: Progress = silent,
) -> Healed:
    """Refit each of these windows on `fit` (sequences, tokens) and judge it on the search's text.

    Args: room, bytes for Gram sums; None: half of what is free.
    """
    body, cost = problem.body, problem.cost
    refused = {one: why for one in segments if (why := REFIT.refuses(body, one)) is not None}
    possible = [one for one in segments if one not in refused]
    scores: dict[Segment, WindowScore] = {}
    spent = 0.0
    per_token = fit.numel() / problem.states.ids.numel()
    for group in _groups(body, possible, room, problem.states.device):
        hand_back()
        watchers = _watch(body, group, fit, problem.judge.batch, progress)
        deepest = max(one.last for one in group) + 1
        spent += per_token * deepest * cost.block / cost.forward
        for done, one in enumerate(group):
            hand_back()
            score, passes = _judged(problem, one, watchers.pop(one))
            spent += passes * cost.tail(one.last - one.first + max(one.first - 1, 0))
            if score is not None:
                scores[one] = score
            progress(done + 1, len(group), f"blocks {one} after their refit")
    return Healed(scores, refused, spent)


def _groups(
    body: Anatomy, segments: Sequence[Segment], room: int | None, device: torch.device
) -> Iterator[list[Segment]]:
    """As many windows at once as their Gram sums leave room for; one at least."""
    if not segments:
        return
    last = body.submodule(0, body.family.before_residual).get_parameter("weight")
    # float64; where a norm stands last, two numbers a dimension
    each = 8 * last.shape[-1] * (sum(last.shape) if last.dim() == 2 else 2)
    if room is None:
        free = free_bytes(device)
        room = each * len(segments) if free is None else free // 2
    size = max(1, room // each)
    for start in range(0, len(segments), size):
        yield list(segments[start : start + size])


NOT_YET = Judged(torch.tensor([math.inf]), torch.tensor([math.inf]))
"""The window before its refit, which is not asked for."""


def _watch(
    body: Anatomy, segments: Sequence[Segment], fit: Tensor, batch: int, progress: Progress
) -> dict[Segment, Watcher]:
    """Feed the refit of each window with one dense pass; what lies after the last is not run."""
    watchers: dict[Segment, Watcher] = {}
    for one in segments:
        watcher = REFIT.watch(body, one)
        assert watcher is not None  # the refit always watches where it applies
        watchers[one] = watcher
    inner: dict[int, Tensor] = {}

    def keep(block: int, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inner[block] = inputs[0]

    with ExitStack() as stack:
        for block in {one.first - 1 for one in segments}:
            down = body.submodule(block, body.family.before_residual)
            handle = down.register_forward_pre_hook(partial(keep, block))
            stack.callback(handle.remove)
        deepest = max(one.last for one in segments) + 1
        for start in range(0, len(fit), batch):
            ids = fit[start : start + batch]
            hidden, arguments = body.prepare(ids)
            inner.clear()
            at: dict[int, Tensor] = {}
            for index in range(deepest + 1):
                if any(index == one.first for one in segments):
                    at[index] = hidden
                for one in segments:
                    if index == one.last + 1:
                        watchers[one].add(
                            inner[one.first - 1].flatten(0, 1),
                            at[one.first].flatten(0, 1),
                            hidden.flatten(0, 1),
                        )
                if index < deepest:
                    hidden = body.run_block(index, hidden, arguments)
            progress(min(start + batch, len(fit)), len(fit), "dense pass over the text to refit on")
    return watchers


def _judged(
    problem: Problem, segment: Segment, watcher: Watcher
) -> tuple[WindowScore | None, float]:
    """The refitted window on every sequence, and in how many passes of its tail."""
    body, states = problem.body, problem.states
    tail = Tail(body, segment, casts=False)
    begin = max(segment.first - 1, 0)

    def inputs(first: int, last: int) -> TailInputs:
        rows = slice(first, last)
        return TailInputs(
            states.ids[rows],
            states.at(begin, rows),
            states.dense.select(states.rows(first, last)),
        )

    few = max(1, states.sequences // RIDGE_SHARE)
    job = Job(
        tail=tail,
        fit=inputs(0, few),
        held=inputs(0, few),
        judged=NOT_YET,
        batch=problem.judge.batch,
        watchers={REFIT.name: watcher},
    )
    tries = [0]
    mended = REFIT.mend(job, lambda done, total, note="": tries.__setitem__(0, done))
    passes = tries[0] * few / states.sequences
    if not math.isfinite(mended.kl):
        return None, passes
    by_sequence: list[float] = []
    for start in range(0, states.sequences, problem.judge.batch):
        part = inputs(start, min(start + problem.judge.batch, states.sequences))
        _, arguments = body.prepare(part.ids)
        assert part.dense is not None  # the search's text has its teacher
        kl = head_kl(body.head, part.dense, tail(part.entry, arguments).flatten(0, 1))
        by_sequence.extend(kl.view(len(part.ids), -1).mean(dim=1).tolist())
    score = WindowScore.of(segment, by_sequence)
    return (score if math.isfinite(score.kl) else None), passes + 1.0
