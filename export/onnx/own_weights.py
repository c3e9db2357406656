"""The graph's matrices against the model's: where each belongs, and torch with the graph's own.

The builder joins q, k and v, and parts a joined gate and up; so a matrix of the graph is a stack of
views of the model's parameters. `check` holds each number against the rounding of its type;
`own_weights` asks torch what it says with exactly the graph's numbers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from clp_edge.errors import VerificationError
from clp_edge.export.onnx.contents import Graph, Matrix
from clp_edge.export.torch_reference import Comparison, compare_logits, exact_model

_NODE = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(\w+)/MatMul$")
_INPUT_BLOCK = 32
LARGEST_STEPS = 1.6
"""A number may lie this many steps off: half for rounding, one more where an end of the range is
clipped or k-quant's fit gives up an outlier."""


def parameters(model: Any, name: str) -> list[torch.Tensor]:
    """The views of the model's parameters that, stacked, are the matrix of that node.

    Raises VerificationError for a node that belongs to no parameter.
    """
    if name == "/lm_head/MatMul":
        return [model.get_output_embeddings().weight]
    match = _NODE.match(name)
    if match is None:
        raise VerificationError(f"the graph multiplies by {name}, which the model has not")
    block = model.get_decoder().layers[int(match[1])]
    home = block.self_attn if match[2] == "attn" else block.mlp
    part = match[3]
    if hasattr(home, part):
        return [getattr(home, part).weight]
    if part == "qkv_proj":
        return [home.q_proj.weight, home.k_proj.weight, home.v_proj.weight]
    joined = getattr(home, "gate_up_proj", None)
    if part in ("gate_proj", "up_proj") and joined is not None:
        half = joined.weight.shape[0] // 2
        return [joined.weight[:half] if part == "gate_proj" else joined.weight[half:]]
    raise VerificationError(f"the graph multiplies by {name}, which the model has not")


@torch.no_grad()
def check(graph: Graph, model: Any) -> dict[int, int]:
    """Every matrix is the model's, within the rounding of its type; returns bits -> how many.

    Raises VerificationError naming the first that is not, or that is missing.
    """
    counts: dict[int, int] = {}
    seen: set[int] = set()
    for matrix in graph.matrices():
        views = parameters(model, matrix.name)
        _check_one(graph, matrix, torch.cat(views))
        counts[matrix.bits] = counts.get(matrix.bits, 0) + 1
        seen.update(view.data_ptr() for view in views)
    wanted = {
        name: module.weight.data_ptr()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    missing = [name for name, at in wanted.items() if at not in seen]
    if missing:
        raise VerificationError(
            f"{graph.folder.name} failed verification: no matrix for {', '.join(missing[:5])}"
        )
    return counts


def _check_one(graph: Graph, matrix: Matrix, ours: torch.Tensor) -> None:
    theirs = torch.from_numpy(matrix.values)
    if theirs.shape != ours.shape:
        what = f"is {tuple(theirs.shape)}, the model's {tuple(ours.shape)}"
    else:
        off = (theirs - ours.float()).abs()
        if matrix.steps is not None:
            allowed = LARGEST_STEPS * torch.from_numpy(matrix.steps.copy())
        else:  # floats: half a unit in the last place of float16, which holds for float32 too
            allowed = 2.0**-11 * ours.float().abs() + 2.0**-24
        wrong = int((off > allowed).sum())
        if not wrong:
            return
        what = f"has {wrong} of {off.numel()} numbers off, the worst by {float(off.max()):.3g}"
    raise VerificationError(f"{graph.folder.name} failed verification: {matrix.name} {what}")


@torch.no_grad()
def own_weights(
    graph: Graph, folder: Path, ids: tuple[int, ...]
) -> tuple[torch.Tensor, Comparison]:
    """Torch's logits with the graph's matrices, and what rounding inputs to 8 bits does to them.

    MatMulNBits at accuracy level 4 rounds each 32 inputs of a product to 8 bits with one scale.
    """
    model = exact_model(folder)
    for matrix in graph.matrices():
        values = torch.from_numpy(matrix.values)
        row = 0
        for view in parameters(model, matrix.name):
            view.copy_(values[row : row + view.shape[0]])
            row += view.shape[0]
    exact = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(_round_input)
    rounded = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    return exact, compare_logits(exact, rounded)


def _round_input(module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    whole = arguments[0]
    width = whole.shape[-1]
    padded = torch.nn.functional.pad(whole, (0, -width % _INPUT_BLOCK))
    parts = padded.unflatten(-1, (-1, _INPUT_BLOCK))
    step = parts.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127.0
    rounded = (parts / step).round() * step
    return (rounded.flatten(-2)[..., :width], *arguments[1:])
