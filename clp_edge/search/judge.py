"""The judge of every search: exact KL of hard windows, sequence by sequence, never measured twice.

Window [s, s+n) on one sequence needs the blocks s+n ... L-1 and the head only, from the stored
h_s. What was measured is kept, so a method may look at many windows on the first sequences (common
random numbers: all windows see the same ones) and the driver then judges the few that are left on
the rest. What all that cost is counted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.search.cost import Cost
from clp_edge.search.states import BlockStates
from clp_edge.search.windows import WindowScore, window_kl
from clp_edge.segment import Segment


@dataclass
class Judge:
    """Exact KL of windows on the sequences of `states`, in their order."""

    body: Anatomy
    states: BlockStates
    cost: Cost
    batch: int = 4
    gone: Segment | None = None
    """a run that is not there either; `states` are those of the model without it"""
    _seen: dict[Segment, list[float]] = field(default_factory=dict, repr=False)

    def look(
        self, segments: Sequence[Segment], sequences: int, progress: Progress = silent
    ) -> np.ndarray:
        """KL of these windows on the first `sequences` sequences: (windows, sequences) float64."""
        blocks = len(self.body)
        missing = {
            segment: max(0, sequences - len(self._seen.get(segment, ()))) for segment in segments
        }
        work = sum(rows * (blocks - segment.last) for segment, rows in missing.items())
        done = 0
        for segment, rows in missing.items():
            if not rows:
                continue
            known = self._seen.setdefault(segment, [])
            for start in range(len(known), sequences, self.batch):
                stop = min(start + self.batch, sequences)
                known.extend(window_kl(self.body, self.states, segment, start, stop, self.gone))
                done += (stop - start) * (blocks - segment.last)
                progress(done, work, f"blocks {segment}")
        return np.array([self._seen[segment][:sequences] for segment in segments])

    def scores(self, segments: Sequence[Segment], progress: Progress = silent) -> list[WindowScore]:
        """These windows judged on every sequence, in the order given."""
        self.look(segments, self.states.sequences, progress)
        return [self._score(segment) for segment in segments]

    def partial(self, without: Iterable[Segment] = ()) -> list[WindowScore]:
        """The windows that were looked at and left before the last sequence, by start."""
        skip = set(without)
        return [
            self._score(segment)
            for segment, values in sorted(self._seen.items())
            if segment not in skip and len(values) < self.states.sequences
        ]

    @property
    def spent(self) -> float:
        """Forward equivalents of all that was looked at, the teacher's head included."""
        cost, total = self.cost, 0.0
        for segment, values in self._seen.items():
            blocks = cost.blocks - segment.last - 1
            if self.gone is not None and self.gone.first > segment.last:
                blocks -= self.gone.count
            total += len(values) * (blocks * cost.block + cost.head)
        return total / (self.states.sequences * cost.forward) + cost.head / cost.forward

    def _score(self, segment: Segment) -> WindowScore:
        return WindowScore.of(segment, self._seen[segment])


def paired(matrix: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """The row of least mean, and every row's mean excess over it with its paired standard error.

    Args: matrix (rows, samples). Standard errors are infinite where there is one sample.
    """
    means = matrix.mean(axis=1)
    leader = int(np.argmin(np.where(np.isfinite(means), means, np.inf)))
    gaps = matrix - matrix[leader]
    samples = matrix.shape[1]
    if samples < 2:
        return leader, gaps.mean(axis=1), np.full(len(matrix), np.inf)
    return leader, gaps.mean(axis=1), gaps.std(axis=1, ddof=1) / np.sqrt(samples)
