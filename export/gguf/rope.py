"""Rotary embeddings, read from a config of transformers 4 or 5, as llama.cpp wants them.

llama.cpp rotates pair i at position p by p * theta^(-2i/d) / factor_i. Linear scaling is a key;
Llama 3's scaling is a tensor of factors, `rope_freqs.weight`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clp_edge.errors import UnsupportedModelError


@dataclass(frozen=True)
class Rope:
    """The base, the kind of scaling ("default", "linear", "llama3", ...) and its numbers."""

    theta: float
    kind: str
    numbers: dict[str, Any] = field(default_factory=dict)


def read_rope(config: Any) -> Rope:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4.57)."""
    both = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    numbers = dict(both)
    kind = numbers.pop("rope_type", None) or numbers.pop("type", None) or "default"
    numbers.pop("type", None)
    theta = numbers.pop("rope_theta", None) or getattr(config, "rope_theta", None) or 10_000.0
    return Rope(float(theta), str(kind), numbers)


def head_dim(config: Any) -> int:
    """The width of one attention head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def rope_problems(config: Any, allowed: tuple[str, ...]) -> list[UnsupportedModelError]:
    """What of the rotary embedding cannot be written."""
    rope = read_rope(config)
    found = []
    if rope.kind not in allowed:
        found.append(
            UnsupportedModelError(
                f"rope scaling {rope.kind!r} cannot be written to GGUF yet",
                f"known are {', '.join(allowed)}",
            )
        )
    if float(rope.numbers.get("partial_rotary_factor", 1.0)) != 1.0:
        found.append(
            UnsupportedModelError("a rotary embedding over part of the head is not known here")
        )
    return found


def llama3_factors(config: Any) -> np.ndarray:
    """What each frequency is divided by: (head_dim / 2,) float32; 1 for the fast ones.

    A wavelength under L/high stays, one over L/low is divided by `factor`, and between them the
    two are blended by s = (L/wavelength - low) / (high - low).
    """
    rope = read_rope(config)
    numbers = rope.numbers
    size = head_dim(config)
    length = numbers.get("original_max_position_embeddings", config.max_position_embeddings)
    low, high = float(numbers["low_freq_factor"]), float(numbers["high_freq_factor"])
    factor = float(numbers["factor"])
    frequency = rope.theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    turns = length * frequency / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / (blend + (1.0 - blend) / factor)).astype(np.float32)
