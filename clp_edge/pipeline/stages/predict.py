"""Predict: the KL of the best cut of several sizes, refitted, on calibration text.

What `--prune auto` goes by before anything is made: each size costs a search on part of the text
and the closed form. The smallest cut is looked at for its own sake (the KL of each block alone);
the others are bisected until the limit lies between two, and one beyond it is added, for a curve
that turns out to be gloomy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from clp_edge.config import CompressConfig
from clp_edge.evaluate.gate import QualityGate
from clp_edge.heal import heal
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.sizing import barred, counts_that_may_go
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import calibrate
from clp_edge.progress import Progress
from clp_edge.records import PredictedCut, PredictionRecord, WindowRecord
from clp_edge.search import search
from clp_edge.segment import Segment

SHARES = (0.0, 0.07, 0.13, 0.2, 0.3, 0.4, 0.5)
"""of the blocks; 0 stands for the smallest cut"""
SEARCH_SHARE = 2
"""The search here sees one token of so many that the search of a run sees."""
FIT_SEQUENCES = 24
"""of the calibration text, for the closed form; and a third as many to judge it by"""


@dataclass(frozen=True)
class Inputs:
    """Which sizes may be looked at, how, and where the limit lies."""

    counts: tuple[int, ...]
    forbidden: tuple[tuple[Segment, ...], ...]
    """of each count, windows that a target cannot express"""
    tokens: int
    method: str
    refit: bool
    allowed_kl: float


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    formats = {planned.target.format for planned in plan.targets}
    possible = counts_that_may_go(plan.config, formats)
    wanted = [round(share * plan.blocks) for share in SHARES]
    # the nearest that is possible: a family may take every fourth number only
    counts = sorted({min(possible, key=lambda one: abs(one - count)) for count in wanted})
    gate = QualityGate(config.gate.max_ppl_ratio, config.gate.max_kl, config.gate.min_retention)
    return Inputs(
        counts=tuple(counts),
        forbidden=tuple(barred(plan.config, formats, count) for count in counts),
        tokens=config.search.tokens // SEARCH_SHARE,
        method=config.search.method,
        refit=config.heal.rungs != "none",
        allowed_kl=gate.allowed_kl,
    )


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> PredictionRecord:
    began = time.perf_counter()
    text = calibrate.calibration(context)
    device = context.ground.device
    few = max(2, given.tokens // text.length)
    ids = torch.cat([text.select, text.fit])[:few].to(device)
    fit = text.fit[:FIT_SEQUENCES].to(device)
    select = text.select[: max(1, FIT_SEQUENCES // 3)].to(device)
    cuts: dict[int, PredictedCut] = {}
    alone: tuple[WindowRecord, ...] = ()

    def look(at: int) -> float:
        """The KL of the best cut of counts[at] blocks."""
        nonlocal alone
        count = given.counts[at]
        progress(len(cuts), max(5, len(cuts) + 1), f"the best cut of {count} blocks")
        found = search(
            context.body(),
            ids,
            count=count,
            method="exact" if count == 1 else given.method,
            seed=context.ground.seed,
            allowed=partial(_may_go, frozenset(given.forbidden[at])),
        )
        mended = heal(
            context.body(),
            found.segment,
            fit,
            select,
            rungs="refit" if given.refit else "none",
            seed=context.ground.seed,
        )
        kept = [rung.kl_after for rung in mended.rungs if rung.kept and rung.kl_after is not None]
        kl = kept[-1] if kept else mended.kl_cut
        segment = found.segment
        cuts[at] = PredictedCut(count, segment.first, segment.last, mended.kl_cut, kl)
        if count == 1:
            alone = tuple(
                WindowRecord(one.segment.first, one.segment.last, kl_raw=one.kl, kl_healed=None)
                for one in found.windows
            )
        return kl

    for at in bracket(len(given.counts), lambda at: look(at) <= given.allowed_kl):
        if at not in cuts:
            look(at)
    progress(1, 1)
    return PredictionRecord(
        tuple(cuts[at] for at in sorted(cuts)), alone, time.perf_counter() - began
    )


def bracket(size: int, allowed: Callable[[int], bool]) -> tuple[int, ...]:
    """Look at the first of `size` and bisect the rest, until what is allowed ends between two.

    Returns: the one beyond those two, which is worth a look as well; nothing where there is none.

    >>> seen = []
    >>> bracket(7, lambda at: seen.append(at) or at < 4), seen
    ((5,), [0, 3, 5, 4])
    >>> bracket(7, lambda at: False), bracket(7, lambda at: True)
    ((1,), ())
    """
    if not allowed(0):
        return (1,) if size > 1 else ()
    low, high = 0, size  # low is allowed, high is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return (high + 1,) if high + 1 < size else ()


def _may_go(forbidden: frozenset[Segment], segment: Segment) -> bool:
    return segment not in forbidden


STAGE: Stage[Inputs, PredictionRecord] = Stage(
    "predict", "Predict the largest cut", (calibrate.STAGE,), PredictionRecord, inputs, run
)
