"""How many blocks go where the user says what is to be reached: size, speed-up, speed, quality.

A size and a speed-up follow from the bytes of the files, which the exporters predict without work.
Decoding on one stream reads every weight once per token, so bytes saved bound the speed-up that can
be promised; the bench measures what it is. A quality has to be tried (`tries.py`): `next_try` says
which cut is worth it.

>>> from clp_edge.config import CutConfig
>>> blocks_to_drop(CutConfig(max_bytes="70"), 30, lambda count: [100 - 3 * count])
10
>>> next_try({1: 0.2, 2: 0.5, 3: 0.9, 4: 1.5}, [(3, 1.3)])  # the curve was too hopeful by 1.44
2
>>> blocks_to_drop(CutConfig(min_speedup=1.25), 30, lambda count: [100 - 3 * count])
7
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from clp_edge.config import CutConfig
from clp_edge.errors import UsageError
from clp_edge.export.base import Format
from clp_edge.records import BandwidthRecord
from clp_edge.registry import FORMATS
from clp_edge.segment import FEWEST_BLOCKS, Segment

Predicted = Callable[[int], Sequence[int]]
"""Blocks dropped -> the bytes of every target's file, of 0 blocks too; smaller the more go."""


def blocks_to_drop(
    cut: CutConfig,
    total: int,
    predicted: Predicted,
    bandwidth: BandwidthRecord | None = None,
) -> int:
    """The fewest blocks that reach what `cut` asks for.

    Args: bandwidth, of the memory, for --min-tps: `predicted` gives what a token reads then.

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
    if cut.min_tps is not None:
        speed, least = _ceiling(cut.min_tps, bandwidth, predicted), cut.min_tps
        return _fewest(
            total,
            lambda count: speed(count) >= least,
            nothing=f"the memory bandwidth allows {speed(0):.1f} tok/s without any cut, a ceiling "
            f"above the {least:g} asked for",
            too_little=lambda most: (
                f"without {most} of {total} blocks the memory bandwidth allows "
                f"{speed(most):.1f} tok/s, less than {least:g}"
            ),
            cure="take a target of fewer bits, or a smaller --min-tps",
        )
    return cut.count(total)


def _ceiling(
    wanted: float, bandwidth: BandwidthRecord | None, predicted: Predicted
) -> Callable[[int], float]:
    """Blocks dropped -> the tokens per second that reading the largest file allows (the ceiling of
    `clp_edge.bench`). Raises UsageError where that says nothing."""
    cure = "say it as --min-speedup, the ratio to the dense file, which needs no bandwidth"
    if bandwidth is None:
        raise UsageError(f"--min-tps {wanted:g}: the memory bandwidth could not be measured", cure)
    if max(predicted(0)) <= bandwidth.cache_bytes:
        raise UsageError(
            f"--min-tps {wanted:g}: the model fits in the processor's cache "
            f"({bandwidth.cache_bytes / 1e6:.0f} MB), so the memory does not bound its speed",
            cure,
        )
    return lambda count: bandwidth.gb_per_s * 1e9 / max(predicted(count))


def cached_bytes(config: Any, blocks: int, depth: float) -> int:
    """Key and value bytes (2 a number) that one token reads at a depth; 0 where the config does not
    say. Windows are left out: no depth that is predicted for is beyond one."""
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    width = int(getattr(config, "head_dim", 0) or 0) or (
        int(getattr(config, "hidden_size", 0) or 0) // heads if heads else 0
    )
    kv_heads = int(getattr(config, "num_key_value_heads", 0) or heads)
    return round(2 * 2 * kv_heads * width * blocks * depth)


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


MOST_TRIES = 3
WORST_SHARE = 10.0
"""Stands for a measured share beyond all measure, so that the curve can be corrected by it."""
WORTH_A_LOOK = 1.2
"""A cut that is predicted to miss by no more is tried while tries are left."""
CAUTION = 0.9
"""After every miss that many times less is aimed at."""


def next_try(predicted: Mapping[int, float], tried: Sequence[tuple[int, float]]) -> int | None:
    """The number of blocks to try next, or None where it is settled.

    Args: predicted, blocks dropped -> share of what the limits allow (1: the limit), every number
        that is possible; tried, (blocks, share that was measured) in order.
    The largest that should pass comes first. Each measurement corrects the curve around it by a
    factor; a pass is followed by a larger cut where that has a chance, a miss by a smaller one.
    """
    if len(tried) >= MOST_TRIES:
        return None
    passed = max((count for count, share in tried if share <= 1.0), default=0)
    missed = min((count for count, share in tried if share > 1.0 and count > passed), default=0)
    known = {count for count, _ in tried}
    left = [
        count
        for count in predicted
        if count > passed and count not in known and (not missed or count < missed)
    ]
    if not left:
        return None
    aim = CAUTION ** sum(share > 1.0 for _, share in tried)
    shares = corrected(predicted, tried)
    fit = [count for count in left if shares[count] <= aim]
    if fit:
        return max(fit)
    least = min(left)
    if passed and shares[least] > WORTH_A_LOOK:
        return None
    return least


def corrected(
    predicted: Mapping[int, float], tried: Sequence[tuple[int, float]]
) -> dict[int, float]:
    """The curve times what the nearest try measured over what was predicted for it."""
    factors = {
        count: min(share, WORST_SHARE) / predicted[count]
        for count, share in tried
        if predicted.get(count, 0.0) > 0.0
    }
    if not factors:
        return dict(predicted)
    return {
        count: share * factors[min(factors, key=lambda one: abs(one - count))]
        for count, share in predicted.items()
    }


def interpolated(points: Mapping[int, float], counts: Iterable[int]) -> dict[int, float]:
    """A value for every count between the first and the last point: straight lines between their
    logarithms, and never less than for a smaller count."""
    known = sorted(points)
    found: dict[int, float] = {}
    highest = 0.0
    for count in sorted(counts):
        if not known or not known[0] <= count <= known[-1]:
            continue
        below = max(one for one in known if one <= count)
        above = min(one for one in known if one >= count)
        along = (count - below) / (above - below) if above > below else 0.0
        low, high = (math.log(max(points[one], 1e-12)) for one in (below, above))
        highest = max(highest, math.exp(low + along * (high - low)))
        found[count] = highest
    return found


def barred(config: Any, formats: Iterable[str], count: int) -> tuple[Segment, ...]:
    """The windows of `count` blocks that some format cannot express."""
    windows = [Segment.from_start(s, count) for s in range(config.num_hidden_layers - count + 1)]
    opened: list[Format] = [FORMATS.load(name) for name in sorted(formats)]
    return tuple(
        window
        for window in windows
        if any(one.forbids(config, window) is not None for one in opened)
    )


def counts_that_may_go(config: Any, formats: Iterable[str]) -> list[int]:
    """Every number of blocks that leaves enough, between two endpoints, in all formats."""
    total, names = int(config.num_hidden_layers), list(formats)
    found = []
    for count in range(1, total - FEWEST_BLOCKS + 1):
        starts = range(1, total - count)
        no = set(barred(config, names, count))
        if any(Segment.from_start(start, count) not in no for start in starts):
            found.append(count)
    return found


def fewest_that_may_go(config: Any, formats: Iterable[str]) -> int:
    """The smallest cut that every target can express. Raises UsageError where there is none."""
    found = counts_that_may_go(config, formats)
    if not found:
        raise UsageError(
            "no cut of this model can be expressed by every target asked for",
            "ask for another target",
        )
    return found[0]
