"""Rotary embeddings: a config of transformers 4 or 5 as llama.cpp wants it, and back.

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
from clp_edge.gguf_file.contents import Contents

FACTOR_TENSORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""How the names of tensors begin that hold what frequencies are divided by, and no weights."""
_LLAMA3_CONTEXT = 8192


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


def llama3_divisors(
    pairs: int, theta: float, *, factor: float, low: float, high: float, original: int
) -> np.ndarray:
    """What Llama 3 divides each rope frequency by: (pairs,) float32; 1 for the fast ones.

    A wavelength under L/high stays, one over L/low is divided by `factor`, and between them the
    two are blended by s = (L/wavelength - low) / (high - low).
    """
    frequency = theta ** -(np.arange(pairs, dtype=np.float64) / pairs)
    turns = original * frequency / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / (blend + (1.0 - blend) / factor)).astype(np.float32)


def llama3_factors(config: Any) -> np.ndarray:
    """The factors of a config's `llama3` scaling: (head_dim / 2,) float32."""
    rope = read_rope(config)
    return llama3_divisors(
        head_dim(config) // 2,
        rope.theta,
        factor=float(rope.numbers["factor"]),
        low=float(rope.numbers["low_freq_factor"]),
        high=float(rope.numbers["high_freq_factor"]),
        original=rope.original_length,
    )


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


def scaling_of(made: Contents) -> dict[str, Any] | None:
    """The scaling that a file's keys and factors say, as transformers' `rope_scaling`, or None.

    Raises UnsupportedModelError where it is not one that can be read back.
    """
    header = made.header
    if header.architecture in ("gpt-oss", "gpt_oss"):  # transformers reads it on its own
        return None
    kind = header.own("rope.scaling.type", "none")
    factors = sorted(name for name in made.tensors if name.startswith(FACTOR_TENSORS))
    factor = header.own("rope.scaling.factor")
    original = header.own("rope.scaling.original_context_length")
    if factors == ["rope_freqs.weight"]:
        return _llama3_scaling(made)
    if factors == ["rope_factors_long.weight", "rope_factors_short.weight"] and original:
        return _longrope(made, int(original))
    if not factors and kind in ("none", "", None):
        return None
    if not factors and kind == "linear" and factor:
        return {"rope_type": "linear", "factor": float(factor)}
    if not factors and kind == "yarn" and factor and original:
        return {
            "rope_type": "yarn",
            "factor": float(factor),
            "original_max_position_embeddings": int(original),
        }
    raise UnsupportedModelError(
        f"the rope scaling of {header.path.name} ({kind}, tensors {factors or 'none'}) cannot be "
        "read from GGUF",
        "give the model's Hugging Face folder instead",
    )


def _longrope(made: Contents, original: int) -> dict[str, Any]:
    """LongRoPE's two sets of factors, and what it multiplies rotated q and k by."""
    found: dict[str, Any] = {
        f"{length}_factor": made.values(f"rope_factors_{length}.weight").reshape(-1).tolist()
        for length in ("long", "short")
    }
    if (gain := made.header.own("rope.scaling.attn_factor")) is not None:
        found["attention_factor"] = float(gain)
    return {"rope_type": "longrope", "original_max_position_embeddings": original, **found}


def _llama3_scaling(made: Contents) -> dict[str, Any]:
    """The Llama 3 scaling whose factors are those that the file stores."""
    stored = made.values("rope_freqs.weight").reshape(-1)
    theta = float(made.header.own("rope.freq_base", 10_000.0))
    for factor in sorted({8.0, 16.0, 32.0, float(stored.max())}):
        found = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        expected = llama3_divisors(
            stored.size, theta, factor=factor, low=1.0, high=4.0, original=_LLAMA3_CONTEXT
        )
        if np.allclose(stored, expected, rtol=1e-3, atol=1e-3):
            return {
                "rope_type": "llama3",
                **found,
                "original_max_position_embeddings": _LLAMA3_CONTEXT,
            }
    raise UnsupportedModelError(
        f"the rope frequencies of {made.header.path.name} are not those of a known Llama 3 scaling",
        "give the model's Hugging Face folder instead",
    )
