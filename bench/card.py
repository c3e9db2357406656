"""What a model file costs per token, whatever its format: bytes to read, operations to make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Bytes of one stored key or value element, by llama.cpp's cache type names.
KV_ELEMENT_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}


@dataclass(frozen=True)
class AttentionBlock:
    """What one block's attention costs; `window` is a local block's span, None for a global one."""

    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    window: int | None = None

    def seen(self, depth: float) -> float:
        """How many earlier positions a token at this depth reads."""
        return depth if self.window is None else min(depth, float(self.window))

    def kv_elements(self) -> int:
        """Key and value elements stored per position."""
        return self.kv_heads * (self.key_length + self.value_length)


@dataclass(frozen=True)
class StaticCard:
    """What a model file costs per token, read off its header: nothing runs, no weight is loaded."""

    path: Path
    architecture: str
    blocks: int
    file_bytes: int
    weight_bytes_per_token: int
    block_bytes: int
    block_matmul_elements: int
    head_elements: int
    attention: tuple[AttentionBlock, ...]
    kv_element_bytes: float | None = None
    """Bytes of a cached number where the file itself decides; None where the runtime is told."""

    def bytes_per_token(self, depth: float = 0.0, kv_type: str = "f16") -> int:
        """Bytes read to decode one token with `depth` positions in the cache.

        `kv_type` counts only where the file does not decide (`kv_element_bytes`).
        """
        element = self.kv_element_bytes or KV_ELEMENT_BYTES[kv_type]
        cache = sum(block.seen(depth) * block.kv_elements() * element for block in self.attention)
        return round(self.weight_bytes_per_token + cache)

    def block_bytes_per_token(self, depth: float = 0.0, kv_type: str = "f16") -> int:
        """The share of `bytes_per_token` that lies in the blocks and their cache."""
        rest = self.weight_bytes_per_token - self.block_bytes
        return self.bytes_per_token(depth, kv_type) - rest

    def prefill_operations(self, prompt: int, depth: int = 0) -> float:
        """Multiplications and additions of a prompt of `prompt` tokens after `depth` cached."""
        matmuls = 2.0 * self.block_matmul_elements * prompt + 2.0 * self.head_elements
        positions = np.arange(depth + 1, depth + prompt + 1, dtype=np.float64)
        scores = 0.0
        for block in self.attention:
            limit = np.inf if block.window is None else float(block.window)
            seen = float(np.minimum(positions, limit).sum())
            # q·k and weights·v: two operations per element of a head, for every position seen.
            scores += 2.0 * block.heads * (block.key_length + block.value_length) * seen
        return matmuls + scores
