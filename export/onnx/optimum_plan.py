"""How large a folder of Optimum's will be, from the shapes of the model.

int8: products in 8 bits with a float32 scale for each output, everything else in float32; a tied
embedding is then stored twice, as a float32 table and as the 8-bit head.
"""

from __future__ import annotations

from typing import Any

from clp_edge.export.base import Target
from clp_edge.export.onnx.shapes import shapes, tokenizer_bytes

_GRAPH_BYTES_PER_BLOCK = 30_000
_GRAPH_BYTES = 40_000


def predicted(config: Any, hf: Any, target: Target, blocks: int | None) -> tuple[int, float, int]:
    """(bytes of the folder, bits a weight, matrices that stay floats)."""
    kind = target.quantization
    exact = parameters = floats = 0
    for row in shapes(config, blocks):
        parameters += row.size
        # the attention that Optimum traces answers in float32, and so does what follows it
        wide = 2 if kind == "fp16" and "o_proj" not in row.name else 4
        in_eight = row.size + 5 * row.rows  # a scale of four bytes and a zero point for each output
        tied = row.is_head and not row.is_product
        if kind != "int8" or not (row.is_product or tied):
            exact += wide * row.size
        else:
            exact += in_eight + (wide * row.size if tied else 0)
        floats += kind == "int8" and row.columns > 1 and not row.is_product
    layers = blocks or int(config.num_hidden_layers)
    size = exact + _GRAPH_BYTES + _GRAPH_BYTES_PER_BLOCK * layers + tokenizer_bytes(hf)
    return size, 8.0 * exact / parameters, floats
