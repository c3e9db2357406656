"""Search: which contiguous run of blocks goes.

Every method stands behind one protocol and one registry: it takes the dense pass and the windows
that are allowed, and returns a `SearchResult` with its receipts. `auto` picks by predicted cost.

>>> result = search(body, ids, count=6, method="auto")                      # doctest: +SKIP
>>> result.segment                                                          # doctest: +SKIP
Segment(first=13, last=18)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.search.cost import Cost, cost_of
from clp_edge.search.gate import GateOutcome, GateSettings, descend
from clp_edge.search.states import BlockStates, collect_states
from clp_edge.search.windows import Stability, WindowScore, score_windows, stability
from clp_edge.segment import Segment

__all__ = ["METHODS", "SearchResult", "choose_method", "search", "window_starts"]


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
    gate: GateOutcome | None
    forward_equivalents: float
    seconds: float


class Method(Protocol):
    """A search method: the windows it wants judged, the best guess first, and what it spent."""

    def __call__(
        self,
        body: Anatomy,
        states: BlockStates,
        count: int,
        starts: range,
        cost: Cost,
        *,
        seed: int,
        allowed: Callable[[Segment], bool],
        progress: Progress,
    ) -> tuple[tuple[Segment, ...], GateOutcome | None, float]: ...


def _exact(
    body: Anatomy,
    states: BlockStates,
    count: int,
    starts: range,
    cost: Cost,
    *,
    seed: int,
    allowed: Callable[[Segment], bool],
    progress: Progress,
) -> tuple[tuple[Segment, ...], GateOutcome | None, float]:
    segments = (Segment.from_start(s, count) for s in starts)
    return tuple(segment for segment in segments if allowed(segment)), None, 0.0


def _gate(
    body: Anatomy,
    states: BlockStates,
    count: int,
    starts: range,
    cost: Cost,
    *,
    seed: int,
    allowed: Callable[[Segment], bool],
    progress: Progress,
) -> tuple[tuple[Segment, ...], GateOutcome | None, float]:
    outcome = descend(
        body,
        states,
        count,
        starts,
        cost,
        GateSettings(),
        seed=seed,
        allowed=allowed,
        progress=progress,
    )
    return outcome.candidates, outcome, outcome.forward_equivalents


METHODS: dict[str, Method] = {"exact": _exact, "gate": _gate}


def window_starts(total: int, count: int, *, allow_ends: bool = False) -> range:
    """The starts a window may have: 1 ... L-n-1, so that both endpoints exist.

    Raises UsageError where no window of `count` blocks leaves two blocks and both ends.
    """
    if count < 1 or total - count < 2:
        raise UsageError(
            f"{count} of {total} blocks cannot go: at least two blocks must stay",
            f"drop 1 to {max(1, total - 2)} blocks",
        )
    return range(0, total - count + 1) if allow_ends else range(1, total - count)


def choose_method(
    method: str, cost: Cost, starts: range, count: int, sequences: int, tokens: int
) -> tuple[str, str]:
    """The method and the reason: `auto` takes the one that is predicted to cost less."""
    if method != "auto":
        if method not in METHODS:
            raise UsageError(
                f"unknown search method {method!r}", f"choose auto, {', '.join(METHODS)}"
            )
        return method, "as asked for"
    settings = GateSettings()
    oracle = cost.oracle([Segment.from_start(s, count) for s in starts])
    runs = len(starts) // settings.spacing + 2
    steps = settings.steps * sum(max(2, runs >> k) for k in range(settings.rounds))
    share = max(tokens, settings.tokens) / (sequences * tokens)
    gate = (
        1.0
        + steps * share * 2.0 * cost.tail(cost.blocks // 3)
        + settings.judged * cost.tail(cost.blocks // 2)
    )
    name = "exact" if oracle <= gate else "gate"
    return name, (
        f"predicted cost in forward passes: exact {oracle:.1f}, gate {gate:.1f} "
        f"({len(starts)} windows)"
    )


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
    starts = window_starts(len(body), count, allow_ends=allow_ends)
    if not any(allowed(Segment.from_start(s, count)) for s in starts):
        raise UsageError(
            f"no run of {count} blocks can be expressed by every target asked for",
            "drop another number of blocks, or ask for another target",
        )
    cost = cost_of(body, int(ids.shape[1]))
    name, reason = choose_method(method, cost, starts, count, len(ids), int(ids.shape[1]))
    states = collect_states(body, ids, batch=batch, progress=progress)
    wanted, gate, spent = METHODS[name](
        body, states, count, starts, cost, seed=seed, allowed=allowed, progress=progress
    )
    judged = score_windows(body, states, wanted, batch=batch, progress=progress)
    # In float16 a model may overflow without some of its blocks: such a window is no choice.
    scores = [score for score in judged if math.isfinite(score.kl)]
    if not scores:
        raise ClpEdgeError(
            f"the logits are not finite whichever {count} blocks go", "give --dtype float32"
        )
    best = min(scores, key=lambda score: score.kl)
    own = scores[0].kl if gate is not None else best.kl
    return SearchResult(
        method=name,
        reason=reason,
        segment=best.segment,
        kl_raw=best.kl,
        windows=tuple(sorted(scores, key=lambda score: score.segment)),
        regret=own / best.kl - 1.0 if best.kl > 0 else 0.0,
        stability=stability(scores, seed=seed),
        gate=gate,
        forward_equivalents=spent + cost.oracle(wanted),
        seconds=time.perf_counter() - began,
    )
