"""Heal: mend the cut by changing the blocks beside it, and nothing else.

A ladder whose rungs all fold into existing weights: the closed-form refit of the block before the
cut, neurons of the removed blocks in its MLP, local tuning of the blocks around the cut, then
tuning of the same blocks on KL. A rung that does not lower KL on held-back text is thrown away.
Rungs stand behind one class (rung.py) and are rows of RUNGS.

>>> healed = heal(body, Segment(13, 18), fit, select, rungs="endpoints")    # doctest: +SKIP
>>> healed.kl_cut, healed.kl                                                # doctest: +SKIP
(0.913, 0.352)
>>> healed.apply(pruned_model)                                              # doctest: +SKIP
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clp_edge.errors import ClpEdgeError
from clp_edge.heal.blocks import tuned_blocks
from clp_edge.heal.endpoints import ENDPOINTS
from clp_edge.heal.graft import GRAFT
from clp_edge.heal.held import judge_tail
from clp_edge.heal.ladder import climb, rungs_up_to
from clp_edge.heal.local import LOCAL
from clp_edge.heal.memory import BATCH, away_from, parked
from clp_edge.heal.ranks import SINGLE, Ranks
from clp_edge.heal.refit import REFIT
from clp_edge.heal.rung import Job, Mended, Rung, TuningSettings
from clp_edge.heal.shared_pass import collect_together
from clp_edge.heal.tail import State, Tail
from clp_edge.heal.train import TuningPoint
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.progress import Progress, silent
from clp_edge.records import RungRecord
from clp_edge.registry import RUNGS
from clp_edge.segment import Segment

HELD_SEQUENCES = 32
"""of the held-back text that rungs are judged on, spread evenly: a check costs as much as steps"""

__all__ = ["HealResult", "Job", "Mended", "Ranks", "Rung", "TuningSettings", "heal"]


@dataclass(frozen=True)
class HealResult:
    """The changed blocks' new weights and what each rung brought: KL on held-back text, nats."""

    method: str
    segment: Segment
    kl_cut: float
    rungs: tuple[RungRecord, ...]
    """those that were climbed, in order"""
    notes: tuple[str, ...]
    """what was left out, and why"""
    state: State
    """the changed tensors"""
    collect_seconds: float
    """the two dense passes"""
    ratio_cut: tuple[float, float] | None = None
    """perplexity of the cut model over the dense one's, and its paired standard error"""
    held_sequences: int | None = None
    """of the held-back text that was judged on"""

    @property
    def kl(self) -> float:
        """Held-back KL of the result."""
        kept = [rung.kl_after for rung in self.rungs if rung.kept and rung.kl_after is not None]
        return min([self.kl_cut, *kept])

    def rung(self, name: str) -> RungRecord | None:
        """The record of a rung; None where it was not climbed."""
        return next((rung for rung in self.rungs if rung.name == name), None)

    @property
    def kl_refit(self) -> float | None:
        """After the refit, also where it was thrown away; None: none, or no number."""
        refit = self.rung(REFIT.name)
        return refit.kl_after if refit else None

    @property
    def ridge(self) -> float | None:
        """The chosen lambda, relative to the mean diagonal; None where the refit was not kept."""
        refit = self.rung(REFIT.name)
        return refit.facts["ridge"] if refit and refit.kept else None

    @property
    def explained(self) -> float | None:
        """R² of the refit on the fitted text; None where it was not kept."""
        refit = self.rung(REFIT.name)
        return refit.facts["explained"] if refit and refit.kept else None

    @property
    def kl_tuned(self) -> float | None:
        """After the tuning; where it was thrown away, what it was before."""
        tuned = self.rung(ENDPOINTS.name)
        if tuned is None:
            return None
        return tuned.kl_after if tuned.kept else tuned.kl_before

    @property
    def history(self) -> tuple[TuningPoint, ...]:
        """Held-back KL along the tuning, without the checks that gave no number."""
        tuned = self.rung(ENDPOINTS.name)
        points = tuned.facts["history"] if tuned else ()
        return tuple(TuningPoint(**point) for point in points if point["kl"] is not None)

    @property
    def seconds(self) -> dict[str, float]:
        """What there was of collect, refit, graft, local, tune, and step, the mean of one on KL."""
        found = {"collect": self.collect_seconds}
        refit, tuned = self.rung(REFIT.name), self.rung(ENDPOINTS.name)
        for name in (GRAFT.name, LOCAL.name):
            rung = self.rung(name)
            if rung is not None:
                found[name] = rung.seconds
        if refit is not None:
            found["refit"] = refit.seconds
        if tuned is not None:
            found |= {"step": tuned.facts["step_seconds"], "tune": tuned.seconds}
        return found

    def apply(self, pruned: Any) -> None:
        """Put the new weights into a model whose segment has been removed."""
        blocks = dissect(pruned).blocks
        gone = self.segment
        with torch.no_grad():
            for index, state in self.state.items():
                place = index if index < gone.first else index - gone.count
                block = blocks[place]
                for name, value in state.items():
                    path, _, leaf = name.rpartition(".")
                    module = block.get_submodule(path)
                    old = getattr(module, leaf)
                    # A new parameter: the pruned model may share its tensors with the dense one.
                    fresh = value.to(device=old.device, dtype=old.dtype).clone()
                    setattr(module, leaf, nn.Parameter(fresh, requires_grad=False))


def heal(
    body: Anatomy,
    segment: Segment,
    fit: Tensor,
    select: Tensor,
    *,
    rungs: str = "endpoints",
    tune_blocks: str = "near",
    tuning: TuningSettings | None = None,
    batch: int = BATCH,
    seed: int = 0,
    spent: bool = False,
    ranks: Ranks = SINGLE,
    progress: Progress = silent,
) -> HealResult:
    """Mend the removal of `segment`; the dense model itself is not changed.

    While the rungs are climbed, blocks that do not run are not on the device (heal/memory.py).

    Args: fit and select (sequences, tokens) int64, calibration text that is trained on, and held
        back to choose by (an even choice of HELD_SEQUENCES); rungs, the last of RUNGS to climb, or
        "none"; tune_blocks, which blocks tuning trains, see heal/blocks.py; spent, whether the
        model is not needed again: on the CPU it loses the weights of those blocks then, for good.
        A body with `autocast` heals under it. ranks, this process among those that call this with
        the same arguments and share the work; each gets the same result (heal/ranks.py).
    Raises: UsageError for an unknown rung, ClpEdgeError where there is no text.
    """
    if len(fit) == 0 or len(select) == 0:
        raise ClpEdgeError("healing has no calibration text", "give more calibration text")
    wanted = rungs_up_to(rungs)
    tail = Tail(body, segment, tuned_blocks(tune_blocks, segment, len(body)))
    refusals = {r.name: r.refuses(body, segment) or r.passes(tail) for r in wanted}
    notes = [f"no {r.noun}: {refusals[r.name]}" for r in wanted if refusals[r.name] is not None]
    climbed = [rung for rung in wanted if refusals[rung.name] is None]

    began = time.perf_counter()
    spread = torch.linspace(0, len(select) - 1, min(HELD_SEQUENCES, len(select))).round().long()
    held = collect_together(
        body,
        segment,
        select[spread.to(select.device)],
        ranks=ranks,
        entry=tail.entry,
        teach=True,
        batch=batch,
        progress=progress,
        note="held-back text",
    )
    cut = judge_tail(held, tail, batch=batch, ranks=ranks)
    if not math.isfinite(cut.kl):
        raise ClpEdgeError(
            "the cut model's logits are not finite on the held-back text", "give --dtype float32"
        )
    records: tuple[RungRecord, ...] = ()
    collected = time.perf_counter() - began
    if climbed:
        watchers = {rung.name: rung.watch(body, segment) for rung in climbed}
        watching = {name: watcher for name, watcher in watchers.items() if watcher is not None}
        learnt = collect_together(
            body,
            segment,
            fit,
            ranks=ranks,
            watchers=watching.values(),
            entry=tail.entry,
            reach=max(rung.reach(tail) for rung in climbed),
            batch=batch,
            progress=progress,
            note="dense pass over the calibration text",
        )
        collected = time.perf_counter() - began
        settings = tuning or TuningSettings()
        job = Job(tail, learnt, held, cut, settings, seed, batch, watching, ranks=ranks)
        with parked(tail, learnt.reach, away_from(tail.device, spent=spent)):
            records, thrown = climb(climbed, job, progress)
        notes += thrown
    return HealResult(
        method=RUNGS.choose(rungs),
        segment=segment,
        kl_cut=cut.kl,
        rungs=records,
        notes=tuple(notes),
        state=tail.changes(),
        collect_seconds=collected,
        ratio_cut=cut.ratio,
        held_sequences=len(held.ids),
    )
