"""Types that were asked for by hand: `--tensor-type REGEX=TYPE`, and more bits where they count.

The expressions are Python's and are looked for in the GGUF names of the matrices. llama.cpp reads
expressions of another kind, and its mix counts the value matrices that no expression took; so it is
given one exact name and type for every matrix, decided here.

>>> parse("ffn_down=q6_k")
('ffn_down', 'Q6_K')
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace

from clp_edge.errors import UsageError
from clp_edge.export.base import ExportOptions, Target
from clp_edge.export.gguf.mix import UNQUANTIZED, Traits, predict, stored_bytes

KINDS = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS",
    "IQ1_M", "IQ1_S",
)  # fmt: skip
"""Types of one tensor. A mix such as Q4_K_M is none."""
_CAREFUL = "Q6_K"
_MOST_CAREFUL = "Q8_0"
_BITS = 256
_FLAG = "--tensor-type"


def parse(text: str) -> tuple[str, str]:
    """("REGEX", "TYPE") of "REGEX=TYPE", checked; UsageError that says what is wrong."""
    pattern, sign, kind = text.rpartition("=")
    if not sign or not pattern or not kind:
        raise UsageError(f"{_FLAG} {text!r} is no REGEX=TYPE", "such as ffn_down=q6_k")
    return _checked(pattern, kind)


def _checked(pattern: str, kind: str) -> tuple[str, str]:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"{_FLAG}: {pattern!r} is no regular expression ({error})", "such as ffn_down=q6_k"
        ) from error
    name = kind.strip().upper()
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.3)
        cure = f"did you mean {near[0]}?" if near else f"known are {', '.join(KINDS)}"
        raise UsageError(f"{_FLAG}: {kind!r} is no type of a tensor", cure)
    return pattern, name


def assign(
    options: ExportOptions, target: Target, widths: Mapping[str, int], of: Traits
) -> tuple[tuple[str, str], ...]:
    """(name, type) of every matrix where anything was asked for; empty where nothing was.

    Args: `widths` GGUF name -> row width of each matrix; `of` without given types.
    Raises UsageError for a bad expression or type, one that no matrix's name matches, a block that
    is not there, and for a target that llama.cpp does not quantize.
    """
    rules = [_checked(pattern, kind) for pattern, kind in options.tensor_types]
    if not (rules or options.careful_blocks or options.careful_head):
        return ()
    mix = target.quantization
    if mix in UNQUANTIZED:
        raise UsageError(
            f"{target.name} writes every matrix in {mix}: types by hand have no effect",
            f"take another target, or leave {_FLAG} out",
        )
    for pattern, _ in rules:
        if not any(re.search(pattern, name) for name in widths):
            raise UsageError(
                f"{_FLAG}: no matrix has a name that {pattern!r} matches",
                f"names are such as {', '.join(list(widths)[:3])}",
            )
    missing = sorted(set(options.careful_blocks) - set(range(of.blocks)))
    if missing:
        raise UsageError(f"block {missing[0]} is not there", f"blocks are 0 to {of.blocks - 1}")
    careful = _careful(options, of)
    plain = replace(of, types=())
    found = []
    for name, width in widths.items():
        kind = predict(mix, name, width, plain)
        by_hand = next((type_ for pattern, type_ in rules if re.search(pattern, name)), None)
        if by_hand is not None:
            kind = by_hand
        elif re.match(careful, name):
            kind = _wider(kind, _MOST_CAREFUL if not name.startswith("blk.") else _CAREFUL)
        found.append((name, kind))
    return tuple(found)


def _careful(options: ExportOptions, of: Traits) -> str:
    """An expression that matches the names of the matrices that get more bits."""
    parts = [rf"blk\.{block}\." for block in options.careful_blocks]
    if options.careful_head:
        parts.append(r"token_embd\.weight$" if of.tied else r"output\.weight$")
    return "|".join(parts) if parts else r"(?!)"


def _wider(kind: str, least: str) -> str:
    """The type with more bits; at that many or more already, Q8_0 at most."""
    if stored_bytes(kind, _BITS) >= stored_bytes(least, _BITS):
        return kind if kind in UNQUANTIZED else _MOST_CAREFUL
    return least
