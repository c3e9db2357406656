"""Each kernel of ours beside other ways to do the same: transformers' own, torch.compile, Liger.

The bytes of an operation are what it cannot avoid: every input once, every output once. Liger's
fused sum and norm has no gate (it is timed at g = 1, against the ungated sum) and forms the gain's
gradient whether it is wanted or not; ours leaves it out, as a frozen model wants it.

>>> operations(SHAPES["Llama-3-8B"], rows=4096, device=device)             # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clp_edge.bench.kernel_rounds import Contender
from clp_edge.kernels import dispatch

Direction = Literal["forward", "backward"]
Function = Callable[..., Any]
GATE = 0.7
EPS = 1e-5
HEAD_ELEMENTS = 64 * 1024 * 1024
"""Scores of the head's row kernel: what a chunk on a GPU holds."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides about time."""

    name: str
    model_type: str
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    blocks: int
    tied: bool = False


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("SmolLM2-135M", "llama", 576, 1536, 9, 3, 49_152, 30, tied=True),
        Shape("Qwen2.5-1.5B", "qwen2", 1536, 8960, 12, 2, 151_936, 28, tied=True),
        Shape("Llama-3-8B", "llama", 4096, 14_336, 32, 8, 128_256, 32),
        Shape("Llama-2-13B", "llama", 5120, 13_824, 40, 40, 32_000, 40),
        Shape("Llama-3-70B", "llama", 8192, 28_672, 64, 8, 128_256, 80),
    )
}
TINY = Shape("tiny", "llama", 64, 96, 4, 2, 320, 2)
"""For a smoke test on the processor."""


@dataclass(frozen=True)
class Operation:
    """One operation, one direction, one shape, and those who do it."""

    name: str
    direction: Direction
    rows: int
    width: int
    bytes: int
    contenders: dict[str, Contender]
    missing: dict[str, str]
    """contenders that cannot be timed here, with the reason"""


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """transformers' LlamaRMSNorm as a function, so that torch.compile sees one graph."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype)


def eager_join(r: Tensor, b: Tensor, g: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The gate as a hook scales the branch, the sum, then the norm."""
    x = r + b * g
    return x, rms_norm(x, w)


def eager_sum(r: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor]:
    """The gated sum alone."""
    return (r + b * g,)


def eager_product(a: Tensor, b: Tensor) -> tuple[Tensor]:
    """The MLP's activation and product."""
    return (torch.nn.functional.silu(a) * b,)


def eager_rows(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exp and the probabilities of a row of scores."""
    wide = scores.float()
    lse = torch.logsumexp(wide, -1)
    return lse, torch.exp(wide - lse[:, None]).to(scores.dtype)


def compiled(function: Function) -> Function:
    """torch.compile for one shape."""
    return torch.compile(function, dynamic=False)


def peers() -> tuple[dict[str, Function], str]:
    """Liger-Kernel's functions, or why there are none."""
    try:
        from liger_kernel.transformers.functional import (
            liger_fused_add_rms_norm,
            liger_swiglu,
        )
    except ImportError as error:
        return {}, f"Liger-Kernel is not installed or has no such function ({error})"

    def join(r: Tensor, b: Tensor, g: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y, x = liger_fused_add_rms_norm(b, r, w, EPS, 0.0, "llama", False)
        return x, y

    return {"join": join, "product": lambda a, b: (liger_swiglu(a, b),)}, ""


class _Case:
    """One operation's inputs; makes its contenders, forward or backward."""

    def __init__(self, inputs: Sequence[Tensor], wanted: Sequence[bool], eager: Function) -> None:
        self.inputs = inputs
        self.wanted = wanted
        self.eager = eager
        with torch.no_grad():
            generator = torch.Generator(inputs[0].device).manual_seed(1)
            self.upstream = [
                # A mean, so that a gate's gradient is no sum that happens to be near nothing.
                (0.3 + torch.randn(value.shape, generator=generator, device=value.device)).to(
                    value.dtype
                )
                for value in eager(*inputs)
            ]

    def fresh(self, copies: bool) -> list[Tensor]:
        """The inputs as leaves; copies for who writes over them in backward."""
        return [
            (value.clone() if copies else value).detach().requires_grad_(wanted)
            for value, wanted in zip(self.inputs, self.wanted, strict=True)
        ]

    def forward(self, function: Function, *, reference: Function | None, **more: Any) -> Contender:
        def run(_: Any) -> Any:
            with torch.no_grad():
                return function(*self.inputs)

        return Contender(
            run, reference=None if reference is None else lambda: reference(*self.inputs), **more
        )

    def backward(
        self,
        function: Function,
        *,
        reference: Function | None,
        copies: bool = False,
        **more: Any,
    ) -> Contender:
        """The forward is not timed; the graph is not kept, as in a step."""

        def prepare(way: Function = function) -> tuple[Any, list[Tensor], list[Tensor]]:
            leaves = self.fresh(copies)
            upstream = [value.clone() for value in self.upstream] if copies else self.upstream
            return way(*leaves), [leaf for leaf in leaves if leaf.requires_grad], upstream

        def run(prepared: Any) -> Any:
            outputs, leaves, upstream = prepared
            return torch.autograd.grad(outputs, leaves, upstream)

        def exact() -> Any:
            assert reference is not None
            return run(prepare(reference))

        return Contender(run, prepare, exact if reference is not None else None, **more)


def _ways(
    case: _Case,
    direction: Direction,
    ours: Function,
    device: torch.device,
    liger: Function | None,
    liger_reason: str,
    *,
    ungated: Function | None = None,
    liger_bytes: int | None = None,
) -> tuple[dict[str, Contender], dict[str, str]]:
    make = case.forward if direction == "forward" else case.backward
    found = {
        "ours": make(ours, reference=case.eager, ours=True),
        "eager": make(case.eager, reference=None),
    }
    missing: dict[str, str] = {}
    if device.type == "cuda":
        found["torch.compile"] = make(compiled(case.eager), reference=case.eager)
    else:
        missing["torch.compile"] = "timed on CUDA alone"
    if liger is not None and device.type == "cuda":
        more: dict[str, Any] = {"bytes": liger_bytes}
        if direction == "backward":
            more["copies"] = True
        found["Liger"] = make(liger, reference=ungated or case.eager, **more)
    else:
        missing["Liger"] = liger_reason or "timed on CUDA alone"
    return found, missing


def operations(shape: Shape, *, rows: int, device: torch.device) -> list[Operation]:
    """Every kernel at one model's shape: bfloat16 on CUDA, float32 on the processor."""
    torch.compiler.reset()  # the same functions at another shape
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = torch.finfo(dtype).bits // 8
    generator = torch.Generator(device).manual_seed(0)

    def normal(*of: int) -> Tensor:
        return (0.3 + torch.randn(*of, generator=generator, device=device)).to(dtype)

    gate = torch.tensor(GATE, device=device)
    gain = 1.0 + 0.1 * normal(shape.hidden)
    stream = rows * shape.hidden * size
    wide = rows * shape.intermediate * size
    liger, reason = peers()
    found: list[Operation] = []

    def add(name: str, direction: Direction, width: int, moved: int, ways: Any) -> None:
        contenders, missing = ways
        found.append(Operation(name, direction, rows, width, moved, contenders, missing))

    def join(r: Tensor, b: Tensor, g: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return dispatch.gated_residual(r, b, g, w, eps=EPS)

    def ungated(r: Tensor, b: Tensor, g: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = r + b
        return x, rms_norm(x, w)

    directions: tuple[Direction, ...] = ("forward", "backward")
    case = _Case(
        (normal(rows, shape.hidden), normal(rows, shape.hidden), gate, gain),
        (True, True, True, False),
        eager_join,
    )
    for direction in directions:
        # Ungated backward: d_y, d_x and x in, one gradient out. Only r and b have one.
        other = liger.get("join")
        if other is not None and direction == "backward":
            peer = _Case(case.inputs, (True, True, False, False), eager_join)
            ways = _ways(case, direction, join, device, None, "")
            ways[0]["Liger"] = peer.backward(
                other, reference=ungated, copies=True, bytes=4 * stream
            )
            ways[1].pop("Liger", None)
        else:
            ways = _ways(case, direction, join, device, other, reason, ungated=ungated)
        moved = (4 if direction == "forward" else 6) * stream
        add("gated_residual", direction, shape.hidden, moved, ways)

    case = _Case(case.inputs[:3], (True, True, True), eager_sum)
    for direction in directions:
        ways = _ways(
            case,
            direction,
            lambda r, b, g: (dispatch.gated_add(r, b, g),),
            device,
            None,
            "Liger-Kernel has no such kernel",
        )
        add("gated_add", direction, shape.hidden, 3 * stream, ways)

    case = _Case(
        (normal(rows, shape.intermediate), normal(rows, shape.intermediate)),
        (True, True),
        eager_product,
    )
    for direction in directions:
        ways = _ways(
            case,
            direction,
            lambda a, b: (dispatch.swiglu(a, b),),
            device,
            liger.get("product"),
            reason,
        )
        moved = (3 if direction == "forward" else 5) * wide
        add("swiglu", direction, shape.intermediate, moved, ways)
    found.append(_head_rows(shape, rows, normal, device, size))
    return found


def _head_rows(
    shape: Shape, rows: int, normal: Callable[..., Tensor], device: torch.device, size: int
) -> Operation:
    """Scores to log-sum-exp and probabilities, in place: one read and one write of each row."""
    count = max(1, min(rows, HEAD_ELEMENTS // shape.vocabulary))
    scores = 3 * normal(count, shape.vocabulary)

    def ours(given: Tensor) -> tuple[Tensor, Tensor]:
        lse = dispatch.normalise_(given, scale=1.0, softcap=None, replace=True)
        return lse, given

    def reference() -> tuple[Tensor, Tensor]:
        return eager_rows(scores)

    found = {
        "ours": Contender(ours, scores.clone, reference, ours=True),
        "eager": Contender(eager_rows, scores.clone),
    }
    missing = {"Liger": "Liger-Kernel has no such kernel"}
    if device.type == "cuda":
        found["torch.compile"] = Contender(compiled(eager_rows), scores.clone, reference)
    else:
        missing["torch.compile"] = "timed on CUDA alone"
    moved = 2 * count * shape.vocabulary * size
    return Operation("head_rows", "forward", count, shape.vocabulary, moved, found, missing)
