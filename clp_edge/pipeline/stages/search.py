"""Search: which segment goes, with its receipts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clp_edge.config import CompressConfig
from clp_edge.data import Calibration
from clp_edge.data.packing import spread
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import calibrate
from clp_edge.progress import Progress
from clp_edge.records import (
    GateRecord,
    PairRecord,
    RivalRecord,
    SearchRecord,
    Span,
    WindowRecord,
    measured,
)
from clp_edge.search import SearchResult, Trace, search
from clp_edge.search.pairs import Pair
from clp_edge.segment import Segment


@dataclass(frozen=True)
class Inputs:
    """How many blocks go, or which, and how they are looked for."""

    count: int
    given: str | None
    """the blocks that the user named, FIRST-LAST"""
    method: str
    tokens: int
    refit_tokens: int
    """to choose by what is left after each window's refit; 0: by raw KL"""
    pair: bool
    """whether the best two runs are looked for too"""
    forbidden: tuple[Segment, ...]
    """windows that a target cannot express"""


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    return Inputs(
        count=plan.count,
        given=config.cut.blocks,
        method=config.search.method,
        tokens=config.search.tokens,
        # Where nothing will be healed, what healing would leave is beside the point.
        refit_tokens=config.search.refit_tokens
        if config.search.criterion == "healed" and config.heal.rungs != "none"
        else 0,
        pair=config.search.segments == 2,
        forbidden=plan.forbidden,
    )


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> SearchRecord:
    named = Segment.parse(given.given) if given.given is not None else None
    text = calibrate.calibration(context)
    ids, fit = parts(text, given.tokens, 0 if named else given.refit_tokens)
    found = search(
        context.learner(),
        ids.to(context.ground.device),
        count=given.count,
        method="exact" if named else given.method,
        fit=fit.to(context.ground.device) if len(fit) else None,
        pair=given.pair and not named,
        seed=context.ground.seed,
        allow_ends=named is not None,
        allowed=lambda segment: segment == named if named else segment not in given.forbidden,
        progress=progress,
    )
    several = len(found.windows) > 1
    return SearchRecord(
        method="given" if named else found.method,
        reason="the blocks were named with --blocks" if named else found.reason,
        criterion=found.criterion,
        segment=_span(found.segment),
        segments=(_span(found.segment),),
        dropped=tuple(found.segment.blocks),
        kl_raw=found.kl_raw,
        kl_healed=found.kl_healed,
        windows=windows(found),
        regret=None if named else found.regret,
        stability=found.stability.wins if several else None,
        rivals=tuple(
            RivalRecord(segment.first, segment.last, wins)
            for segment, wins in found.stability.rivals
        ),
        gap=measured(found.stability.gap),
        gap_se=measured(found.stability.gap_se),
        near_tie=several and found.stability.near_tie,
        gate=_gate(found.trace) if found.trace else None,
        tokens=ids.numel(),
        raw_choice=_span(found.raw_choice) if found.criterion == "healed" else None,
        refit_tokens=fit.numel() if found.criterion == "healed" else None,
        notes=found.notes,
        pair=_pair(found.pair) if found.pair else None,
        spilled=found.spilled,
        forward_equivalents=found.forward_equivalents,
        seconds=found.seconds,
    )


STAGE: Stage[Inputs, SearchRecord] = Stage(
    "search", "Search", (calibrate.STAGE,), SearchRecord, inputs, run
)


def segment(context: Context) -> Segment:
    """The blocks that go."""
    span = context.record(STAGE).segment
    assert span is not None  # every method of today finds one run
    return Segment(span.first, span.last)


def parts(text: Calibration, tokens: int, refit_tokens: int) -> tuple[Tensor, Tensor]:
    """The sequences that windows are judged on, and those that they are refitted on.

    Both are spread over the whole of the text. Judged are held-back ones, and where these are not
    enough, some of those to fit on; none is in both.
    """
    wanted = max(1, tokens // text.length)
    select = text.select[spread(len(text.select), min(wanted, len(text.select)))]
    more = spread(len(text.fit), min(wanted - len(select), len(text.fit)))
    rest = sorted(set(range(len(text.fit))) - set(more))
    few = spread(len(rest), min(refit_tokens // text.length, len(rest)))
    return torch.cat([select, text.fit[more]]), text.fit[[rest[k] for k in few]]


def windows(found: SearchResult) -> tuple[WindowRecord, ...]:
    """Every window that was looked at, by start."""
    healed = {score.segment: score for score in found.healed}
    left = {score.segment for score in found.partial}
    scores = sorted((*found.windows, *found.partial), key=lambda score: score.segment)
    return tuple(
        WindowRecord(
            score.segment.first,
            score.segment.last,
            kl_raw=measured(score.kl),
            kl_healed=healed[score.segment].kl if score.segment in healed else None,
            kl_raw_se=measured(score.kl_se),
            kl_healed_se=measured(healed[score.segment].kl_se) if score.segment in healed else None,
            sequences=len(score.by_sequence) if score.segment in left else None,
        )
        for score in scores
    )


def _span(found: Segment) -> Span:
    return Span(found.first, found.last)


def _pair(found: Pair) -> PairRecord:
    low, high = found.segments
    return PairRecord((_span(low), _span(high)), found.kl, found.gap, measured(found.gap_se))


def _gate(outcome: Trace) -> GateRecord:
    return GateRecord(
        choice=_span(outcome.choice),
        candidates=tuple(_span(candidate) for candidate in outcome.candidates),
        paths=outcome.paths,
        losses=outcome.losses,
        forward_equivalents=outcome.forward_equivalents,
    )
