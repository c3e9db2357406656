"""The driver of every search: take the dense pass, ask a method, judge what it proposes.

What a method says of its own windows decides nothing: the exact KL of each does, and from it come
the regret (what the method's own favourite would have cost) and the stability.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.registry import METHODS
from clp_edge.search.cost import cost_of
from clp_edge.search.method import Method, Problem, Proposal, Trace
from clp_edge.search.states import collect_states
from clp_edge.search.windows import Stability, WindowScore, score_windows, stability
from clp_edge.segment import Segment, check_count


@dataclass(frozen=True)
class SearchResult:
    """The segment that goes, and why: all KL in nats per token."""

    method: str
    reason: str
    """why this method was used"""
    segment: Segment
    kl_raw: float
    windows: tuple[WindowScore, ...]
    """every window that was judged exactly and has finite logits, by start"""
    regret: float
    """of the method's own choice before the exact judge, among the windows judged"""
    stability: Stability
    trace: Trace | None
    forward_equivalents: float
    seconds: float


def window_starts(total: int, count: int, *, allow_ends: bool = False) -> range:
    """The starts a window may have: 1 ... L-n-1, so that both endpoints exist.

    Raises UsageError where no window of `count` blocks leaves two blocks and both ends.
    """
    check_count(count, total)
    return range(0, total - count + 1) if allow_ends else range(1, total - count)


def choose_method(name: str, problem: Problem) -> tuple[str, str]:
    """The method and the reason: `auto` takes the one that predicts to cost less.

    Raises UsageError for an unknown name.
    """
    name = METHODS.choose(name)
    if name != "auto":
        return name, "as asked for"
    predicted = {row.name: _load(row.name).predict(problem) for row in METHODS}
    said = ", ".join(f"{name} {cost:.1f}" for name, cost in predicted.items())
    return min(predicted, key=lambda name: predicted[name]), (
        f"predicted cost in forward passes: {said} ({len(problem.starts)} windows)"
    )


def _load(name: str) -> Method:
    return METHODS.load(name)


def search(
    body: Anatomy,
    ids: Tensor,
    *,
    count: int,
    method: str = "auto",
    seed: int = 0,
    batch: int = 4,
    allow_ends: bool = False,
    allowed: Callable[[Segment], bool] = lambda segment: True,
    progress: Progress = silent,
) -> SearchResult:
    """Find the run of `count` blocks whose removal costs least KL on ids (sequences, tokens).

    Args: allowed, a predicate of what the requested targets can express.
    Raises: UsageError for an impossible count or an unknown method; ClpEdgeError for a model
        whose logits are not finite or constant.
    """
    began = time.perf_counter()
    method = METHODS.choose(method)
    starts = window_starts(len(body), count, allow_ends=allow_ends)
    if not any(allowed(Segment.from_start(s, count)) for s in starts):
        raise UsageError(
            f"no run of {count} blocks can be expressed by every target asked for",
            "drop another number of blocks, or ask for another target",
        )
    cost = cost_of(body, int(ids.shape[1]))
    states = collect_states(body, ids, batch=batch, progress=progress)
    problem = Problem(body, states, count, starts, cost, seed, allowed)
    name, reason = choose_method(method, problem)
    proposal = _load(name).propose(problem, progress)
    _check(name, problem, proposal)
    judged = score_windows(body, states, proposal.candidates, batch=batch, progress=progress)
    # In float16 a model may overflow without some of its blocks: such a window is no choice.
    scores = [score for score in judged if math.isfinite(score.kl)]
    if not scores:
        raise ClpEdgeError(
            f"the logits are not finite whichever {count} blocks go", "give --dtype float32"
        )
    best = min(scores, key=lambda score: score.kl)
    own = scores[0].kl if proposal.ranked else best.kl
    return SearchResult(
        method=name,
        reason=reason,
        segment=best.segment,
        kl_raw=best.kl,
        windows=tuple(sorted(scores, key=lambda score: score.segment)),
        regret=own / best.kl - 1.0 if best.kl > 0 else 0.0,
        stability=stability(scores, seed=seed),
        trace=proposal.trace,
        forward_equivalents=proposal.spent + cost.oracle(proposal.candidates),
        seconds=time.perf_counter() - began,
    )


def _check(name: str, problem: Problem, proposal: Proposal) -> None:
    """Hold a method to its contract: what it proposes may go."""
    possible = set(problem.windows())
    wrong = [str(segment) for segment in proposal.candidates if segment not in possible]
    if wrong or not proposal.candidates:
        what = f"blocks {', '.join(wrong)}, which may not go" if wrong else "no window"
        raise ClpEdgeError(f"the search method {name} proposes {what}", "take another --search")
