"""Which blocks the tuning rungs train (`--tune-blocks`).

>>> tuned_blocks("near", Segment(13, 18), 30)
(12, 19, 20, 21)
>>> tuned_blocks("endpoints", Segment(13, 18), 30), tuned_blocks("11-12,19", Segment(13, 18), 30)
((12, 19), (11, 12, 19))
"""

from __future__ import annotations

from clp_edge.errors import UsageError
from clp_edge.segment import Segment

DEPTH = 3
"""Blocks after the cut that "near" trains (docs/LOG.md: five and the whole tail gain nothing)."""


def tuned_blocks(words: str, segment: Segment, total: int) -> tuple[int, ...]:
    """Ids of the dense model, in order.

    Args: words, "near" (the block before the cut and three after it), "endpoints" (the paper's
        two), or ids such as "12,19-21".
    Raises: UsageError where an id is not one of a block that stays.
    """
    after = segment.last + 1
    if words == "endpoints":
        return segment.endpoints(total)
    if words == "near":
        before = segment.endpoints(total)[:1] if segment.first > 0 else ()
        return (*before, *range(after, min(after + DEPTH, total)))
    found = sorted({i for part in words.split(",") for i in Segment.parse(part).blocks})
    wrong = [i for i in found if i >= total or i in segment.blocks]
    if wrong:
        gone = wrong[0] in segment.blocks
        why = f"goes with {segment}" if gone else f"is not in 0-{total - 1}"
        raise UsageError(
            f"--tune-blocks {words}: block {wrong[0]} {why}",
            "name blocks that stay, by their ids in the dense model",
        )
    return tuple(found)
