"""How large a folder of Optimum's will be, from the shapes of the model.

int8: products and the embedding in 8 bits with a float32 scale for each output or row, everything
else in float32; a tied matrix is stored once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clp_edge.export.base import Target
from clp_edge.export.onnx.shapes import shapes, tokenizer_bytes

_GRAPH_BYTES_PER_BLOCK = 30_000
_GRAPH_BYTES = 40_000


@dataclass(frozen=True)
class Predicted:
    """What the shapes say of a folder."""

    folder_bytes: int
    bits_per_weight: float
    read_bytes: int
    """Weight bytes that one token reads."""


def predicted(config: Any, hf: Any, target: Target, blocks: int | None) -> Predicted:
    """The folder of this target with so many blocks, before outliers keep products in floats."""
    kind = target.quantization
    exact = parameters = read = 0
    for row in shapes(config, blocks):
        parameters += row.size
        # the attention that Optimum traces answers in float32, and so does what follows it
        wide = 2 if kind == "fp16" and "o_proj" not in row.name else 4
        in_eight = row.size + 5 * row.rows  # a scale of four bytes and a zero point
        weighs = in_eight if kind == "int8" and row.columns > 1 else wide * row.size
        exact += weighs
        read += weighs // row.rows if row.is_lookup else weighs
    layers = blocks or int(config.num_hidden_layers)
    size = exact + _GRAPH_BYTES + _GRAPH_BYTES_PER_BLOCK * layers + tokenizer_bytes(hf)
    return Predicted(size, 8.0 * exact / parameters, read)
