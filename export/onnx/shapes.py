"""The shapes of a model's weights, from its config alone: nothing is loaded."""

from __future__ import annotations

import copy
import logging
import re
from dataclasses import dataclass
from typing import Any

_BLOCK_OF = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class Shape:
    """One parameter."""

    name: str
    rows: int
    columns: int
    """1 for a vector."""
    block: int | None
    is_product: bool
    """Whether a linear layer multiplies by it."""
    is_head: bool
    """Whether it makes the logits: the head, or an embedding that is tied to it."""

    @property
    def is_lookup(self) -> bool:
        """Whether a token reads one row of it."""
        return self.columns > 1 and not self.is_product and not self.is_head

    @property
    def size(self) -> int:
        """How many numbers."""
        return self.rows * self.columns


def shapes(config: Any, blocks: int | None = None) -> list[Shape]:
    """Every parameter of the model with its first `blocks` blocks; a tied matrix once."""
    import torch
    from transformers import AutoModelForCausalLM

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    finally:
        logger.setLevel(level)
    tied = bool(config.tie_word_embeddings)
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    found = []
    for name, value in model.named_parameters():
        at = _BLOCK_OF.search(name)
        block = int(at[1]) if at else None
        if block is not None and blocks is not None and block >= blocks:
            continue
        rows = int(value.shape[0]) if value.dim() else 1
        columns = value.numel() // rows
        is_head = name == "lm_head.weight" or (tied and "embed_tokens" in name)
        found.append(Shape(name, rows, columns, block, name in linear, is_head))
    return found


def tokenizer_bytes(hf: Any) -> int:
    """The size of tokenizer.json."""
    backend = getattr(hf, "backend_tokenizer", None)
    return len(backend.to_str().encode()) if backend is not None else 0
