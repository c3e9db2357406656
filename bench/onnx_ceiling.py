"""The ceiling of an ONNX folder: the same card as a GGUF file's, read off the graph alone.

Sizes come from the shapes and types of the initializers; the file of weights is not opened. Which
of them a token touches follows from who uses them:

    only looked up (Gather's table, the rotation's cos and sin): one row of the table
    multiplied, added, anything else: the whole, once, also where a tied table is looked up as well
    the cache: keys and values as wide as the graph's inputs `past_key_values.N` are

Of a block's window the fused attention reads just that; a plain graph masks the rest, and reads it.

>>> card = read_onnx_card(Path("model.onnx-int4"))          # doctest: +SKIP
>>> card.bytes_per_token(depth=64)  # doctest: +SKIP
115044992
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clp_edge.bench.card import AttentionBlock, StaticCard
from clp_edge.errors import ClpEdgeError, MissingDependencyError

GRAPH = "model.onnx"
_BLOCK = re.compile(r"layers\.(\d+)[./]")
_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)$")
# Inputs of which one row is read for one token.
_LOOKUPS = {
    "Gather": (0,),
    "GatherBlockQuantized": (0, 2, 3),
    "GroupQueryAttention": (7, 8),
    "RotaryEmbedding": (2, 3),
}
# Operators that hand a constant on in another form; ONNX Runtime does it once, when it loads.
_FORMS = ("Reshape", "Transpose", "Identity", "Cast", "Squeeze", "Unsqueeze")
_PRODUCTS = ("MatMul", "MatMulInteger", "MatMulNBits", "Gemm")
_ROTATIONS = ("GroupQueryAttention", "RotaryEmbedding")
_EXPERTS = ("MoE", "QMoE")


class _Graph:
    """model.onnx without its weights, and who uses what."""

    def __init__(self, path: Path) -> None:
        try:
            import onnx
        except ImportError as error:
            raise MissingDependencyError(
                "onnx is not installed", "pip install 'clp-edge[onnx]'"
            ) from error
        try:
            self.proto: Any = onnx.load(str(path), load_external_data=False)
        except Exception as error:  # protobuf's and onnx's own classes differ between releases
            raise ClpEdgeError(
                f"cannot read {path.name} of {path.parent.name} as ONNX ({error})",
                "give a complete folder",
            ) from error
        self.helper = onnx.helper
        self.types = onnx.TensorProto
        self.nodes = list(_all_nodes(self.proto.graph))
        self.tables = {tensor.name: tensor for tensor in self.proto.graph.initializer}

    def users(self) -> dict[str, list[tuple[Any, int]]]:
        """Name of an initializer -> (node, which input) of each use, seen through its forms."""
        origin = {name: name for name in self.tables}
        found: dict[str, list[tuple[Any, int]]] = {name: [] for name in self.tables}
        for node in self.nodes:
            for at, name in enumerate(node.input):
                if name not in origin:
                    continue
                if at == 0 and node.op_type in _FORMS:
                    origin[node.output[0]] = origin[name]
                else:
                    found[origin[name]].append((node, at))
        return found

    def element_bytes(self, kind: int) -> float:
        """Bytes of one number of an ONNX type."""
        if kind in (self.types.INT4, self.types.UINT4):
            return 0.5
        return float(self.helper.tensor_dtype_to_np_dtype(kind).itemsize)

    def nbytes(self, tensor: Any) -> float:
        return math.prod(tensor.dims) * self.element_bytes(tensor.data_type)


def read_onnx_card(folder: Path) -> StaticCard:
    """The card of a folder that onnxruntime-genai or Optimum wrote.

    Raises ClpEdgeError when there is no readable graph, no cache in it, or when it holds experts,
    of which a token reads only some.
    """
    graph = _Graph(folder / GRAPH)
    if any(node.op_type in _EXPERTS for node in graph.nodes):
        raise ClpEdgeError(f"{folder.name} holds experts, whose reads are not known here")
    config = _facts(folder)
    attention = _attention(graph, config)
    read_whole, in_blocks, matmul, head = 0.0, 0.0, 0, 0
    for name, users in graph.users().items():
        tensor = graph.tables[name]
        size = graph.nbytes(tensor)
        if not users:
            continue
        if tensor.dims and all(at in _LOOKUPS.get(node.op_type, ()) for node, at in users):
            size /= tensor.dims[0]
        read_whole += size
        inside = bool(_BLOCK.search(name)) or any(_BLOCK.search(node.name) for node, _ in users)
        rotation = any(
            node.op_type in ("GroupQueryAttention", "RotaryEmbedding") for node, _ in users
        )
        if inside and not rotation:  # the angles are one table for all blocks
            in_blocks += size
        elements = max((_multiplied(node, at, tensor) for node, at in users), default=0)
        if inside:
            matmul += elements
        else:
            head = max(head, elements)
    return StaticCard(
        path=folder,
        architecture=str(config.get("model_type", "unknown")),
        blocks=len(attention),
        file_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        weight_bytes_per_token=round(read_whole),
        block_bytes=round(in_blocks),
        block_matmul_elements=matmul,
        head_elements=head,
        attention=attention,
        kv_element_bytes=_cache_element_bytes(graph),
    )


def _multiplied(node: Any, at: int, tensor: Any) -> int:
    """Elements of the matrix, where this use of the tensor is a product's constant side."""
    if node.op_type not in _PRODUCTS or at != 1:
        return 0
    said = {attribute.name: attribute.i for attribute in node.attribute}
    return said["N"] * said["K"] if node.op_type == "MatMulNBits" else math.prod(tensor.dims)


def _all_nodes(graph: Any) -> Iterator[Any]:
    """The nodes in their order, those of If's branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)


def _facts(folder: Path) -> dict[str, Any]:
    """Heads and their width by the names of config.json, from there or from genai_config.json."""
    found: dict[str, Any] = {}
    try:
        if (path := folder / "config.json").is_file():
            found = dict(json.loads(path.read_text(encoding="utf-8")))
            heads = int(found["num_attention_heads"])
            found["head_dim"] = found.get("head_dim") or int(found["hidden_size"]) // heads
        elif (path := folder / "genai_config.json").is_file():
            model = json.loads(path.read_text(encoding="utf-8"))["model"]
            decoder = model["decoder"]
            found = {
                "model_type": model["type"],
                "num_attention_heads": int(decoder["num_attention_heads"]),
                "head_dim": int(decoder["head_size"]),
            }
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ClpEdgeError(
            f"{folder.name} does not say its heads ({error!r})", "is it a whole folder?"
        ) from error
    return found


def _attention(graph: _Graph, config: dict[str, Any]) -> tuple[AttentionBlock, ...]:
    """A row for each block of the cache: heads by the fused node, or by the config."""
    fused: dict[int, dict[str, int]] = {}
    for node in graph.nodes:
        match = _BLOCK.search(node.name)
        if node.op_type == "GroupQueryAttention" and match:
            fused[int(match[1])] = {attribute.name: attribute.i for attribute in node.attribute}
    widths: dict[int, dict[str, tuple[int, int]]] = {}
    for value in graph.proto.graph.input:
        if match := _PAST.search(value.name):
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            width = dims[-1] or int(config.get("head_dim", 0))
            widths.setdefault(int(match[1]), {})[match[2]] = (dims[1], width)
    found = []
    for block, slots in sorted(widths.items()):
        said = fused.get(block, {})
        kv_heads, key_length = slots.get("key", (0, 0))
        kv_heads = kv_heads or int(config.get("num_key_value_heads", 0))
        heads = said.get("num_heads") or int(config.get("num_attention_heads", 0))
        window = said.get("local_window_size", -1)
        if not (heads and kv_heads and key_length):
            raise ClpEdgeError("the graph does not say its heads", "is it a whole folder?")
        found.append(
            AttentionBlock(
                heads=heads,
                kv_heads=kv_heads,
                key_length=key_length,
                value_length=slots.get("value", (0, key_length))[1],
                window=window if window > 0 else None,
            )
        )
    if not found:
        raise ClpEdgeError("the graph has no cache of keys and values", "export it with one")
    return tuple(found)


def _cache_element_bytes(graph: _Graph) -> float:
    kinds = {
        value.type.tensor_type.elem_type
        for value in graph.proto.graph.input
        if _PAST.search(value.name)
    }
    return max(graph.element_bytes(kind) for kind in kinds)
