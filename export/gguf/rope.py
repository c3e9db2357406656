"""Rotary embeddings, read from a config of transformers 4 or 5, as llama.cpp wants them.

llama.cpp rotates pair i at position p by p * theta^(-2i/d) / factor_i. Linear scaling is a key;
Llama 3's scaling is a tensor of factors, `rope_freqs.weight`; LongRoPE's are two, one for contexts
up to the original length and one beyond. Gemma 3's local blocks have a base of their own.
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
    original_length: int = 0
    """The context of the first training: where a scaling starts from."""


def read_rope(config: Any, *, local: bool = False) -> Rope:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4.57).

    `local` asks for the blocks with a sliding window, where they rotate by another base.
    """
    both = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = getattr(config, "rope_theta", None)
    if local and (base := getattr(config, "rope_local_base_freq", None)) is not None:
        both, theta = {}, base
    kinds = ("sliding_attention", "full_attention") if local else ("full_attention",)
    both = next((both[kind] for kind in kinds if isinstance(both.get(kind), dict)), both)
    numbers = {key: value for key, value in both.items() if not isinstance(value, dict)}
    kind = numbers.pop("rope_type", None) or numbers.pop("type", None) or "default"
    numbers.pop("type", None)
    theta = numbers.pop("rope_theta", None) or theta or 10_000.0
    longest = getattr(config, "max_position_embeddings", 0)
    original = (
        numbers.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or longest
    )
    return Rope(float(theta), str(kind), numbers, int(original))


def head_dim(config: Any) -> int:
    """The width of one attention head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def rotated_part(config: Any) -> float:
    """Which share of a head is rotated."""
    stated = read_rope(config).numbers.get("partial_rotary_factor")
    return float(stated or getattr(config, "partial_rotary_factor", None) or 1.0)


def rope_dimensions(config: Any) -> int:
    """How many numbers of a head are rotated."""
    return int(head_dim(config) * rotated_part(config))


def rope_problems(
    config: Any, allowed: tuple[str, ...], *, partial: bool = False
) -> list[UnsupportedModelError]:
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
    if (local := read_rope(config, local=True)) != rope and local.kind != "default":
        found.append(
            UnsupportedModelError(
                f"rope scaling {local.kind!r} of the blocks with a window cannot be written to GGUF"
            )
        )
    if rotated_part(config) != 1.0 and not partial:
        found.append(
            UnsupportedModelError("a rotary embedding over part of the head is not known here")
        )
    if rope.kind == "longrope":
        pairs = rope_dimensions(config) // 2
        for name in ("long_factor", "short_factor"):
            if (length := len(rope.numbers.get(name) or ())) != pairs:
                found.append(
                    UnsupportedModelError(f"{name} has {length} numbers for {pairs} rotated pairs")
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
    low, high = float(numbers["low_freq_factor"]), float(numbers["high_freq_factor"])
    factor = float(numbers["factor"])
    frequency = rope.theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    turns = rope.original_length * frequency / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / (blend + (1.0 - blend) / factor)).astype(np.float32)


def factor_tensors(config: Any) -> dict[str, np.ndarray]:
    """The tensors of factors that a file needs beside its keys, float32 (rotated pairs,)."""
    rope = read_rope(config)
    if rope.kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(config)}
    if rope.kind == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(
                rope.numbers[f"{length}_factor"], dtype=np.float32
            )
            for length in ("long", "short")
        }
    return {}


def attention_gain(config: Any) -> float:
    """What LongRoPE multiplies rotated q and k by: sqrt(1 + ln(s) / ln(L)), s = context / L."""
    rope = read_rope(config)
    stated = rope.numbers.get("attention_factor")
    if stated is not None:
        return float(stated)
    scale = rope.numbers.get("factor") or config.max_position_embeddings / rope.original_length
    return math.sqrt(1.0 + math.log(scale) / math.log(rope.original_length)) if scale > 1 else 1.0
