"""Two runs in place of one: whether the same number of blocks is better taken from two places.

Greedy, each split of n blocks into k and n-k: the best window of k by halving, then, in the model
without it, the best window of n-k that does not touch it (touching ones are single runs again).
The pair and the best single run are judged on the same sequences, so their gap is paired. This
answers a question about the model; what is cut is one run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from clp_edge.metrics import mean_and_standard_error
from clp_edge.progress import Progress, silent
from clp_edge.search.halving import KEPT, rungs, survivors
from clp_edge.search.judge import Judge
from clp_edge.search.method import Problem
from clp_edge.search.states import BlockStates
from clp_edge.search.windows import WindowScore
from clp_edge.segment import Segment


@dataclass(frozen=True)
class Pair:
    """The best two runs that were found, against the best single one; KL in nats per token."""

    segments: tuple[Segment, Segment]
    """by start"""
    kl: float
    gap: float
    """KL of the pair less KL of the single run: below 0 where the pair is better"""
    gap_se: float
    """paired over sequences"""
    splits: tuple[tuple[int, int, float], ...]
    """blocks in the run that was found first and in the other, and the KL of that split's best"""
    forward_equivalents: float


@torch.no_grad()
def without(judge: Judge, gone: Segment) -> BlockStates:
    """The states of the model without `gone`; inside it they are the dense model's, to be skipped.

    Raises nothing of its own; costs the blocks after `gone` on every sequence.
    """
    body, states = judge.body, judge.states
    total = len(body)
    kept = [
        hidden if index <= gone.last else torch.empty_like(hidden)
        for index, hidden in enumerate(states.hidden)
    ]
    for start in range(0, states.sequences, judge.batch):
        rows = slice(start, min(start + judge.batch, states.sequences))
        _, arguments = body.prepare(states.ids[rows])
        hidden = states.at(gone.first, rows)
        for index in range(gone.last + 1, total):
            kept[index][rows] = hidden
            hidden = body.run_block(index, hidden, arguments)
        kept[total][rows] = hidden
    return replace(states, hidden=kept)


def best_pair(
    problem: Problem,
    single: WindowScore,
    *,
    progress: Progress = silent,
) -> Pair | None:
    """The best two separate runs of `problem.count` blocks in all, against `single`.

    Args: single, the best run judged on every sequence of the problem.
    Returns: None where the model has no room for two.
    """
    count, total = problem.count, len(problem.body)
    found: list[tuple[float, Segment, Segment, np.ndarray]] = []
    splits: list[tuple[int, int, float]] = []
    spent = 0.0
    share = problem.cost.block / problem.cost.forward
    for first_count in range(1, count):
        starts = range(problem.starts[0], problem.starts[-1] + count - first_count + 1)
        firsts = [Segment.from_start(s, first_count) for s in starts]
        judge = Judge(problem.body, problem.states, problem.cost, problem.judge.batch)
        first = _race(judge, firsts, progress)[0]
        rest = Judge(problem.body, without(judge, first), problem.cost, judge.batch, gone=first)
        spent += judge.spent + (total - first.last - 1) * share
        seconds = [
            one
            for s in range(problem.starts[0], problem.starts[-1] + first_count + 1)
            if _apart(one := Segment.from_start(s, count - first_count), first)
        ]
        if not seconds:
            continue
        ranked = _race(rest, seconds, progress)
        spent += rest.spent
        scores = rest.scores(ranked[:1])
        kl = np.array(scores[0].by_sequence)
        found.append((float(kl.mean()), first, ranked[0], kl))
        splits.append((first_count, count - first_count, float(kl.mean())))
    if not found:
        return None
    least, one, other, by_sequence = min(found, key=lambda each: each[0])
    gap, error = mean_and_standard_error(by_sequence - np.array(single.by_sequence))
    low, high = sorted((one, other))
    return Pair((low, high), least, gap, error, tuple(splits), spent)


def _apart(one: Segment, other: Segment) -> bool:
    """Whether at least one block stays between two runs."""
    return one.last + 1 < other.first or other.last + 1 < one.first


def _race(judge: Judge, windows: list[Segment], progress: Progress) -> list[Segment]:
    """These windows by KL on every sequence that they were not dropped before, the best first."""
    for upto in rungs(judge.states.sequences):
        kl = judge.look(windows, upto, progress)
        windows = survivors(windows, kl, keep=min(KEPT, len(windows)))
    return windows
