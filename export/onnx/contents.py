"""Read a finished graph: its cache inputs, its metadata, its matrices as they will be multiplied.

The graph is small; the weights lie beside it in one file, which is mapped and read a tensor at a
time. Matrices come back as (out, in) float32, whatever they are stored as.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from clp_edge.errors import VerificationError

_SUFFIX = re.compile(r"_Q\d+$")
_ANGLES = ("cos_cache", "sin_cache")


@dataclass(frozen=True)
class Matrix:
    """The constant side of one product."""

    name: str
    """The node it belongs to, such as "/model/layers.0/attn/qkv_proj/MatMul"."""
    values: np.ndarray
    """(out, in) float32"""
    steps: np.ndarray | None
    """(out, in) float32: the distance between two storable values; None for floats."""
    bits: int


class Graph:
    """model.onnx of a folder, and its weights on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.proto = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        except Exception as error:  # protobuf's and onnx's own classes differ between releases
            raise VerificationError(
                f"{folder.name} failed verification: no readable graph ({error})"
            ) from error
        self.initializers = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self._files: dict[str, np.memmap] = {}

    @property
    def metadata(self) -> dict[str, str]:
        """metadata_props."""
        return {entry.key: entry.value for entry in self.proto.metadata_props}

    def cache_slots(self) -> tuple[int, int]:
        """How many blocks have a key and a value going in, and coming out."""
        ins = {value.name for value in self.proto.graph.input}
        outs = {value.name for value in self.proto.graph.output}

        def blocks(names: set[str], prefix: str) -> int:
            found = {re.match(rf"{prefix}\.(\d+)\.(key|value)$", name) for name in names}
            pairs = {(match[1], match[2]) for match in found if match}
            return sum((at, "value") in pairs for at, kind in pairs if kind == "key")

        return blocks(ins, "past_key_values"), blocks(outs, "present")

    def tensor_bytes(self) -> int:
        """Bytes of all weights, the tables of rotation angles left out."""
        return sum(
            self._nbytes(tensor)
            for name, tensor in self.initializers.items()
            if not name.startswith(_ANGLES)
        )

    def float_matrices(self) -> list[str]:
        """Names of the weight matrices that are stored as floats; tables of angles are none."""
        multiplied = {node.input[1] for node in self.proto.graph.node if node.op_type == "MatMul"}
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        return [
            tensor.name
            for tensor in self.initializers.values()
            if tensor.data_type in floats
            and len(tensor.dims) == 2
            and min(tensor.dims) > 1
            and (tensor.name.endswith("weight") or tensor.name in multiplied)
        ]

    def matrices(self) -> Iterator[Matrix]:
        """Every product with a constant matrix, in the order of the graph."""
        for node in self.proto.graph.node:
            if node.op_type == "MatMul" and node.input[1] in self.initializers:
                values = self.array(node.input[1]).astype(np.float32).T
                yield Matrix(node.name, values, None, 8 * values.dtype.itemsize)
            elif node.op_type == "MatMulNBits":
                yield self._dequantized(node)

    def _dequantized(self, node: Any) -> Matrix:
        """(q - zero point) * scale, blocks of `block_size` along the input (MatMulNBits' rule)."""
        said = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
        rows, width, bits, size = said["N"], said["K"], said["bits"], said["block_size"]
        blocks = -(-width // size)
        packed = self.array(node.input[1]).reshape(rows, blocks, -1)
        stored = _unpacked(packed, bits).astype(np.float32)[..., :size]
        scales = self.array(node.input[2]).astype(np.float32).reshape(rows, blocks, 1)
        zeros: Any = float(1 << (bits - 1))
        if len(node.input) > 3 and node.input[3]:
            raw = self.array(node.input[3]).reshape(rows, -1)
            zeros = _unpacked(raw, bits).astype(np.float32)[:, :blocks, None]
        values = ((stored - zeros) * scales).reshape(rows, -1)[:, :width]
        steps = np.broadcast_to(np.abs(scales), stored.shape).reshape(rows, -1)[:, :width]
        return Matrix(_SUFFIX.sub("", node.name), values, steps, bits)

    def angle_tables(self) -> dict[str, np.ndarray]:
        """The tables of cosines and sines by their names, those in the branches of an If (LongRoPE
        has one for each) included: (positions, rotated part / 2)."""
        found = {name: self.array(name) for name in self.initializers if name.startswith(_ANGLES)}
        for node in self.proto.graph.node:
            for branch in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
                found |= {tensor.name: self._read(tensor) for tensor in branch.initializer}
                found |= {
                    constant.output[0]: self._read(constant.attribute[0].t)
                    for constant in branch.node
                    if constant.op_type == "Constant" and constant.attribute[0].HasField("t")
                }
        return {name: table for name, table in found.items() if name.startswith(_ANGLES)}

    def array(self, name: str) -> np.ndarray:
        """The numbers of an initializer, mapped from the disk where they lie there."""
        return self._read(self.initializers[name])

    def _read(self, tensor: Any) -> np.ndarray:
        name = tensor.name
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if not uses_external_data(tensor):
            return onnx.numpy_helper.to_array(tensor)
        where = ExternalDataInfo(tensor)
        if where.location not in self._files:
            path = self.folder / where.location
            if path.parent != self.folder or not path.is_file():
                raise VerificationError(f"{self.folder.name} failed verification: no {path.name}")
            self._files[where.location] = np.memmap(path, dtype=np.uint8, mode="r")
        start, count = where.offset or 0, self._nbytes(tensor)
        piece = self._files[where.location][start : start + count]
        if len(piece) < count:
            raise VerificationError(f"{self.folder.name} failed verification: {name} is cut short")
        return piece.view(kind).reshape(tuple(tensor.dims))

    @staticmethod
    def _nbytes(tensor: Any) -> int:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        return int(np.prod(tensor.dims, dtype=np.int64)) * width


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """One number a byte along the last axis; of two in a byte the low half comes first."""
    if bits == 8:
        return packed
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)
