"""The driver of every search: take the dense pass, ask a method, judge what it proposes.

What a method says of its own windows decides nothing: the exact KL of each does, or, where the
cut will be mended, the exact KL that is left after the refit of each. From it come the regret
(what the method's own favourite would have cost) and the stability.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.metrics import mean_and_standard_error
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.registry import METHODS
from clp_edge.search.cost import Size, cost_of
from clp_edge.search.method import Method, Problem, Proposal, Trace
from clp_edge.search.pairs import Pair, best_pair
from clp_edge.search.sparing import sparing
from clp_edge.search.states import collect_states
from clp_edge.search.windows import Stability, WindowScore, stability, surely_better
from clp_edge.segment import Segment, check_count

HEALED_WINDOWS = 5
"""Of the windows judged, so many are refitted: the best by raw KL."""
ERRORS = 1.0
"""Paired standard errors by which a window must beat the raw choice after the refits, to go in its
place."""


@dataclass(frozen=True)
class SearchResult:
    """The segment that goes, and why: all KL in nats per token."""

    method: str
    reason: str
    """why this method was used"""
    criterion: Literal["raw", "healed"]
    """what the choice was made by; healed: the raw choice stays unless another window is surely
    better after the refits (ERRORS)"""
    segment: Segment
    kl_raw: float
    kl_healed: float | None
    """after the refit, on the same text; None where it was not computed"""
    windows: tuple[WindowScore, ...]
    """every window that was judged on all sequences and has finite logits, by start"""
    partial: tuple[WindowScore, ...]
    """windows that were looked at on the first sequences alone, and left; by start"""
    healed: tuple[WindowScore, ...]
    """the windows that were refitted, after the refit, or as they were where it made them worse"""
    raw_choice: Segment
    """what raw KL alone would have chosen"""
    notes: tuple[str, ...]
    """why a criterion could not be used, as far as it could not, or did not change the choice"""
    regret: float
    """of the method's own choice before the judge, among the windows judged, in the criterion"""
    stability: Stability
    """of the choice, in the criterion"""
    trace: Trace | None
    forward_equivalents: float
    seconds: float
    pair: Pair | None = None
    """the best two runs of as many blocks in all, where it was asked for and there is room"""
    spilled: bool = False
    """whether the block states had to be laid into files"""


def window_starts(total: int, count: int, *, allow_ends: bool = False) -> range:
    """The starts a window may have: 1 ... L-n-1, so that both endpoints exist.

    Raises UsageError where no window of `count` blocks leaves two blocks and both ends.
    """
    check_count(count, total)
    return range(0, total - count + 1) if allow_ends else range(1, total - count)


def choose_method(name: str, size: Size) -> tuple[str, str]:
    """The method and the reason: `auto` takes the one that predicts to cost less.

    Raises UsageError for an unknown name.
    """
    name = METHODS.choose(name)
    if name != "auto":
        return name, "as asked for"
    predicted = {row.name: _load(row.name).predict(size) for row in METHODS}
    said = ", ".join(f"{name} {cost:.1f}" for name, cost in predicted.items())
    return min(predicted, key=lambda name: predicted[name]), (
        f"predicted cost in forward passes: {said} ({len(size.starts)} windows)"
    )


def _load(name: str) -> Method:
    return METHODS.load(name)


def search(
    body: Anatomy,
    ids: Tensor,
    *,
    count: int,
    method: str = "auto",
    fit: Tensor | None = None,
    pair: bool = False,
    seed: int = 0,
    batch: int = 4,
    allow_ends: bool = False,
    allowed: Callable[[Segment], bool] = lambda segment: True,
    progress: Progress = silent,
) -> SearchResult:
    """Find the run of `count` blocks whose removal costs least KL on ids (sequences, tokens).

    Args: fit, other text (sequences, tokens) to refit the best windows on: the choice is then by
        what is left after the refit; None: by raw KL. allowed, a predicate of what the requested
        targets can express. pair, look for the best two runs too. seed, of the order in which the
        sequences are read.
    Raises: UsageError for an impossible count or an unknown method; ClpEdgeError for a model
        whose logits are not finite or constant.
    """
    began = time.perf_counter()
    body = sparing(body)
    method = METHODS.choose(method)
    starts = window_starts(len(body), count, allow_ends=allow_ends)
    if not any(allowed(Segment.from_start(s, count)) for s in starts):
        raise UsageError(
            f"no run of {count} blocks can be expressed by every target asked for",
            "drop another number of blocks, or ask for another target",
        )
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    cost = cost_of(body, int(ids.shape[1]))
    states = collect_states(body, ids[order.to(ids.device)], batch=batch, progress=progress)
    problem = Problem(body, states, count, starts, cost, seed, allowed)
    problem.judge.batch = batch
    name, reason = choose_method(method, problem.size)
    proposal = _load(name).propose(problem, progress)
    _check(name, problem, proposal)
    judged = problem.judge.scores(proposal.candidates, progress)
    # In float16 a model may overflow without some of its blocks: such a window is no choice.
    scores = [score for score in judged if math.isfinite(score.kl)]
    if not scores:
        raise ClpEdgeError(
            f"the logits are not finite whichever {count} blocks go", "give --dtype float32"
        )
    raw = min(scores, key=lambda score: score.kl)
    final, healing = scores, 0.0
    notes: tuple[str, ...] = ()
    if fit is not None and len(fit):
        final, notes, healing = _after_refit(problem, scores, fit, progress)
    least = min(final, key=lambda score: score.kl)
    healed = final is not scores
    best = surely_better(final, raw.segment, errors=ERRORS) if healed else least
    if best.segment == raw.segment != least.segment:
        notes = (*notes, _tie(least, best))
    own = next((s.kl for s in final if s.segment == scores[0].segment), None)
    if own is None or not proposal.ranked:
        own = least.kl
    two = best_pair(problem, raw, progress=progress) if pair else None
    return SearchResult(
        method=name,
        reason=reason,
        criterion="healed" if healed else "raw",
        segment=best.segment,
        kl_raw=next(score.kl for score in scores if score.segment == best.segment),
        kl_healed=best.kl if healed else None,
        windows=tuple(sorted(scores, key=lambda score: score.segment)),
        partial=tuple(problem.judge.partial(proposal.candidates)),
        healed=tuple(sorted(final, key=lambda score: score.segment)) if healed else (),
        raw_choice=raw.segment,
        notes=notes,
        regret=own / least.kl - 1.0 if least.kl > 0 else 0.0,
        stability=stability(final, chosen=best.segment, seed=seed),
        trace=proposal.trace,
        forward_equivalents=1.0
        + proposal.spent
        + problem.judge.spent
        + healing
        + (two.forward_equivalents if two else 0.0),
        seconds=time.perf_counter() - began,
        pair=two,
        spilled=states.spilled,
    )


def _after_refit(
    problem: Problem, scores: list[WindowScore], fit: Tensor, progress: Progress
) -> tuple[list[WindowScore], tuple[str, ...], float]:
    """The best windows by raw KL (and the method's own favourite), each after its refit.

    Returns: their scores (or those given, where none could be refitted), notes, forward
    equivalents.
    """
    # here: by raw KL a search runs with torch and transformers alone, as on a borrowed GPU
    from clp_edge.search.healed import healed_scores

    ranked = sorted(scores, key=lambda score: score.kl)
    wanted = ranked[:HEALED_WINDOWS]
    if scores[0] not in wanted:
        wanted[-1] = scores[0]
    found = healed_scores(problem, [score.segment for score in wanted], fit, progress=progress)
    notes = tuple(dict.fromkeys(f"no refit: {why}" for why in found.refused.values()))
    if not found.scores:
        return scores, notes, found.spent
    final = []
    for score in wanted:
        after = found.scores.get(score.segment)
        final.append(after if after is not None and after.kl < score.kl else score)
    return final, notes, found.spent


def _tie(least: WindowScore, kept: WindowScore) -> str:
    gap, error = mean_and_standard_error(np.array(kept.by_sequence) - np.array(least.by_sequence))
    within = f"{ERRORS:g} x {error:.3f}" if math.isfinite(error) else "an error that is not known"
    return (
        f"blocks {least.segment} leave {gap:.3f} nats less than {kept.segment} after the refit, "
        f"within {within}: a tie, so the choice by raw KL stays"
    )


def _check(name: str, problem: Problem, proposal: Proposal) -> None:
    """Hold a method to its contract: what it proposes may go."""
    possible = set(problem.windows())
    wrong = [str(segment) for segment in proposal.candidates if segment not in possible]
    if wrong or not proposal.candidates:
        what = f"blocks {', '.join(wrong)}, which may not go" if wrong else "no window"
        raise ClpEdgeError(f"the search method {name} proposes {what}", "take another --search")
