"""Which cuts a GGUF file can express, and what a config says after one.

llama.cpp decides some things by a block's place, and no key changes them (PITFALLS 15b): a cut that
moves a block to another kind of place cannot be written. `allowed` is the plain question that a
search may ask before it proposes a segment; `nearest_allowed` is the answer for people.

>>> allowed(config, Segment(4, 7))                                          # doctest: +SKIP
>>> allowed(config, Segment(4, 6))      # SmolLM3                           # doctest: +SKIP
"llama.cpp's smollm3 takes for granted that every fourth block, ..."
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from clp_edge.export.gguf.families import problems
from clp_edge.models.surgery import cut_config
from clp_edge.segment import FEWEST_BLOCKS, Segment


def after_cut(config: Any, dropped: Iterable[int]) -> Any:
    """The config of the model without these blocks (a copy; the same one when none goes).

    Raises UsageError for blocks that are not there.
    """
    gone = sorted(set(dropped))
    if not gone:
        return config
    changed = copy.deepcopy(config)
    cut_config(changed, gone)
    return changed


def with_blocks(config: Any, blocks: int | None) -> Any:
    """The config with that many blocks, when it is not known yet which ones go: the last ones."""
    total = int(config.num_hidden_layers)
    return config if blocks is None else after_cut(config, range(blocks, total))


def allowed(config: Any, segment: Segment) -> str | None:
    """Why this family's GGUF cannot express the model without `segment`; None where it can.

    What stands against the whole model too is no reason against a segment.
    """
    before = {str(problem) for problem in problems(config)}
    after = (str(problem) for problem in problems(after_cut(config, segment.blocks)))
    return next((problem for problem in after if problem not in before), None)


def nearest_allowed(config: Any, segment: Segment, *, count: int = 3) -> list[Segment]:
    """The allowed segments whose ends are nearest to `segment`'s, nearest first."""
    total = int(config.num_hidden_layers)
    every = [
        Segment.from_start(first, size)
        for size in range(1, total - FEWEST_BLOCKS + 1)
        for first in range(total - size + 1)
    ]
    every.sort(key=lambda s: (abs(s.first - segment.first) + abs(s.last - segment.last), s))
    found: list[Segment] = []
    for candidate in every:
        if len(found) == count:
            break
        if allowed(config, candidate) is None:
            found.append(candidate)
    return found
