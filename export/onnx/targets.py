"""The ONNX targets, and the recipe that the builder is given for each.

A recipe is data: the builder's precision and its extra options. Which of them is the default for
4 bits was measured (see RECIPES). A pair of precision and execution provider that the installed
builder does not have is refused in plan(), not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from clp_edge.export.targets import Target

BLOCK_SIZE = 32
"""Weights that share one scale."""

EXECUTION_PROVIDERS = ("cpu", "cuda", "dml")


@dataclass(frozen=True)
class Recipe:
    """What onnxruntime-genai's builder is asked for."""

    precision: str
    options: tuple[tuple[str, str], ...] = ()
    head_bits: int = 32
    """Bits of the output matrix (and of the embedding where the two are tied)."""
    mixed_bits: int = 0
    """Bits of the sensitive matrices of some blocks; 0 where all blocks are alike."""


_PLAIN = (("block_size", str(BLOCK_SIZE)),)

# Measured on the demo model (docs/LOG.md): KL to torch, bytes, decode tokens/s of each method.
RECIPES: dict[str, Recipe] = {
    "fp32": Recipe("fp32"),
    "fp16": Recipe("fp16", head_bits=16),
    "int8": Recipe("int8", (*_PLAIN, ("algo_config", "rtn")), head_bits=8),
    "int4": Recipe("int4", (*_PLAIN, ("algo_config", "k_quant_mixed")), head_bits=8, mixed_bits=8),
    "int4-rtn": Recipe("int4", (*_PLAIN, ("algo_config", "rtn")), head_bits=4),
}


def _onnx(kind: str, max_kl: float, advice: str) -> Target:
    name = f"onnx-{kind}"
    return Target(name, (), "onnx", kind, -1, name, advice, max_kl, extension="")


TARGETS: tuple[Target, ...] = (
    _onnx("fp32", 1e-5, "no loss, four bytes a weight: a reference"),
    _onnx("fp16", 5e-3, "no loss worth naming, for GPUs: needs --ep cuda or dml"),
    _onnx("int8", 0.05, "hardly any loss; take it when it fits"),
    _onnx("int4", 0.6, "the usual choice: small and fast, 8 bits on the sensitive matrices"),
    _onnx("int4-rtn", 1.2, "plain rounding: a little smaller and faster than int4, more loss"),
)
