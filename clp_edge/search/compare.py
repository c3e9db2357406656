"""Methods side by side on one problem: what each chose, what that cost, and what the oracle says.

The judge of all is the exact KL of every window. Regret is KL(choice) / min KL - 1; a choice whose
excess is within one paired standard error over sequences is a tie. Costs are forward equivalents
at equal tokens (cost.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from clp_edge.metrics import mean_and_standard_error
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.registry import METHODS
from clp_edge.search.cost import cost_of
from clp_edge.search.driver import SearchResult, search, window_starts
from clp_edge.search.healed import healed_scores
from clp_edge.search.method import Problem
from clp_edge.search.sparing import sparing
from clp_edge.search.states import collect_states
from clp_edge.segment import Segment


@dataclass(frozen=True)
class Compared:
    """One run of one method."""

    method: str
    seed: int
    own: Segment | None
    """its own favourite before the judge; None where it leaves the choice to the judge"""
    own_regret: float | None
    segment: Segment
    """by raw KL, after the judge"""
    regret: float
    tie: bool
    """whether its excess over the oracle's window is within one paired standard error"""
    judged: int
    """windows that were judged on every sequence"""
    forward_equivalents: float
    seconds: float


@dataclass(frozen=True)
class Criteria:
    """What the two criteria choose, judged after the refit on text that neither saw."""

    raw: Segment
    healed: Segment
    gap: float
    """KL after the refit of healed's choice less that of raw's, nats; 0 where they are the same"""
    gap_se: float
    """paired over sequences; 0 where they are the same"""


@dataclass(frozen=True)
class Comparison:
    """All methods on one problem."""

    oracle: SearchResult
    """every window on every sequence"""
    rows: tuple[Compared, ...]
    criteria: Criteria | None
    """None: no text to refit on was given"""


def compare(
    body: Anatomy,
    ids: Tensor,
    *,
    count: int,
    methods: Sequence[str],
    seeds: Sequence[int],
    fit: Tensor | None = None,
    unseen: Tensor | None = None,
    allowed: Callable[[Segment], bool] = lambda segment: True,
    progress: Progress = silent,
) -> Comparison:
    """Run each method with each seed on ids (sequences, tokens), by raw KL.

    Args: fit and unseen, text to refit the windows on and to judge the two criteria's choices by.
    Raises as `search` does.
    """
    body = sparing(body)
    oracle = search(body, ids, count=count, method="exact", allowed=allowed, progress=progress)
    exact = {score.segment: np.array(score.by_sequence) for score in oracle.windows}
    rows = []
    for method in methods:
        for seed in seeds:
            # the seed is the order of the sequences, and the exact curve reads them all
            found = (
                oracle
                if METHODS.choose(method) == oracle.method
                else search(
                    body,
                    ids,
                    count=count,
                    method=method,
                    seed=seed,
                    allowed=allowed,
                    progress=progress,
                )
            )
            rows.append(_row(exact, seed, found))
    criteria = None
    if fit is not None and len(fit) and unseen is not None and len(unseen):
        criteria = _criteria(body, ids, count, fit, unseen, allowed, progress)
    return Comparison(oracle, tuple(rows), criteria)


def _row(exact: dict[Segment, np.ndarray], seed: int, found: SearchResult) -> Compared:
    best = min(exact, key=lambda segment: float(exact[segment].mean()))
    least = float(exact[best].mean())

    def regret(segment: Segment) -> float:
        return float(exact[segment].mean()) / least - 1.0 if least > 0 else 0.0

    gap, error = mean_and_standard_error(exact[found.segment] - exact[best])
    own = found.trace.choice if found.trace else None
    return Compared(
        method=found.method,
        seed=seed,
        own=own,
        own_regret=None if own is None else regret(own),
        segment=found.segment,
        regret=regret(found.segment),
        tie=found.segment == best or gap <= error,
        judged=len(found.windows),
        forward_equivalents=found.forward_equivalents,
        seconds=found.seconds,
    )


def _criteria(
    body: Anatomy,
    ids: Tensor,
    count: int,
    fit: Tensor,
    unseen: Tensor,
    allowed: Callable[[Segment], bool],
    progress: Progress,
) -> Criteria | None:
    found = search(
        body, ids, count=count, method="halving", fit=fit, allowed=allowed, progress=progress
    )
    if found.criterion != "healed":
        return None
    if found.segment == found.raw_choice:
        return Criteria(found.raw_choice, found.segment, 0.0, 0.0)
    states = collect_states(body, unseen, progress=progress)
    cost = cost_of(body, int(unseen.shape[1]))
    problem = Problem(body, states, count, window_starts(len(body), count), cost)
    both = healed_scores(problem, [found.raw_choice, found.segment], fit, progress=progress).scores
    if len(both) < 2:
        return None
    gap, error = mean_and_standard_error(
        np.array(both[found.segment].by_sequence) - np.array(both[found.raw_choice].by_sequence)
    )
    return Criteria(found.raw_choice, found.segment, gap, error)
