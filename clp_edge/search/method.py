"""What a search method is: it predicts what it would cost, and proposes windows to be judged.

It decides nothing: the driver judges what was proposed, by exact KL or by what a refit leaves of
it. A new method is one file with an object of this protocol and one row of METHODS in
clp_edge/registry.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress
from clp_edge.search.cost import Cost, Size
from clp_edge.search.judge import Judge
from clp_edge.search.states import BlockStates
from clp_edge.segment import Segment


@dataclass(frozen=True)
class Problem:
    """Which window of `count` blocks goes, and all that a method may look at."""

    body: Anatomy
    states: BlockStates
    """of the dense pass over the calibration text, which every method stands on"""
    count: int
    starts: range
    """where a window may begin; those that a target cannot express are still among them"""
    cost: Cost
    seed: int = 0
    allowed: Callable[[Segment], bool] = lambda segment: True
    """whether every target that was asked for can express the model without this segment"""
    judge: Judge = field(init=False, repr=False, compare=False)
    """exact KL of hard windows; what a method looks at through it is not measured again"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "judge", Judge(self.body, self.states, self.cost))

    @property
    def size(self) -> Size:
        """How large it is."""
        return Size(self.cost, self.count, self.starts, self.states.sequences, self.states.tokens)

    def windows(self) -> tuple[Segment, ...]:
        """Every window that may be chosen, by start."""
        segments = (Segment.from_start(start, self.count) for start in self.starts)
        return tuple(segment for segment in segments if self.allowed(segment))


@dataclass(frozen=True)
class Trace:
    """How a descent came to its answer."""

    choice: Segment
    """the method's own answer, before the judge"""
    candidates: tuple[Segment, ...]
    """what the exact judge should see, the best first"""
    paths: tuple[tuple[float, ...], ...]
    """the window's real-valued start after every step, one path a start"""
    losses: tuple[tuple[float, ...], ...]
    """KL under the soft gate at every step, nats per token"""
    forward_equivalents: float


@dataclass(frozen=True)
class Proposal:
    """The windows that a method wants judged."""

    candidates: tuple[Segment, ...]
    """the best guess first; at least one, of `Problem.windows()`"""
    spent: float
    """forward equivalents (search/cost.py), without the dense pass and what the judge did"""
    trace: Trace | None = None
    ranked: bool = True
    """whether the order says something; False where the method leaves the choice to the judge, so
    that no regret can be had"""


class Method(Protocol):
    """A way to search."""

    def predict(self, size: Size) -> float:
        """Forward equivalents of the whole search, the dense pass and the judge included."""
        ...

    def propose(self, problem: Problem, progress: Progress) -> Proposal:
        """The windows to be judged. The model is left as it was."""
        ...
