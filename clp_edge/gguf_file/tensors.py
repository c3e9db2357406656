"""Which tensors a GGUF file of a config holds, under which names, and how they are changed.

Names come from `gguf.get_tensor_name_map`, changes from `family_table`, shapes from the
transformers model itself (on the meta device, so nothing is allocated). One list for both ways:
`to_file` when a file is written, `to_model` when one is read.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch

from clp_edge.errors import UnsupportedModelError
from clp_edge.gguf_file.family_table import FAMILIES, Family


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: its names, its shape (as in torch), and how it is changed."""

    hf_name: str
    gguf_name: str
    shape: tuple[int, ...]
    heads: int | None = None
    """The heads whose rows are permuted."""
    added: float = 0.0
    scale: float = 1.0

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=np.int64))


def family_of(config: Any) -> Family:
    """The row of this config; UnsupportedModelError where there is none."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"GGUF export does not know model type {config.model_type!r} yet",
            f"known are {', '.join(FAMILIES)}",
        )
    return family


def tensors(config: Any) -> list[Tensor]:
    """Every tensor of the model in the order of the file, a tied head left out.

    Raises UnsupportedModelError listing the tensors that GGUF has no name for.
    """
    family = family_of(config)
    found = named_shapes(config, family.architecture)
    nameless = [hf_name for hf_name, gguf_name, _ in found if gguf_name is None]
    if nameless:
        raise UnsupportedModelError(f"GGUF has no name for {listed(nameless)}")
    return [
        _row(config, family, hf_name, gguf_name, shape)
        for hf_name, gguf_name, shape in found
        if gguf_name is not None
    ]


def named_shapes(config: Any, architecture: str) -> list[tuple[str, str | None, tuple[int, ...]]]:
    """(its name here, its GGUF name where there is one, its shape) of each tensor of the model.

    A tied head is left out. `architecture` is llama.cpp's name.
    """
    from transformers import AutoModelForCausalLM

    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    finally:
        logger.setLevel(level)
    return [
        (name, names.get_name(name, try_suffixes=(".weight", ".bias")), tuple(value.shape))
        for name, value in model.state_dict().items()
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    ]


def _row(
    config: Any, family: Family, hf_name: str, gguf_name: str, shape: tuple[int, ...]
) -> Tensor:
    heads, added, scale = None, 0.0, 1.0
    for change in family.changes:
        if change.part in hf_name:
            heads = int(getattr(config, change.heads)) if change.heads else heads
            added += change.added
            scale *= change.scale(config) if change.scale else 1.0
    return Tensor(hf_name, gguf_name, shape, heads, added, scale)


def listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def to_file(row: Tensor, values: torch.Tensor) -> torch.Tensor:
    """A model's tensor (float32) as its file holds it."""
    if row.added:
        values = values + row.added
    if row.scale != 1.0:
        values = values * row.scale
    return values if row.heads is None else permute(values, row.heads)


def to_model(row: Tensor, values: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_file`."""
    if row.heads is not None:
        values = unpermute(values, row.heads)
    return values / row.scale - row.added


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (2, d/2) to (d/2, 2): for llama.cpp's NORM rope (PITFALLS 12)."""
    rest = weight.shape[1:]
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *rest)
    return halves.transpose(1, 2).reshape(weight.shape)


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `permute`."""
    rest = weight.shape[1:]
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *rest)
    return pairs.transpose(1, 2).reshape(weight.shape)
