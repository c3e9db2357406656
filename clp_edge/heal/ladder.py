"""The ladder: rungs one after the other, each kept only where it lowers held-back KL."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from clp_edge.heal.rung import Job, Rung
from clp_edge.progress import Progress
from clp_edge.records import RungRecord, measured
from clp_edge.registry import RUNGS


def rungs_up_to(name: str) -> tuple[Rung, ...]:
    """The rungs that `--heal NAME` means: all rows of RUNGS up to that one; none for "none".

    Raises UsageError for an unknown name.
    """
    chosen = RUNGS.choose(name)
    names = RUNGS.names()
    upto = names[: names.index(chosen) + 1] if chosen in names else ()
    return tuple(RUNGS.load(name) for name in upto)


def climb(
    rungs: Sequence[Rung], job: Job, progress: Progress
) -> tuple[tuple[RungRecord, ...], list[str]]:
    """Run these rungs on `job.tail`, which ends in the best state that was met.

    Returns: a record of each, and a note for each that was thrown away.
    """
    records: list[RungRecord] = []
    cut = job.kl
    notes: list[str] = []
    for rung in rungs:
        began = time.perf_counter()
        before = job.tail.state()
        mended = rung.mend(job, progress)
        finite = math.isfinite(mended.kl)
        kept = finite and mended.kl < job.kl
        if not kept:
            job.tail.restore(before)
            came = f"{mended.kl:.3g}" if finite else "no number"
            notes.append(
                f"the {rung.noun} was thrown away: it took KL on held-back text from {job.kl:.3g} "
                f"to {came}"
            )
        told = mended.judged if finite else None
        none = (math.nan, math.nan)
        ratio, ratio_se = none if told is None else told.ratio
        change_se = math.nan if told is None else told.change_from(job.judged)[1]
        records.append(
            RungRecord(
                name=rung.name,
                kl_before=job.kl,
                kl_after=mended.kl if finite else None,
                kept=kept,
                seconds=time.perf_counter() - began,
                facts=mended.facts,
                recovered=1.0 - mended.kl / cut if finite and cut > 0.0 else None,
                change_se=measured(change_se),
                ratio=measured(ratio),
                ratio_se=measured(ratio_se),
            )
        )
        if kept and told is not None:
            job = replace(job, judged=told, kept=(*job.kept, rung.name))
    return tuple(records), notes
