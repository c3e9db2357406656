"""The ONNX targets, and the recipe that the builder is given for each.

A recipe is data: the builder's precision and its extra options. Which of them is the default for
4 bits was measured (see RECIPES). A pair of precision and execution provider that the installed
builder does not have is refused in plan(), not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from clp_edge.export.base import Target

OPTIMUM = "take onnx-optimum-fp32 (it needs an environment of its own: clp-edge[optimum])"
"""The way out for what the builder does not write."""
BLOCK_SIZE = 32
"""Weights that share one scale."""

EXECUTION_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "dml": "DmlExecutionProvider",
}
"""The builder's name -> ONNX Runtime's."""


@dataclass(frozen=True)
class Recipe:
    """What onnxruntime-genai's builder is asked for."""

    precision: str
    options: tuple[tuple[str, str], ...] = ()
    head_bits: int = 32
    """Bits of the output matrix (and of the embedding where the two are tied)."""
    mixed_bits: int = 0
    """Bits of the sensitive matrices of some blocks; 0 where all blocks are alike."""


# A full-length cache also behind a sliding window: the builder's ring of positions is a promise
# between its graph and its runtime alone, and other runtimes could not feed it.
_PLAIN = (("windowed_kv_cache", "false"),)
_BLOCKS = (*_PLAIN, ("block_size", str(BLOCK_SIZE)))

# The demo model (30 blocks, tied head), 4 bits by each method of the builder 0.18: KL to torch over
# 1,024 tokens, MB, decode tokens/s on two cores beside other work (only the last three were quiet):
#   default 0.39  86.5     rtn 0.52  86.5     rtn, asymmetric 0.41  88.7     k_quant 0.41  88.7
#   k_quant_last 0.30  103.2     rtn_last 0.39  100.7  183
#   rtn, last and mixed layers at 8 bits 0.25  110.7  150     k_quant_mixed 0.19  113.6  145
RECIPES: dict[str, Recipe] = {
    "fp32": Recipe("fp32", _PLAIN),
    "fp16": Recipe("fp16", _PLAIN, head_bits=16),
    "int8": Recipe("int8", (*_BLOCKS, ("algo_config", "rtn")), head_bits=8),
    "int4": Recipe("int4", (*_BLOCKS, ("algo_config", "k_quant_mixed")), head_bits=8, mixed_bits=8),
    "int4-rtn": Recipe("int4", (*_BLOCKS, ("algo_config", "rtn")), head_bits=4),
}


def _onnx(kind: str, max_kl: float, advice: str) -> Target:
    name = f"onnx-{kind}"
    return Target(name, (), "onnx", kind, name, advice, max_kl)


TARGETS: tuple[Target, ...] = (
    _onnx("fp32", 1e-5, "no loss, four bytes a weight: a reference"),
    _onnx("fp16", 5e-3, "no loss worth naming, for GPUs: needs --ep cuda or dml"),
    _onnx("int8", 0.05, "hardly any loss; take it when it fits"),
    _onnx("int4", 0.6, "the usual choice: small and fast, 8 bits on the sensitive matrices"),
    _onnx("int4-rtn", 1.2, "plain rounding: a little smaller and faster than int4, more loss"),
)


def _optimum(kind: str, max_kl: float, advice: str) -> Target:
    name = f"onnx-optimum-{kind}"
    return Target(name, (), "onnx-optimum", kind, name, advice, max_kl)


OPTIMUM_TARGETS: tuple[Target, ...] = (
    _optimum("fp32", 1e-5, "portable: for ORTModelForCausalLM and any runtime with a cache"),
    _optimum("fp16", 5e-3, "the same in half precision, for GPUs"),
    _optimum("int8", 0.3, "the same, products in 8 bits, their inputs rounded as they come"),
)
"""Plain graphs with past key values, written by Optimum in an environment of its own."""
