"""What a GGUF file of a config could not express, and what it says differently.

The facts of each architecture are rows of `clp_edge.gguf_file.family_table`; names, shapes and
changes of the tensors come from `clp_edge.gguf_file.tensors`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.gguf_file.family_table import context_length
from clp_edge.gguf_file.rope import factor_tensors, rope_problems
from clp_edge.gguf_file.tensors import (
    Tensor,
    family_of,
    listed,
    permute,
    tensors,
    to_file,
    to_model,
    unpermute,
)

__all__ = [
    "Tensor", "computed_tensors", "family_of", "listed", "notes", "permute", "problems", "tensors",
    "to_file", "to_model", "unpermute",
]  # fmt: skip


def problems(config: Any) -> list[ClpEdgeError]:
    """Everything in the config that a GGUF file could not express."""
    try:
        family = family_of(config)
    except UnsupportedModelError as error:
        return [error]
    found: list[ClpEdgeError] = list(
        rope_problems(config, family.rope_kinds, partial=family.partial_rope)
    )
    for name, allowed in family.must_be:
        if (value := getattr(config, name, None)) not in allowed:
            found.append(
                UnsupportedModelError(
                    f"{name} is {value!r}, but llama.cpp's {family.architecture} computes "
                    f"{' or '.join(map(repr, allowed))}"
                )
            )
    for fact in family.facts:
        if not fact.holds(config):
            found.append(
                UnsupportedModelError(
                    f"llama.cpp's {family.architecture} takes for granted that {fact.says}, which "
                    "is not so here",
                    fact.cure,
                )
            )
    if getattr(config, "quantization_config", None):
        found.append(
            UnsupportedModelError(
                "the checkpoint is quantized already", "give the unquantized base model"
            )
        )
    return found


def notes(config: Any) -> list[str]:
    """What the file will say differently from the config, in plain words."""
    if (length := context_length(config)) < config.max_position_embeddings:
        return [
            f"context length {length} instead of {config.max_position_embeddings}: llama.cpp "
            "ignores this model's sliding window"
        ]
    return []


def computed_tensors(config: Any) -> dict[str, np.ndarray]:
    """Tensors that are in no checkpoint: factors of the rotary embedding."""
    return factor_tensors(config)
