"""Predict: the KL of the best cut of several sizes, refitted, on calibration text.

What `--prune auto` goes by before anything is made: each size costs a search on part of the text
and the closed form, seconds on a small model. The curve ends where it has left what the limits
allow far behind.
"""

from __future__ import annotations

import time
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
ENOUGH = 4.0
"""The curve ends at so many times what the limits allow."""


@dataclass(frozen=True)
class Inputs:
    """How many blocks may go, and what ends the curve."""

    counts: tuple[int, ...]
    forbidden: tuple[tuple[Segment, ...], ...]
    """of each count, windows that a target cannot express"""
    tokens: int
    refit: bool
    stop_at: float
    """nats"""


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
        refit=config.heal.rungs != "none",
        stop_at=ENOUGH * gate.allowed_kl,
    )


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> PredictionRecord:
    began = time.perf_counter()
    text = calibrate.calibration(context)
    device = context.ground.device
    few = max(2, given.tokens // text.length)
    ids = torch.cat([text.select, text.fit])[:few].to(device)
    fit = text.fit[:FIT_SEQUENCES].to(device)
    select = text.select[: max(1, FIT_SEQUENCES // 3)].to(device)
    cuts: list[PredictedCut] = []
    alone: tuple[WindowRecord, ...] = ()
    for at, (count, forbidden) in enumerate(zip(given.counts, given.forbidden, strict=True)):
        progress(at, len(given.counts), f"the best cut of {count} blocks")
        no = frozenset(forbidden)
        found = search(
            context.body(),
            ids,
            count=count,
            method="exact",
            seed=context.ground.seed,
            allowed=partial(_may_go, no),
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
        cuts.append(PredictedCut(count, found.segment.first, found.segment.last, mended.kl_cut, kl))
        if count == 1:
            alone = tuple(
                WindowRecord(one.segment.first, one.segment.last, kl_raw=one.kl, kl_healed=None)
                for one in found.windows
            )
        if kl > given.stop_at:
            break
    progress(1, 1)
    return PredictionRecord(tuple(cuts), alone, time.perf_counter() - began)


def _may_go(forbidden: frozenset[Segment], segment: Segment) -> bool:
    return segment not in forbidden


STAGE: Stage[Inputs, PredictionRecord] = Stage(
    "predict", "Predict the largest cut", (calibrate.STAGE,), PredictionRecord, inputs, run
)
