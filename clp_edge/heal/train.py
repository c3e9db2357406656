"""The training that the rungs share: AdamW at rates relative to the weights, stopped in time.

The rate of a tensor is `rate` times its RMS at the start. AdamW moves every weight by about its
rate, whatever the gradient's size, so an absolute rate is a choice of how large weights are: one
that suits RMS 0.2 makes ten times the relative change at RMS 0.02 and destroys what it should mend.
Relative rates (Adafactor, arXiv 1804.04235, has the idea) make the training the same for two models
that compute the same function with weights of different sizes; the gradient is clipped in the same
relative units.

KL on held-back text, measured on the way, stops the training once it has not fallen in two checks,
and decides which state stays: one that was checked, or the mean of the last third's weights.

Several processes (heal/ranks.py) each take their part of a step's sequences and add up the
gradients before they are clipped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clp_edge.heal.held import Judged
from clp_edge.heal.rung import Job
from clp_edge.progress import Progress
from clp_edge.records import measured

PATIENCE = 2
FLOOR = 0.1
"""A tensor of (almost) nothing but zeros is taken to be this share of its block's usual RMS."""

Loss = Callable[[Tensor], Tensor]
"""ids of sequences -> the mean loss over their tokens, with its graph"""


@dataclass(frozen=True)
class TuningPoint:
    """Held-back KL after so many steps, nats."""

    step: int
    kl: float


@dataclass(frozen=True)
class Trained:
    """How a training went; the tail was left in the state of least held-back KL."""

    points: tuple[TuningPoint, ...]
    """held-back KL along the way, step 0 included"""
    judged: Judged | None
    """the state that it was left in; None where no check gave a number"""
    step_seconds: float
    """mean of one step"""
    tokens: int
    """of one step"""
    averaged: bool
    """whether the mean of the last third's weights was the best"""

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON values: history (None: no number), step_seconds, steps, tokens, averaged."""
        return {
            "history": [{"step": one.step, "kl": measured(one.kl)} for one in self.points],
            "step_seconds": self.step_seconds,
            "steps": self.points[-1].step,
            "tokens": self.tokens,
            "averaged": self.averaged,
        }


def train(
    job: Job, loss: Loss, *, steps: int, rate: float, seed: int, progress: Progress, noun: str
) -> Trained:
    """Train `job.tail.tuned` in place for at most `steps` steps, see the module."""
    settings, tail, inputs, ranks = job.settings, job.tail, job.fit, job.ranks
    batch = max(1, min(settings.tokens // inputs.tokens, len(inputs.ids)))
    part = max(1, settings.at_once // inputs.tokens)
    # Beyond an epoch and a half it learns the text by heart: held-back KL rises (docs/LOG.md).
    steps = max(1, min(steps, int(settings.epochs * len(inputs.ids) / batch)))
    modules = [tail.trained[index] for index in tail.tuned]
    ranks.level(p for module in modules for p in module.parameters())
    sizes = {p: size for module in modules for p, size in relative_sizes(module).items()}
    parameters = list(sizes)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [{"params": [p], "lr": rate * size} for p, size in sizes.items()],
        weight_decay=settings.weight_decay,
        eps=1e-12,  # gradients of a large model's mean loss come near the usual 1e-8
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    # In float16 a gradient of a mean over tokens falls below the smallest number (6e-8).
    scaler = torch.amp.GradScaler(
        inputs.entry.device.type, init_scale=1024.0, enabled=inputs.entry.dtype == torch.float16
    )
    scaler.scale(torch.zeros((), device=inputs.entry.device))  # set up also where no loss comes
    order = _endless(len(inputs.ids), batch, torch.Generator().manual_seed(seed))
    every = max(1, math.ceil(steps / settings.checks))
    points = [TuningPoint(0, job.kl)]
    best, judged, best_state, stale, averaged = math.inf, None, None, 0, False
    mean = _Mean(parameters)
    spent = 0.0
    for step in range(steps):
        began = time.perf_counter()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, steps, min(settings.warmup, steps // 4))
        optimizer.zero_grad()
        pick = next(order)
        mine = ranks.share(pick)
        for some in mine.split(part) if len(mine) else ():
            with torch.enable_grad():
                share = loss(some) * (len(some) / len(pick))
            scaler.scale(share).backward()
        ranks.add_gradients(parameters)
        scaler.unscale_(optimizer)
        _clip(sizes, settings.clip)
        scaler.step(optimizer)  # leaves out a step whose gradients overflowed
        scaler.update()
        if step >= steps - steps // 3:
            mean.add()
        spent += time.perf_counter() - began
        progress(step + 1, steps, f"{noun}, held-back KL {points[-1].kl:.3f}")
        if (step + 1) % every == 0 or step + 1 == steps:
            came = job.judge()
            kl = came.kl
            points.append(TuningPoint(step + 1, kl))
            stale = 0 if kl < min(best, job.kl) else stale + 1
            if kl < best:
                best, judged, best_state = kl, came, tail.state()
            if stale == PATIENCE:
                break
    if mean.count > 1:
        mean.load()
        came = job.judge()
        if came.kl < best:
            judged, best_state, averaged = came, tail.state(), True
    for parameter in parameters:
        parameter.requires_grad_(False)
    if best_state is not None:
        tail.restore(best_state)
    return Trained(tuple(points), judged, spent / points[-1].step, batch * inputs.tokens, averaged)


def relative_sizes(module: nn.Module) -> dict[nn.Parameter, float]:
    """The RMS of each parameter; near zero (a bias at its start), a share of the usual one."""
    sizes = {p: float(p.detach().float().square().mean().sqrt()) for p in module.parameters()}
    usual = sorted(size for p, size in sizes.items() if p.dim() > 1)
    floor = FLOOR * usual[len(usual) // 2] if usual else 0.0
    return {p: max(size, floor) for p, size in sizes.items()}


def _clip(sizes: dict[nn.Parameter, float], limit: float) -> None:
    """Scale all gradients so that the norm of (RMS times gradient) is at most `limit`."""
    squares = [(size * p.grad.norm()).square() for p, size in sizes.items() if p.grad is not None]
    norm = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    if not math.isfinite(norm) or norm <= limit:
        return
    for parameter in sizes:
        if parameter.grad is not None:
            parameter.grad.mul_(limit / norm)


class _Mean:
    """The running mean of the weights, in host memory: a GPU has none to spare for it."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums: list[Tensor] = []
        self.count = 0

    @torch.no_grad()
    def add(self) -> None:
        self.count += 1
        if not self.sums:
            self.sums = [p.detach().to("cpu", copy=True) for p in self.parameters]
            return
        for held, parameter in zip(self.sums, self.parameters, strict=True):
            held.add_(parameter.detach().cpu() - held, alpha=1.0 / self.count)

    @torch.no_grad()
    def load(self) -> None:
        for held, parameter in zip(self.sums, self.parameters, strict=True):
            parameter.copy_(held)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    rest = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * rest))


def _endless(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of sequence ids, epoch after epoch, each in its own order."""
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]
