"""How many blocks go where the user says what he wants to reach: a file size, or a speed-up.

Both follow from the bytes of the files, which the exporters predict without work. Decoding on one
stream reads every weight once per token, so bytes saved bound the speed-up that can be promised;
the bench measures what it is.

>>> from clp_edge.config import CutConfig
>>> blocks_to_drop(CutConfig(max_bytes="70"), 30, lambda count: [100 - 3 * count])
10
>>> blocks_to_drop(CutConfig(min_speedup=1.25), 30, lambda count: [100 - 3 * count])
7
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clp_edge.config import CutConfig
from clp_edge.errors import UsageError
from clp_edge.segment import FEWEST_BLOCKS

Predicted = Callable[[int], Sequence[int]]
"""Blocks dropped -> the bytes of every target's file, of 0 blocks too; smaller the more go."""


def blocks_to_drop(cut: CutConfig, total: int, predicted: Predicted) -> int:
    """The fewest blocks that reach what `cut` asks for.

    Raises UsageError where nothing has to go, or where all that may go is not enough.
    """
    if cut.byte_limit is not None:
        limit = cut.byte_limit
        return _fewest(
            total,
            lambda count: max(predicted(count)) <= limit,
            nothing=f"the files are within {cut.max_bytes} without any cut",
            too_little=lambda most: (
                f"without {most} of {total} blocks the largest file is still "
                f"{max(predicted(most)) / 1e6:.1f} MB, more than {cut.max_bytes}"
            ),
            cure="take a target of fewer bits, or a larger --max-bytes",
        )
    if cut.min_speedup is not None:
        wanted, before = cut.min_speedup, predicted(0)

        def ratio(count: int) -> float:
            return min(a / b for a, b in zip(before, predicted(count), strict=True))

        return _fewest(
            total,
            lambda count: ratio(count) >= wanted,
            nothing=f"a speed-up of {wanted:g} asks for no cut",
            too_little=lambda most: (
                f"without {most} of {total} blocks the bytes allow {ratio(most):.2f} times the "
                f"speed, less than {wanted:g}"
            ),
            cure="take a target of fewer bits, or a smaller --min-speedup",
        )
    return cut.count(total)


def _fewest(
    total: int,
    enough: Callable[[int], bool],
    *,
    nothing: str,
    too_little: Callable[[int], str],
    cure: str,
) -> int:
    """The smallest count that is enough, by bisection: each try prices every target."""
    most = total - FEWEST_BLOCKS
    if enough(0):
        raise UsageError(nothing, "say how much to drop with --prune or --drop-blocks")
    if most < 1 or not enough(most):
        raise UsageError(too_little(most), cure)
    low, high = 0, most  # low is not enough, high is
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
