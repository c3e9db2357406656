"""The oracle for less: hopeless windows leave after the first sequences.

Every window is looked at on one sequence, then the better half on two, then four and so on
(successive halving, after Karnin, Koren & Somekh 2013), all on the same sequences, so windows are
compared by paired differences. A window of the worse half stays where its excess over the leader
is within MARGIN of its paired standard errors; the last KEPT are judged on every sequence. With
every rung the number of sequences doubles and the number of windows halves, so each costs about
the same: 3 or 4 of them against one look at every window on every sequence.
"""

from __future__ import annotations

import math

import numpy as np

from clp_edge.progress import Progress
from clp_edge.search.cost import Size
from clp_edge.search.judge import paired
from clp_edge.search.method import Problem, Proposal
from clp_edge.segment import Segment

MARGIN = 2.0
"""Paired standard errors within which a window of the worse half stays."""
KEPT = 3
"""Windows that see every sequence, at least."""


class Halving:
    """Successive halving over hard windows."""

    def predict(self, size: Size) -> float:
        """Every rung's windows at the mean cost of a window; those that stay by a margin apart."""
        windows = size.windows
        head = size.cost.head / size.cost.forward
        each = (size.cost.windows(windows) - head) / len(windows)
        total, left, seen = 0.0, len(windows), 0
        for upto in rungs(size.sequences):
            total += each * left * (upto - seen) / size.sequences
            left, seen = max(KEPT, math.ceil(left / 2)), upto
        return 1.0 + head + total

    def propose(self, problem: Problem, progress: Progress) -> Proposal:
        """The windows that every rung left; the judge has seen all but their last sequences."""
        left = list(problem.windows())
        for upto in rungs(problem.states.sequences)[:-1]:
            left = survivors(left, problem.judge.look(left, upto, progress), keep=KEPT)
        return Proposal(tuple(left), spent=0.0, ranked=False)


def rungs(sequences: int) -> list[int]:
    """After how many sequences windows leave, and all at the end: 1, 2, 4, ...

    >>> rungs(8), rungs(5), rungs(1)
    ([1, 2, 4, 8], [1, 2, 4, 5], [1])
    """
    steps = [1]
    while steps[-1] * 2 < sequences:
        steps.append(steps[-1] * 2)
    return steps if steps[-1] == sequences else [*steps, sequences]


def survivors(
    segments: list[Segment], kl: np.ndarray, *, keep: int, margin: float = MARGIN
) -> list[Segment]:
    """The better half, `keep` at least, and who is within the margin; the best first.

    Args: kl (windows, sequences); a window whose KL is not finite leaves while others stay.
    """
    means = kl.mean(axis=1)
    finite = np.isfinite(means)
    if not finite.any():
        return segments
    order = sorted(np.flatnonzero(finite), key=lambda row: means[row])
    half = max(keep, math.ceil(len(segments) / 2))
    chosen = order[:half]
    if kl.shape[1] > 1:
        _, gaps, errors = paired(kl[finite])
        close = dict(zip(np.flatnonzero(finite), gaps <= margin * errors, strict=True))
        chosen += [row for row in order[half:] if close[row]]
    return [segments[row] for row in chosen]


HALVING = Halving()
