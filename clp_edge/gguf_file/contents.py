"""The weights of a GGUF file as arrays, mapped from the disk and dequantized when asked for.

The head is read by `clp_edge.gguf_file.header`, which takes a fraction of a second where the
`gguf` package takes several for a large vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants

from clp_edge.gguf_file.header import GgufHeader, TensorInfo, read_header


class Contents:
    """An open GGUF file; raises ClpEdgeError where it is truncated or none."""

    def __init__(self, path: Path) -> None:
        self.header: GgufHeader = read_header(path)
        self.tensors: dict[str, TensorInfo] = {t.name: t for t in self.header.tensors}
        self._bytes = np.memmap(path, mode="r", dtype=np.uint8)

    def type_name(self, name: str) -> str:
        """The type of a tensor, such as "Q4_K"."""
        return GGMLQuantizationType(self.tensors[name].type).name

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape in torch's order."""
        return tuple(reversed(self.tensors[name].shape))

    def rows(self, name: str) -> int:
        """How many rows of the innermost dimension it has."""
        tensor = self.tensors[name]
        return tensor.elements // tensor.shape[0]

    def values(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """The numbers in float32: (rows, width), all rows or those of the given indices."""
        tensor = self.tensors[name]
        start = self.header.data_start + tensor.offset
        stored = self._bytes[start : start + tensor.bytes].reshape(self.rows(name), -1)
        picked = np.ascontiguousarray(stored if rows is None else stored[rows])
        return quants.dequantize(picked, GGMLQuantizationType(tensor.type)).astype(np.float32)
