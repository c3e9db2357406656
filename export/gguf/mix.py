"""Which type each tensor gets, foretold before any work: the estimate behind `plan()`.

llama.cpp decides by the tensor's role, the block's place and the width of a row; a row that is no
multiple of the type's block falls back to a smaller block (PITFALLS 11). The rules are a table of
what its quantizer does (llama.cpp, src/llama-quant.cpp); the finished file is what counts, and a
test compares both.

>>> predict("Q4_K_M", "blk.0.ffn_up.weight", 576, blocks=30, grouped=3, tied=True)
'Q5_0'
"""

from __future__ import annotations

import re

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

_BASE = {
    "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K",
    "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K",
}  # fmt: skip
_FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip


def _more(block: int, blocks: int) -> bool:
    """The first and last eighth, and every third between."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def _value(mix: str, block: int, blocks: int, grouped: int, base: str) -> str:
    if mix == "Q2_K":
        return "Q4_K" if grouped >= 4 else "Q3_K"
    if mix == "Q3_K_M":
        return "Q5_K" if block < 2 else "Q4_K"
    if mix == "Q3_K_L":
        return "Q5_K"
    if mix in ("IQ4_NL", "IQ4_XS") and grouped >= 4:
        return "Q5_K"
    if mix in ("Q4_K_M", "Q5_K_M") and _more(block, blocks):
        return "Q6_K"
    return "Q5_K" if mix == "Q4_K_S" and block < 4 else base


def _down(mix: str, block: int, blocks: int, base: str) -> str:
    if mix == "Q2_K":
        return "Q3_K"
    if mix == "Q3_K_M":
        return "Q5_K" if block < blocks // 16 else "Q4_K"
    if mix == "Q3_K_L":
        return "Q5_K"
    if mix in ("Q4_K_M", "Q5_K_M") and _more(block, blocks):
        return "Q6_K"
    if mix in ("IQ4_NL", "IQ4_XS", "Q4_K_S") and block < blocks // 8:
        return "Q5_K"
    return base


def predict(mix: str, name: str, row: int, *, blocks: int, grouped: int, tied: bool) -> str:
    """The type of a matrix.

    Args: `mix` llama.cpp's type name; `row` the width of a row; `grouped` query heads per key head;
    `tied` whether the embedding is the head too.
    """
    kind = wanted(mix, name, row, blocks=blocks, grouped=grouped, tied=tied)
    if row % block_size(kind) == 0:
        return kind
    smaller = _FALLBACK.get(kind, "F16")
    return smaller if row % block_size(smaller) == 0 else "F16"


def wanted(mix: str, name: str, row: int, *, blocks: int, grouped: int, tied: bool) -> str:
    """The type that the mix has for a matrix, whether or not its rows fit. Args as `predict`.

    A file that holds another one fell back. For the head the row counts: a wider type is chosen
    there, not fallen back to.
    """
    if mix in ("F16", "BF16"):
        return mix
    base = _BASE.get(mix, mix)
    match = re.match(r"blk\.(\d+)\.(\w+)\.", name)
    block = int(match[1]) if match else -1
    role = match[2] if match else name
    if role == "output.weight" or (tied and role == "token_embd.weight"):
        return "Q8_0" if base == "Q8_0" or row % 256 else "Q6_K"
    if role == "attn_v":
        return _value(mix, block, blocks, grouped, base)
    if role == "ffn_down":
        return _down(mix, block, blocks, base)
    if role == "attn_output":
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, base)
    return base


def block_size(kind: str) -> int:
    """How many numbers of a row one block of that type holds."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]


def stored_bytes(kind: str, elements: int) -> int:
    """Bytes of `elements` numbers in that type."""
    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return elements // numbers * size
