"""Which type each tensor gets, foretold before any work: what `plan()` and the truth about size
stand on.

llama.cpp decides by the tensor's role, the block's place, the width of a row and whether there is
an importance matrix; a row that is no multiple of the type's block falls back to a smaller block
(PITFALLS 11). The rules are a table of what its quantizer does (llama.cpp, src/llama-quant.cpp); a
test holds every type's file against them.

>>> predict("Q4_K_M", "blk.0.ffn_up.weight", 576, Traits(blocks=30, grouped=3, tied=True))
'Q5_0'
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

UNQUANTIZED = ("F32", "F16", "BF16")
_BASE = {
    "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K",
    "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S",
}  # fmt: skip
_FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
}  # fmt: skip
_ONE_BIT = ("IQ1_S", "IQ1_M")
_TWO_BITS_PLUS = ("IQ2_S", "IQ2_M")
_LOWEST = (*_ONE_BIT, "IQ2_XXS", "IQ2_XS", *_TWO_BITS_PLUS)
_OUTPUT = {
    "Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_XXS": "IQ3_S", "IQ3_M": "Q4_K",
    "IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S",
}  # fmt: skip
_QUERY_KEY = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}
_NEEDS_MATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")


@dataclass(frozen=True)
class Traits:
    """What llama.cpp's choice of types depends on, beside the tensor."""

    blocks: int
    grouped: int
    """query heads per key head"""
    tied: bool
    """whether the embedding is the head too"""
    matrix: bool = False
    """whether there is an importance matrix"""
    large: bool = False
    """whether llama.cpp takes the model for one of 70B (PITFALLS 15b)"""
    types: tuple[tuple[str, str], ...] = ()
    """(tensor name, type) pairs that the mix has no say in"""


def taken_for_70b(architecture: str, blocks: int, heads: int, key_heads: int) -> bool:
    """Whether llama.cpp reads 70B off the number of blocks."""
    return blocks == 80 and (
        architecture == "qwen2" or (architecture == "llama" and heads != key_heads)
    )


def _more(block: int, blocks: int) -> bool:
    """The first and last eighth, and every third between."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def _value(mix: str, block: int, of: Traits, base: str) -> str:
    if mix in _LOWEST:
        low = "IQ3_S" if mix in _TWO_BITS_PLUS else "Q2_K"
        return "Q4_K" if of.grouped >= 4 else low
    chosen = base
    if mix == "Q2_K":
        chosen = "Q4_K" if of.grouped >= 4 else "Q3_K"
    elif mix in ("Q2_K_S", "IQ3_XS", "IQ3_S", "IQ3_XXS") and of.grouped >= 4:
        chosen = "Q4_K"
    elif mix == "IQ3_XXS":
        chosen = base if of.matrix else "IQ3_S"
    elif mix == "IQ3_M":
        chosen = "Q4_K"
    elif mix == "Q3_K_M":
        chosen = "Q5_K" if block < 2 else "Q4_K"
    elif mix == "Q3_K_L" or (mix in ("IQ4_NL", "IQ4_XS") and of.grouped >= 4):
        chosen = "Q5_K"
    elif mix in ("Q4_K_M", "Q5_K_M") and _more(block, of.blocks):
        chosen = "Q6_K"
    elif mix == "Q4_K_S" and block < 4:
        chosen = "Q5_K"
    return "Q5_K" if of.large and chosen in ("Q3_K", "Q4_K") else chosen


def _down(mix: str, block: int, of: Traits, base: str) -> str:
    early = block < of.blocks // 8
    if mix == "Q2_K":
        return "Q3_K"
    if mix == "Q3_K_M":
        return "Q5_K" if block < of.blocks // 16 else "Q4_K"
    if mix == "Q3_K_L":
        return "Q5_K"
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more(block, of.blocks) else base
    if mix == "IQ3_XXS" and not of.matrix:
        return "Q4_K" if early else "Q3_K"
    if not early:
        return base
    if mix in _LOWEST:
        return "IQ3_S" if mix in _TWO_BITS_PLUS else "Q2_K"
    if mix in ("Q2_K_S", "IQ3_M"):
        return "Q4_K"
    if mix == "Q4_K_S" or (mix in ("IQ4_NL", "IQ4_XS") and not of.matrix):
        return "Q5_K"
    return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}.get(mix, base) if of.matrix else base


def _embedding(mix: str, base: str) -> str:
    if mix in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
        return "IQ3_S"
    return "Q2_K" if mix in _LOWEST else base


def _head(mix: str, row: int, base: str) -> str:
    if base == "Q8_0" or row % block_size("Q6_K"):
        return "Q8_0"
    return "Q5_K" if mix in _LOWEST or mix == "IQ3_XXS" else "Q6_K"


def fitting(kind: str, row: int) -> str:
    """The type that rows of this width get where `kind` was wanted."""
    if row % block_size(kind) == 0:
        return kind
    smaller = _FALLBACK.get(kind, "F16")
    return smaller if row % block_size(smaller) == 0 else "F16"


def predict(mix: str, name: str, row: int, of: Traits) -> str:
    """The type of a matrix.

    Args: `mix` llama.cpp's type name; `row` the width of a row.
    """
    return fitting(wanted(mix, name, row, of), row)


def wanted(mix: str, name: str, row: int, of: Traits) -> str:
    """The type that the mix has for a matrix, whether or not its rows fit. Args as `predict`.

    A file that holds another one fell back. For the head the row counts: a wider type is chosen
    there, not fallen back to.
    """
    if mix in UNQUANTIZED:
        return mix
    given = next((kind for tensor, kind in of.types if tensor == name), None)
    if given is not None:
        return given
    base = _BASE.get(mix, mix)
    match = re.match(r"blk\.(\d+)\.(\w+)\.", name)
    block = int(match[1]) if match else -1
    role = match[2] if match else name
    if role == "output.weight" or (of.tied and role == "token_embd.weight"):
        return _head(mix, row, base)
    if role == "token_embd.weight":
        return _embedding(mix, base)
    if role in ("attn_v", "attn_qkv"):
        return _value(mix, block, of, base)
    if role == "ffn_down":
        return _down(mix, block, of, base)
    if role == "attn_output":
        return _OUTPUT.get(mix, base)
    if role in ("attn_q", "attn_k"):
        return _QUERY_KEY.get(mix, base)
    between = of.blocks // 8 <= block < 7 * of.blocks // 8
    if mix == "IQ3_XS" and role in ("ffn_gate", "ffn_up") and between:
        return "IQ3_XXS"
    return base


def needs_matrix(kind: str) -> bool:
    """Whether llama.cpp refuses to quantize to this tensor type without an importance matrix."""
    return kind in _NEEDS_MATRIX


def block_size(kind: str) -> int:
    """How many numbers of a row one block of that type holds."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]


def stored_bytes(kind: str, elements: int) -> int:
    """Bytes of `elements` numbers in that type."""
    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return elements // numbers * size
