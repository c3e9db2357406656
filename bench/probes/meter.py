"""A thread that reads sources at a known period, and their joules between any two moments.

Power is integrated by trapezoids, with the two ends taken off the straight line between their
neighbours; of a counter the difference is taken, its ends in the same way. What lies between two
readings that are too far apart (the thread starved, or a sensor failed) is no measurement.

>>> integral([(0.0, 4.0), (1.0, 6.0), (2.0, 6.0)], 0.5, 2.0)    # watts at seconds -> joules
8.75
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

from clp_edge.bench.probes.files import ProbeFaultError
from clp_edge.bench.probes.source import Source

PERIOD_S = 0.1
# A window must hold this many periods, or its ends weigh too much.
LEAST_PERIODS = 5
# Readings further apart than this many periods leave a hole.
LONGEST_GAP = 5
Reading = tuple[float, float]


class Meter:
    """Readings of some sources; `start()` and `stop()` its thread, or call `tick()` yourself."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
        also: Callable[[], object] = lambda: None,
    ) -> None:
        """`also` is called at every tick, after the readings."""
        self.sources = tuple(sources)
        self.period_s = period_s
        self._clock = clock
        self._also = also
        self._readings: list[list[Reading]] = [[] for _ in self.sources]
        self._faults: list[str] = ["" for _ in self.sources]
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read every period from now on, in a thread of its own."""
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name="clp-edge-meter", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what was read stays."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def tick(self) -> None:
        """Read every source once. A source that fails keeps its reason.

        A window needs a tick before its start and one after its end.
        """
        with self._lock:
            for index, source in enumerate(self.sources):
                begun = self._clock()
                try:
                    value = source.read()
                except ProbeFaultError as error:
                    self._faults[index] = str(error)
                    continue
                # a sensor on a slow bus answers for the middle of the question
                self._readings[index].append(((begun + self._clock()) / 2, value))
            self._also()

    def joules(self, index: int, start: float, end: float) -> float:
        """Joules of one source from `start` to `end`. Raises ProbeFaultError: why not."""
        with self._lock:
            readings = list(self._readings[index])
            fault = self._faults[index]
        source = self.sources[index]
        because = f" ({fault})" if fault else ""
        if end - start < LEAST_PERIODS * self.period_s:
            raise ProbeFaultError(
                f"{end - start:.2f} s are too short for readings every {self.period_s:g} s"
            )
        found = around(readings, start, end)
        if len(found) < LEAST_PERIODS or found[0][0] > start or found[-1][0] < end:
            raise ProbeFaultError(f"too few readings of {source.name}{because}")
        gap = max(b[0] - a[0] for a, b in pairwise(found))
        if gap > LONGEST_GAP * self.period_s:
            raise ProbeFaultError(f"{source.name} gave no reading for {gap:.1f} s{because}")
        if source.kind == "watts":
            return integral(found, start, end)
        return at(found, end) - at(found, start)

    def forget(self, before: float) -> None:
        """Drop readings that nobody will ask for; the last one before that moment stays."""
        with self._lock:
            for readings in self._readings:
                keep = max(bisect_right([t for t, _ in readings], before) - 1, 0)
                del readings[:keep]

    def count(self, start: float, end: float) -> int:
        """Readings of the first source between the two moments."""
        with self._lock:
            readings = self._readings[0] if self._readings else []
            return sum(start <= t <= end for t, _ in readings)

    def _run(self) -> None:
        due = self._clock()
        while not self._ended.is_set():
            self.tick()
            due = max(due + self.period_s, self._clock())
            self._ended.wait(due - self._clock())


def around(readings: Sequence[Reading], start: float, end: float) -> list[Reading]:
    """The readings from `start` to `end`, with the neighbour outside on each side."""
    times = [t for t, _ in readings]
    first = max(bisect_right(times, start) - 1, 0)
    last = bisect_left(times, end)
    return list(readings[first : last + 1])


def at(readings: Sequence[Reading], moment: float) -> float:
    """The value at a moment, on the straight line between its neighbours."""
    times = [t for t, _ in readings]
    right = min(max(bisect_left(times, moment), 1), len(readings) - 1)
    (t0, v0), (t1, v1) = readings[right - 1], readings[right]
    share = (moment - t0) / (t1 - t0) if t1 > t0 else 0.0
    return v0 + (v1 - v0) * min(max(share, 0.0), 1.0)


def integral(readings: Sequence[Reading], start: float, end: float) -> float:
    """The area under the readings from `start` to `end`, by trapezoids."""
    inside = [reading for reading in readings if start < reading[0] < end]
    points = [(start, at(readings, start)), *inside, (end, at(readings, end))]
    pairs = pairwise(points)
    return sum((t1 - t0) * (v0 + v1) / 2 for (t0, v0), (t1, v1) in pairs)
