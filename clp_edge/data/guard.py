"""The guard between calibration and evaluation text: what was trained on is not measured on.

PITFALLS 8: an evaluation sequence that shares a run of 200 characters with the calibration text, or
more than 2 % of its 60-character shingles (taken at every offset), is a leak. Stock phrases are
shorter and rarer than that, and stay. Shingles are compared by a 64-bit rolling hash, computed for
all offsets at once: with c_j a random number for the character at j and p odd, all modulo 2^64,

    prefix_i = Σ_{j<i} c_j p^j,   hash(i) = (prefix_{i+w} − prefix_i) · p^{−i}.

>>> leaked(["x" * 10 + "the very same words " * 20], ["the very same words " * 30])
[True]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

RUN = 200
SHINGLE = 60
SHARE = 0.02
FRAME_SHARE = 0.05
FRAME_LEAST = 8
"""A passage in more texts than these is a frame, see `repeated`."""
FRAME_AT_MOST = 0.9
"""of a text's characters: a text that has little else is a copy of the others"""
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 1 << 64)
BOUNDARY = "\0"  # between texts: no run crosses it


def leaked(sequences: Sequence[str], calibration: Sequence[str]) -> list[bool]:
    """Whether each sequence shares a 200-character run, or over 2 % of its shingles."""
    known = BOUNDARY.join(calibration)
    joined = BOUNDARY.join(sequences)
    return _judged(sequences, *(_shared(joined, known, width) for width in (RUN, SHINGLE)))


def repeated(texts: Sequence[str]) -> list[bool]:
    """Whether each text shares as much with any of the others: `leaked` of it against them.

    What many texts have in common (FRAME_SHARE: a system prompt, a licence) is the frame of such
    records and tells nothing of any one of them: it does not count, unless it is nearly all.
    """
    common = _owners_of_each(texts, SHINGLE) > max(FRAME_LEAST, int(FRAME_SHARE * len(texts)))
    depth = np.zeros(sum(len(text) + len(BOUNDARY) for text in texts) + 1, dtype=np.int32)
    depth[: common.size] += common
    depth[SHINGLE : SHINGLE + common.size] -= common
    framed = np.cumsum(depth) > 0  # whether each character lies in one of them
    rests, nearly_all, start = [], [], 0
    for text in texts:
        own = framed[start : start + len(text)]
        nearly_all.append(bool(own.size and own.mean() > FRAME_AT_MOST))
        rests.append(_unmarked(text, own))
        start += len(text) + len(BOUNDARY)
    shared = _judged(rests, *(_owners_of_each(rests, width) > 1 for width in (RUN, SHINGLE)))
    return [one or other for one, other in zip(shared, nearly_all, strict=True)]


def _unmarked(text: str, marks: np.ndarray) -> str:
    """The text without its marked characters, a boundary in the place of each run of them."""
    if not marks.any():
        return text
    turns = np.flatnonzero(np.diff(marks, prepend=False, append=False))
    kept = [text[a:b] for a, b in pairwise([0, *turns.tolist(), len(text)])]
    return BOUNDARY.join(kept[::2])


def _judged(texts: Sequence[str], runs: np.ndarray, shingles: np.ndarray) -> list[bool]:
    """The rule for each text, from whether the window at each offset of all of them is shared."""
    result, start = [], 0
    for text in texts:
        own_runs = runs[start : start + max(0, len(text) - RUN + 1)]
        own = shingles[start : start + max(0, len(text) - SHINGLE + 1)]
        result.append(bool(own_runs.any() or (own.size and own.mean() > SHARE)))
        start += len(text) + len(BOUNDARY)
    return result


def _owners_of_each(texts: Sequence[str], width: int) -> np.ndarray:
    """How many of the texts have the window at each offset of all of them, joined.

    A window across a boundary is as good as any here: `_judged` looks at none between two texts,
    and no window within a text is like one.
    """
    owners = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])
    text = BOUNDARY.join(texts)
    windows = _window_hashes(text, width)
    if windows.size == 0:
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(windows, kind="stable")  # owners stay in order among equals
    ordered, whose = windows[order], owners[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    another = first | np.concatenate([[True], whose[1:] != whose[:-1]])
    starts = np.flatnonzero(first)
    counts = np.add.reduceat(another, starts, dtype=np.int64)
    found = np.empty(windows.size, dtype=np.int64)
    found[order] = np.repeat(counts, np.diff(np.append(starts, windows.size)))
    return found


def _shared(text: str, known: str, width: int) -> np.ndarray:
    """For each offset of `text`: does its window of `width` characters occur in `known`?"""
    windows = _window_hashes(text, width)
    if windows.size == 0:
        return np.zeros(0, dtype=bool)
    table = np.sort(_window_hashes(known, width))
    if table.size == 0:
        return np.zeros(windows.size, dtype=bool)
    # sorted needles walk the table in order, which its cache likes
    order = np.argsort(windows)
    sorted_windows = windows[order]
    places = np.minimum(np.searchsorted(table, sorted_windows), table.size - 1)
    shared = np.empty(windows.size, dtype=bool)
    shared[order] = table[places] == sorted_windows
    return shared


def _window_hashes(text: str, width: int) -> np.ndarray:
    """uint64 hash of every window of `width` characters; empty for a shorter text."""
    count = len(text) - width + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    prefix = np.zeros(len(points) + 1, dtype=np.uint64)
    np.cumsum(_mix(points.astype(np.uint64)) * _powers(BASE, len(points)), out=prefix[1:])
    return (prefix[width:] - prefix[:-width]) * _powers(INVERSE, count)


def _powers(base: int, count: int) -> np.ndarray:
    """1, base, base², … modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _mix(values: np.ndarray) -> np.ndarray:
    """A fixed random-looking 64-bit number for each code point (the splitmix64 finalizer)."""
    x = values + np.uint64(BASE)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
