"""Heal: mend the cut by changing the blocks beside it, and nothing else.

A ladder whose rungs all fold into existing weights: the closed-form refit of the block before the
cut, then tuning of both endpoints. A rung that does not lower KL on held-back text is thrown away.

>>> healed = heal(body, Segment(13, 18), fit, select, rungs="endpoints")    # doctest: +SKIP
>>> healed.kl_cut, healed.kl                                                # doctest: +SKIP
(0.913, 0.352)
>>> healed.apply(pruned_model)                                              # doctest: +SKIP
"""

from __future__ import annotations

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clp_edge.errors import ClpEdgeError
from clp_edge.heal.collect import TailInputs, collect_tail, tail_blocks, tail_kl
from clp_edge.heal.endpoints import TuningPoint, TuningSettings, tune
from clp_edge.heal.refit import RIDGES, RefitSums
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.progress import Progress, silent
from clp_edge.segment import Segment

__all__ = ["RUNGS", "HealResult", "TuningSettings", "heal"]

RUNGS = ("none", "refit", "endpoints")
"""Each includes the one before."""


@dataclass(frozen=True)
class HealResult:
    """The endpoints' new weights and what each rung brought: KL on held-back text, nats."""

    method: str
    segment: Segment
    kl_cut: float
    kl_refit: float | None
    kl_tuned: float | None
    ridge: float | None
    """the chosen lambda, relative to the mean diagonal; None where the refit was not kept"""
    explained: float | None
    """R² of the refit on the fitted text"""
    history: tuple[TuningPoint, ...]
    notes: tuple[str, ...]
    """what was left out, and why"""
    state: dict[int, dict[str, Tensor]]
    """the changed tensors per block id of the dense model; names relative to the block"""
    seconds: dict[str, float]
    """collect, refit, tune; and step, the mean of one tuning step"""

    @property
    def kl(self) -> float:
        """Held-back KL of the result."""
        return min(k for k in (self.kl_cut, self.kl_refit, self.kl_tuned) if k is not None)

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


class _Tail:
    """The cut model from the first endpoint on; the endpoints are float32 copies."""

    def __init__(self, body: Anatomy, segment: Segment) -> None:
        self.body = body
        self.order = tail_blocks(segment, len(body))
        self.trained: dict[int, nn.Module] = {
            index: copy.deepcopy(body.blocks[index]).float()
            for index in segment.endpoints(len(body))
        }
        dtype = next(body.model.parameters()).dtype
        device = next(body.model.parameters()).device
        self.dtype = dtype
        self._autocast = (
            (lambda: torch.autocast(device.type, dtype=dtype))
            if dtype != torch.float32
            else nullcontext
        )

    def __call__(self, entry: Tensor, arguments: list[dict[str, Any]]) -> Tensor:
        hidden = entry
        with self._autocast():
            for index in self.order:
                block = self.trained.get(index, self.body.blocks[index])
                output = block(hidden, **arguments[index])
                hidden = output[0] if isinstance(output, tuple) else output
            return self.body.normed(hidden.to(self.dtype))


def heal(
    body: Anatomy,
    segment: Segment,
    fit: Tensor,
    select: Tensor,
    *,
    rungs: str = "endpoints",
    refit_sequences: int | None = None,
    tuning: TuningSettings | None = None,
    batch: int = 4,
    seed: int = 0,
    progress: Progress = silent,
) -> HealResult:
    """Mend the removal of `segment`; the dense model itself is not changed.

    Args: fit and select (sequences, tokens) int64, calibration text that is trained on, and held
        back to choose by; rungs, one of RUNGS.
    Raises: ClpEdgeError for an unknown rung, or where there is no text.
    """
    if rungs not in RUNGS:
        raise ClpEdgeError(f"unknown healing {rungs!r}", f"choose {', '.join(RUNGS)}")
    if len(fit) == 0 or len(select) == 0:
        raise ClpEdgeError("healing has no calibration text", "give more calibration text")
    notes: list[str] = []
    seconds: dict[str, float] = {}
    tail = _Tail(body, segment)
    refuses = _refit_refusal(body, segment)
    sums = RefitSums(body.residual_multiplier)
    wanted = rungs != "none" and refuses is None
    if rungs != "none" and refuses is not None:
        notes.append(refuses)

    began = time.perf_counter()
    used = fit[:1] if rungs == "none" else fit if rungs == "endpoints" else fit[:refit_sequences]
    gathered = collect_tail(
        body,
        segment,
        used,
        observe=sums.add if wanted else None,
        batch=batch,
        progress=progress,
        note="dense pass over the calibration text",
    )
    held = collect_tail(
        body, segment, select, batch=batch, progress=progress, note="held-back text"
    )
    kl_cut = tail_kl(body, held, tail, batch=batch)
    if not math.isfinite(kl_cut):
        raise ClpEdgeError(
            "the cut model's logits are not finite on the held-back text", "give --dtype float32"
        )
    seconds["collect"] = time.perf_counter() - began

    kl_refit, ridge, explained = None, None, None
    if wanted:
        began = time.perf_counter()
        kl_refit, ridge, explained = _refit(body, tail, segment, sums, held, batch, progress)
        seconds["refit"] = time.perf_counter() - began
        if kl_refit >= kl_cut:
            notes.append(
                f"the refit was thrown away: it took KL on held-back text from {kl_cut:.3f} "
                f"to {kl_refit:.3f}"
            )
            ridge = explained = None
            kl_refit = kl_refit if math.isfinite(kl_refit) else None
            _restore(tail, body, segment)

    history: tuple[TuningPoint, ...] = ()
    kl_tuned = None
    if rungs == "endpoints":
        began = time.perf_counter()
        before = min(kl_cut, kl_refit) if kl_refit is not None else kl_cut
        history, seconds["step"] = tune(
            body,
            tail.order,
            tail.trained,
            tail,
            gathered,
            held,
            tuning or TuningSettings(),
            before=before,
            seed=seed,
            progress=progress,
        )
        kl_tuned = min(point.kl for point in history)
        seconds["tune"] = time.perf_counter() - began
        if kl_tuned >= before:
            notes.append("the tuning was thrown away: it did not lower KL on held-back text")
    return HealResult(
        method=rungs,
        segment=segment,
        kl_cut=kl_cut,
        kl_refit=kl_refit,
        kl_tuned=kl_tuned,
        ridge=ridge,
        explained=explained,
        history=history,
        notes=tuple(notes),
        state=_changed(tail, body),
        seconds=seconds,
    )


def _refit_refusal(body: Anatomy, segment: Segment) -> str | None:
    """Why the refit does not apply to this cut, or None."""
    if segment.first == 0:
        return "no refit: the cut begins at block 0, and there is no block before it"
    if body.family.norm_after_mlp:
        return (
            f"no refit: in {body.family.model_type} a norm stands between the MLP's last matrix "
            "and the residual stream, so the closed form does not apply"
        )
    return None


def _refit(
    body: Anatomy,
    tail: _Tail,
    segment: Segment,
    sums: RefitSums,
    held: TailInputs,
    batch: int,
    progress: Progress,
) -> tuple[float, float, float]:
    """Fold the best refit into the tail: held-back KL, the ridge that gave it, R²."""
    down = tail.trained[segment.first - 1].get_submodule(body.family.down_projection)
    weight = down.get_parameter("weight")
    original = weight.detach().clone()
    tried: list[tuple[float, float, float, Tensor]] = []
    for number, ridge in enumerate(RIDGES):
        change = sums.change(ridge)
        with torch.no_grad():
            weight.copy_(original + change.to(original.dtype))
        kl = tail_kl(body, held, tail, batch=batch)
        kl = kl if math.isfinite(kl) else math.inf  # overflowed: worse than any other
        tried.append((kl, ridge, sums.explained(change), weight.detach().clone()))
        progress(number + 1, len(RIDGES), f"refit with lambda {ridge:g}: KL {kl:.3f}")
    kl, ridge, explained, best = min(tried, key=lambda entry: entry[0])
    with torch.no_grad():
        weight.copy_(best)
    return kl, ridge, explained


def _restore(tail: _Tail, body: Anatomy, segment: Segment) -> None:
    """Take the refit back."""
    index = segment.first - 1
    tail.trained[index].load_state_dict(body.blocks[index].state_dict())


def _changed(tail: _Tail, body: Anatomy) -> dict[int, dict[str, Tensor]]:
    """The tensors that differ from the dense model's, per block."""
    changed: dict[int, dict[str, Tensor]] = {}
    for index, module in tail.trained.items():
        dense = body.blocks[index].state_dict()
        different = {
            name: value.detach().clone()
            for name, value in module.state_dict().items()
            if not torch.equal(value, dense[name].to(value.dtype))
        }
        if different:
            changed[index] = different
    return changed
