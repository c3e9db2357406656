"""Cutoff endpoint tuning: train the blocks beside the cut, all else frozen, on KL(dense || cut).

A step starts at the stored input of block s-1 and ends in the stored teacher, so it runs the tail
of the cut model alone: no frozen prefix, no dense model, no dense logits. AdamW, warm-up, cosine;
All steps are taken; KL on held-back text, measured on the way, decides which state is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clp_edge.heal.collect import tail_kl
from clp_edge.heal.rung import Job, Mended, Rung, TuningSettings
from clp_edge.kernels.head_kl import head_kl
from clp_edge.progress import Progress
from clp_edge.records import measured


@dataclass(frozen=True)
class TuningPoint:
    """Held-back KL after so many steps, nats."""

    step: int
    kl: float


class Endpoints(Rung):
    """Tuning of the blocks beside the cut."""

    name = "endpoints"
    noun = "tuning"

    def mend(self, job: Job, progress: Progress) -> Mended:
        """Facts: history (held-back KL by step, None: no number), step_seconds (mean of one)."""
        points, seconds = tune(job, progress)
        kl = min((p.kl for p in points[1:] if math.isfinite(p.kl)), default=math.inf)
        history = [{"step": point.step, "kl": measured(point.kl)} for point in points]
        return Mended(kl, {"history": history, "step_seconds": seconds})


ENDPOINTS = Endpoints()


def tune(job: Job, progress: Progress) -> tuple[tuple[TuningPoint, ...], float]:
    """Tune the endpoints in place; of the states that were checked they end in the one of least
    held-back KL.

    Returns: the held-back KL along the way (step 0 included), and seconds a step.
    """
    body, trained, run, fit, settings = (
        job.tail.body,
        job.tail.trained,
        job.tail,
        job.fit,
        job.settings,
    )
    parameters = [p for module in trained.values() for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    # In float16 a gradient of a mean over tokens falls below the smallest number (6e-8).
    scaler = torch.amp.GradScaler(
        fit.entry.device.type, init_scale=1024.0, enabled=fit.entry.dtype == torch.float16
    )
    batch = max(1, min(settings.tokens // fit.tokens, len(fit.ids)))
    generator = torch.Generator().manual_seed(job.seed)
    order = _endless(len(fit.ids), batch, generator)
    every = max(1, math.ceil(settings.steps / settings.checks))
    best, best_state = math.inf, None
    points = [TuningPoint(0, job.kl)]
    spent = 0.0
    for step in range(settings.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        pick = next(order)
        _, arguments = body.prepare(fit.ids[pick])
        with torch.enable_grad():
            final = run(fit.entry[pick], arguments)
            dense = fit.dense.select(fit.rows(pick).to(final.device))
            loss = head_kl(body.head, dense, final.flatten(0, 1)).mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, settings.clip)
        scaler.step(optimizer)  # leaves out a step whose gradients overflowed
        scaler.update()
        spent += time.perf_counter() - began
        progress(step + 1, settings.steps, f"tuning, KL {float(loss.detach()):.3f}")
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            kl = tail_kl(body, job.held, run, batch=batch)
            points.append(TuningPoint(step + 1, kl))
            if kl < best:
                best, best_state = kl, job.tail.state()
    for parameter in parameters:
        parameter.requires_grad_(False)
    if best_state is not None:
        job.tail.restore(best_state)
    return tuple(points), spent / max(1, settings.steps)


def _schedule(step: int, settings: TuningSettings) -> float:
    """Linear warm-up, then a cosine to a twentieth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    rest = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * rest))


def _endless(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of sequence ids, epoch after epoch, each in its own order."""
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]
