"""Search: which segment goes, with its receipts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from clp_edge.config import CompressConfig
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import calibrate
from clp_edge.progress import Progress
from clp_edge.records import (
    GateRecord,
    RivalRecord,
    SearchRecord,
    Span,
    WindowRecord,
    measured,
)
from clp_edge.search import Trace, search
from clp_edge.segment import Segment


@dataclass(frozen=True)
class Inputs:
    """How many blocks go, or which, and how they are looked for."""

    count: int
    given: str | None
    """the blocks that the user named, FIRST-LAST"""
    method: str
    tokens: int
    forbidden: tuple[Segment, ...]
    """windows that a target cannot express"""


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    return Inputs(
        count=plan.count,
        given=config.cut.blocks,
        method=config.search.method,
        tokens=config.search.tokens,
        forbidden=plan.forbidden,
    )


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> SearchRecord:
    named = Segment.parse(given.given) if given.given is not None else None
    text = calibrate.calibration(context)
    wanted = max(1, given.tokens // text.length)
    ids = torch.cat([text.select, text.fit])[:wanted]
    found = search(
        context.learner(),
        ids.to(context.ground.device),
        count=given.count,
        method="exact" if named else given.method,
        seed=context.ground.seed,
        allow_ends=named is not None,
        allowed=lambda segment: segment == named if named else segment not in given.forbidden,
        progress=progress,
    )
    several = len(found.windows) > 1
    return SearchRecord(
        method="given" if named else found.method,
        reason="the blocks were named with --blocks" if named else found.reason,
        criterion="raw",
        segment=_span(found.segment),
        segments=(_span(found.segment),),
        dropped=tuple(found.segment.blocks),
        kl_raw=found.kl_raw,
        kl_healed=None,
        windows=tuple(
            WindowRecord(
                window.segment.first,
                window.segment.last,
                kl_raw=window.kl,
                kl_healed=None,
                kl_raw_se=measured(window.kl_se),
            )
            for window in found.windows
        ),
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


def _span(found: Segment) -> Span:
    return Span(found.first, found.last)


def _gate(outcome: Trace) -> GateRecord:
    return GateRecord(
        choice=_span(outcome.choice),
        candidates=tuple(_span(candidate) for candidate in outcome.candidates),
        paths=outcome.paths,
        losses=outcome.losses,
        forward_equivalents=outcome.forward_equivalents,
    )
