"""The neurons of a gated MLP, as rows and columns that can be read, moved and put in place.

Neuron j of a block adds down[:, j]·x_j to the residual stream, with

    x_j(a) = act(gate_j·(g ∘ z) + b_j) (up_j·(g ∘ z) + c_j),   z = a / rms(a),

g the gain of the norm that the MLP reads the stream a through. With g drawn into the rows, neurons
of different blocks read the same z, and can stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from clp_edge.models.families import Family

FLOOR = 0.1
"""Gains below this share of their RMS are raised to it before grafted rows are divided by them."""


@dataclass(frozen=True)
class Neurons:
    """Rows that read z: the norm's gain is within."""

    gate: Tensor
    """(neurons, hidden)"""
    up: Tensor
    gate_bias: Tensor | None
    """(neurons,)"""
    up_bias: Tensor | None
    act: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.gate)

    def pick(self, index: Tensor) -> Neurons:
        """These of them."""
        return self._each(lambda rows: rows[index])

    def to(self, device: torch.device) -> Neurons:
        """On a device."""
        return self._each(lambda rows: rows.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Neurons:
        return Neurons(
            change(self.gate),
            change(self.up),
            None if self.gate_bias is None else change(self.gate_bias),
            None if self.up_bias is None else change(self.up_bias),
            self.act,
        )

    def __call__(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """x: (tokens, neurons) float32 of z (tokens, hidden), products in `dtype`."""
        z, rows = z.to(dtype), self._each(lambda rows: rows.to(dtype))
        gated = self.act(linear(z, rows.gate, rows.gate_bias))
        return (gated * linear(z, rows.up, rows.up_bias)).float()

    @classmethod
    def cat(cls, parts: Sequence[Neurons]) -> Neurons:
        """One after the other; all with biases or none."""

        def joined(values: list[Tensor | None]) -> Tensor | None:
            there = [v for v in values if v is not None]
            return torch.cat(there) if there else None

        return cls(
            torch.cat([p.gate for p in parts]),
            torch.cat([p.up for p in parts]),
            joined([p.gate_bias for p in parts]),
            joined([p.up_bias for p in parts]),
            parts[0].act,
        )


@dataclass(frozen=True)
class GatedMlp:
    """One block's parts: tensors are the block's own memory."""

    gate: Tensor
    """(intermediate, hidden)"""
    up: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down: Tensor
    """(hidden, intermediate)"""
    down_bias: Tensor | None
    gain: Tensor
    """(hidden,) of the norm before it"""
    eps: float
    act: Callable[[Tensor], Tensor]

    @property
    def width(self) -> int:
        return int(self.down.shape[1])

    def neurons(self) -> Neurons:
        """All of them, with the gain drawn in, in float32."""
        gain = self.gain.float()
        return Neurons(
            self.gate.float() * gain,
            self.up.float() * gain,
            None if self.gate_bias is None else self.gate_bias.float(),
            None if self.up_bias is None else self.up_bias.float(),
            self.act,
        )

    def normed(self, a: Tensor) -> Tensor:
        """z: (tokens, hidden) float32."""
        a = a.float()
        return a * (a.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def held_by(self, device: torch.device) -> GatedMlp:
        """The same in a device's memory, where it may outlive the block; on it, no copy."""
        there: dict[str, Any] = {
            name: value.detach().to(device) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return GatedMlp(**there)

    @torch.no_grad()
    def graft(self, slots: Tensor, neurons: Neurons, down: Tensor) -> None:
        """Put neurons in the places `slots`, and give all their columns, `down`; in place.

        Gains near zero are raised, and what reads them lowered: the others compute as before.
        """
        gain = self.gain.float()
        least = FLOOR * gain.square().mean().sqrt()
        sign = torch.where(gain < 0, -1.0, 1.0)
        raised = sign * gain.abs().clamp_min(least)
        for mine, theirs in ((self.gate, neurons.gate), (self.up, neurons.up)):
            mine.mul_((gain / raised).to(mine.dtype))
            mine[slots] = (theirs / raised).to(mine.dtype)
        for own, other in (
            (self.gate_bias, neurons.gate_bias),
            (self.up_bias, neurons.up_bias),
        ):
            if own is not None and other is not None:
                own[slots] = other.to(own.dtype)
        self.gain.copy_(raised)
        self.down.copy_(down)


def gated_mlp(block: nn.Module, family: Family) -> GatedMlp | None:
    """The parts of a block's MLP; None where it is not of this kind."""
    if not family.mlp_norm:
        return None
    norm: Any = block.get_submodule(family.mlp_norm)
    mlp: Any = block.get_submodule(family.down_projection.rpartition(".")[0])
    down: Any = block.get_submodule(family.down_projection)
    act = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    fused = getattr(mlp, "gate_up_proj", None)
    linears = [fused] if fused is not None else [mlp.gate_proj, mlp.up_proj]
    weights = [part for one in linears for part in one.weight.detach().chunk(3 - len(linears))]
    biases: list[Tensor | None] = [None, None]
    if linears[0].bias is not None:
        biases = [part for one in linears for part in one.bias.detach().chunk(3 - len(linears))]
    if act is None:
        return None
    return GatedMlp(
        gate=weights[0],
        up=weights[1],
        gate_bias=biases[0],
        up_bias=biases[1],
        down=down.weight.detach(),
        down_bias=None if down.bias is None else down.bias.detach(),
        gain=norm.weight.detach(),
        eps=float(norm.variance_epsilon),
        act=act,
    )
