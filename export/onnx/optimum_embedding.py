"""The embedding of an 8-bit graph by Optimum: looked up in 8 bits too.

ORTQuantizer leaves the table in float32, four bytes a number beside a head of one. Standard
operators can look it up in 8 bits: the row, the row's scale and zero point are gathered, and

    row = (stored - zero point) * scale

Where the table is tied to a head in 8 bits, the head's own numbers are gathered (it is stored as
(hidden, vocabulary), so along axis 1), and the table costs nothing. Otherwise a table of its own
gets a scale for each row. Only `child.py` imports this module to write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_STEM = "/model/embed_tokens/"
_HEAD = "/lm_head/MatMul_quant"


def quantize_embedding(path: Path, *, tied: bool, external: bool) -> bool:
    """Rewrite the graph in place; whether it had a float table that is looked up by input_ids.

    `tied`: the table and the head are one matrix of the model. `external`: the weights lie beside.
    """
    model: Any = onnx.load(str(path))
    graph = model.graph
    tables = {tensor.name: tensor for tensor in graph.initializer}
    look = next(
        (
            n
            for n in graph.node
            if n.op_type == "Gather"
            and n.input[0] in tables
            and n.input[1] == "input_ids"
            and tables[n.input[0]].data_type == TensorProto.FLOAT
        ),
        None,
    )
    if look is None:
        return False
    table, answer = look.input[0], look.output[0]
    head = next((n for n in graph.node if n.name == _HEAD and n.input[1] in tables), None)
    if tied and head is not None:
        base = head.input[1].removesuffix("_quantized")
        names = (head.input[1], f"{base}_scale", head.input[3])
        added: list[Any] = []
        axis = 1
    else:
        added = _stored(numpy_helper.to_array(tables[table]))
        names = (added[0].name, added[1].name, added[2].name)
        axis = 0
    at = list(graph.node).index(look)
    graph.node.remove(look)
    for node in reversed(_nodes(names, axis, answer)):
        graph.node.insert(at, node)
    if not any(table in node.input for node in graph.node):
        graph.initializer.remove(tables[table])
    graph.initializer.extend(added)
    for old in path.parent.glob(f"{path.name}?data"):
        old.unlink()
    path.unlink()
    onnx.save(
        model,
        str(path),
        save_as_external_data=external,
        location=f"{path.name}.data",
        size_threshold=1024,
    )
    return True


def _stored(values: np.ndarray) -> list[Any]:
    """A table of its own: (rows, hidden) int8, a float32 scale and a zero point of 0 for each."""
    steps = np.maximum(np.abs(values).max(1), 1e-30).astype(np.float32) / np.float32(127.0)
    numbers = np.clip(np.rint(values / steps[:, None]), -127, 127).astype(np.int8)
    parts = (numbers, steps, np.zeros(len(steps), dtype=np.int8))
    names = ("quantized", "scale", "zero_point")
    return [
        numpy_helper.from_array(part, f"model.embed_tokens.weight_{name}")
        for part, name in zip(parts, names, strict=True)
    ]


def _nodes(names: tuple[str, str, str], axis: int, answer: str) -> list[Any]:
    """The nodes that look rows up: ids (batch, tokens) -> (batch, tokens, hidden) float32."""
    made = []

    def node(kind: str, inputs: list[str], name: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{_STEM}{name}/in_eight_bits"
        made.append(helper.make_node(kind, inputs, [output], f"{_STEM}{name}", **attributes))
        return output

    stored, scale, zero = names
    row = node("Gather", [stored, "input_ids"], "Gather", axis=axis)
    if axis == 1:  # (hidden, batch, tokens)
        row = node("Transpose", [row], "Transpose", perm=[1, 2, 0])
    row = node("Cast", [row], "Cast", to=TensorProto.FLOAT)
    last = node("Constant", [], "last", value=numpy_helper.from_array(np.array([-1])))
    shift = node("Gather", [zero, "input_ids"], "zero_point/Gather")
    shift = node("Cast", [shift], "zero_point/Cast", to=TensorProto.FLOAT)
    shift = node("Unsqueeze", [shift, last], "zero_point/Unsqueeze")
    step = node("Gather", [scale, "input_ids"], "scale/Gather")
    step = node("Unsqueeze", [step, last], "scale/Unsqueeze")
    row = node("Sub", [row, shift], "Sub")
    node("Mul", [row, step], "Mul", answer)
    return made
