"""Compare: every search method with several seeds on one problem, judged by the exact curve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clp_edge.config import CompressConfig
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import calibrate, search
from clp_edge.progress import Progress
from clp_edge.records import ComparedRecord, ComparisonRecord, CriteriaRecord, Span
from clp_edge.registry import METHODS
from clp_edge.search.compare import Criteria, compare
from clp_edge.segment import Segment


@dataclass(frozen=True)
class Inputs:
    """The problem, and the seeds that each method runs with."""

    problem: search.Inputs
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    return Inputs(search.inputs(config, plan), METHODS.names(), config.search.compare_seeds)


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> ComparisonRecord:
    problem = given.problem
    text = calibrate.calibration(context)
    device = context.ground.device
    ids, fit = search.parts(text, problem.tokens, problem.refit_tokens)
    found = compare(
        context.learner(),
        ids.to(device),
        count=problem.count,
        methods=given.methods,
        seeds=given.seeds,
        fit=fit.to(device),
        unseen=text.report.to(device),
        allowed=lambda segment: segment not in problem.forbidden,
        progress=progress,
    )
    return ComparisonRecord(
        count=problem.count,
        tokens=ids.numel(),
        sequence_length=int(ids.shape[1]),
        windows=search.windows(found.oracle),
        forward_equivalents=found.oracle.forward_equivalents,
        seconds=found.oracle.seconds,
        rows=tuple(
            ComparedRecord(
                method=row.method,
                seed=row.seed,
                own=_span(row.own) if row.own else None,
                own_regret=row.own_regret,
                segment=_span(row.segment),
                regret=row.regret,
                tie=row.tie,
                judged=row.judged,
                forward_equivalents=row.forward_equivalents,
                seconds=row.seconds,
            )
            for row in found.rows
        ),
        criteria=_criteria(found.criteria) if found.criteria else None,
    )


STAGE: Stage[Inputs, ComparisonRecord] = Stage(
    "compare", "Compare the methods", (calibrate.STAGE,), ComparisonRecord, inputs, run
)


def _criteria(found: Criteria) -> CriteriaRecord:
    return CriteriaRecord(_span(found.raw), _span(found.healed), found.gap, found.gap_se)


def _span(segment: Segment) -> Span:
    return Span(segment.first, segment.last)
