"""The head of a GGUF file: its keys and its tensor list, without touching a weight.

The `gguf` package reads a key array element by element through numpy, which takes seconds for a
vocabulary; here the header is walked once with `struct`, which takes a fraction of one. Each key
keeps its raw bytes, so that `tokenizer.*` keys can be copied with their types as they are
(PITFALLS 13). Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

>>> header = read_header(Path("model.gguf"))                               # doctest: +SKIP
>>> header.value("general.architecture"), len(header.tensors)              # doctest: +SKIP
('llama', 272)
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clp_edge.errors import ClpEdgeError

MAGIC = b"GGUF"
STRING, ARRAY, UINT32 = 8, 9, 4
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
MAX_COUNT = 1 << 32  # more keys or tensors than this is a damaged file, not a large one


@dataclass(frozen=True)
class Key:
    """One metadata key: its value in Python, and type plus value as the file holds them."""

    value: Any
    raw: bytes


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the list; `shape` in GGUF order (fastest first), `offset` into the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        block, size = _type_size(self.type, self.name)
        return self.elements // block * size


@dataclass(frozen=True)
class GgufHeader:
    """All of a GGUF file but its weights."""

    path: Path
    keys: dict[str, Key]
    tensors: tuple[TensorInfo, ...]
    data_start: int

    def value(self, name: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        key = self.keys.get(name)
        return default if key is None else key.value

    @property
    def architecture(self) -> str:
        """`general.architecture`, which prefixes the model's own keys."""
        return str(self.value("general.architecture", ""))

    def own(self, name: str, default: Any = None) -> Any:
        """The value of the key ARCHITECTURE.name, or the default."""
        return self.value(f"{self.architecture}.{name}", default)


def read_header(path: Path) -> GgufHeader:
    """Read and check the head of a GGUF file; a wrong magic or a missing tail is a ClpEdgeError."""
    size = path.stat().st_size
    if size < 24:
        raise ClpEdgeError(f"{path} is no GGUF file ({size} bytes)", "give a whole .gguf file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != MAGIC:
            raise ClpEdgeError(
                f"{path} is no GGUF file (it starts with {bytes(data[:4])!r})",
                "download it again, or give another file",
            )
        try:
            header = _walk(path, data)
        except (struct.error, IndexError, UnicodeDecodeError, _Damaged) as error:
            raise ClpEdgeError(
                f"{path} is truncated or damaged: its header cannot be read ({error})",
                "download it again",
            ) from error
    end = max((header.data_start + t.offset + t.bytes for t in header.tensors), default=0)
    if end > size:
        raise ClpEdgeError(
            f"{path} is truncated: {size} bytes of the {end} that its header promises",
            "download it again",
        )
    return header


def write_keys(path: Path, keys: Iterable[tuple[str, bytes]]) -> None:
    """Write a GGUF file without tensors from (name, raw type and value) pairs."""
    items = list(keys)
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", 3, 0, len(items)))
        for name, raw in items:
            file.write(_string(name) + raw)


def write_sparse(header: GgufHeader, target: Path) -> None:
    """Write the file again without its vocabulary, whose slow reading nothing needs, and without
    its weights: it keeps its full length but is sparse, which is enough to read a configuration.
    """
    prefix = "tokenizer."
    keys = [(n, k.raw) for n, k in header.keys.items() if not n.startswith(prefix)]
    for name in ("bos", "eos", "unknown", "padding"):
        full = f"tokenizer.ggml.{name}_token_id"
        if full in header.keys:
            keys.append((full, header.keys[full].raw))
    alignment = int(header.value("general.alignment", 32))
    with target.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", 3, len(header.tensors), len(keys)))
        for name, raw in keys:
            file.write(_string(name) + raw)
        for tensor in header.tensors:
            shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            tail = struct.pack("<IQ", tensor.type, tensor.offset)
            file.write(_string(tensor.name) + shape + tail)
        start = file.tell() + -file.tell() % alignment
        file.truncate(start + header.path.stat().st_size - header.data_start)


class _Damaged(Exception):
    """The bytes do not make sense as a header."""


def _walk(path: Path, data: mmap.mmap) -> GgufHeader:
    version, tensor_count, key_count = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise _Damaged(f"GGUF version {version}, of which 2 and 3 are known")
    if max(tensor_count, key_count) > MAX_COUNT:
        raise _Damaged(f"{tensor_count} tensors and {key_count} keys")
    at = 24
    keys: dict[str, Key] = {}
    for _ in range(key_count):
        name, at = _read_string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        value, end = _read_value(data, at + 4, kind)
        keys[name] = Key(value, bytes(data[at:end]))
        at = end
    tensors = []
    for _ in range(tensor_count):
        name, at = _read_string(data, at)
        (dimensions,) = struct.unpack_from("<I", data, at)
        if dimensions > 8:
            raise _Damaged(f"tensor {name!r} has {dimensions} dimensions")
        shape = struct.unpack_from(f"<{dimensions}Q", data, at + 4)
        at += 4 + 8 * dimensions
        kind, offset = struct.unpack_from("<IQ", data, at)
        at += 12
        tensors.append(TensorInfo(name, shape, kind, offset))
    alignment = int(keys["general.alignment"].value) if "general.alignment" in keys else 32
    return GgufHeader(path, keys, tuple(tensors), at + -at % alignment)


def _read_value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    if kind == STRING:
        return _read_string(data, at)
    if kind != ARRAY:
        layout = SCALARS.get(kind)
        if layout is None:
            raise _Damaged(f"unknown value type {kind}")
        return struct.unpack_from(layout, data, at)[0], at + struct.calcsize(layout)
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in SCALARS:
        layout = f"<{count}{SCALARS[inner][1]}"
        if at + struct.calcsize(SCALARS[inner]) * count > len(data):
            raise _Damaged("an array runs past the end of the file")
        return list(struct.unpack_from(layout, data, at)), at + struct.calcsize(layout)
    read: Callable[[mmap.mmap, int], tuple[Any, int]]
    read = _read_string if inner == STRING else lambda d, a: _read_value(d, a, inner)
    values = []
    for _ in range(count):
        value, at = read(data, at)
        values.append(value)
    return values, at


def _read_string(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    start, end = at + 8, at + 8 + length
    if end > len(data):
        raise _Damaged("a string runs past the end of the file")
    return data[start:end].decode("utf-8", errors="surrogateescape"), end


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", errors="surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _type_size(kind: int, name: str) -> tuple[int, int]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise ClpEdgeError(
            f"tensor {name!r} has the unknown GGUF type {kind}",
            "update the gguf package, or download the file again",
        ) from error
    return int(block), int(size)
