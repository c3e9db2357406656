"""What a rung is: one way to mend the cut, that folds into weights the model has.

A rung changes the tail in place and says what held-back KL came of it. It does not decide whether
it stays: the ladder keeps what lowers held-back KL and takes back the rest. A new rung is one file
with an object of this class and one row of RUNGS in clp_edge/registry.py, in the place where it is
climbed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from clp_edge.heal.collect import TailInputs, tail_kl
from clp_edge.heal.tail import Tail
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress
from clp_edge.segment import Segment


@dataclass(frozen=True)
class TuningSettings:
    """Of the rungs that train. Defaults as run on the demo model (docs/LOG.md). With 112 self-
    written sequences 1e-3 did better than 3e-4 on unseen text; with 28 it swings, 3e-4 is steady.
    """

    steps: int = 100
    tokens: int = 512
    """of one step"""
    learning_rate: float = 1e-3
    warmup: int = 10
    weight_decay: float = 0.0
    clip: float = 1.0
    checks: int = 4
    """how often held-back KL is measured on the way"""


class Watcher(Protocol):
    """What a rung wants to know of the dense pass over the calibration text."""

    def add(self, inner: Tensor, at_cut: Tensor, target: Tensor) -> None:
        """One batch, flat over tokens: the MLP intermediate of block s-1, h_s and h_{s+n}."""
        ...


@dataclass(frozen=True)
class Job:
    """What a rung has to work with."""

    tail: Tail
    """the cut model from the first endpoint on, as the rungs before left it; changed in place"""
    fit: TailInputs
    """the text to learn from"""
    held: TailInputs
    """held-back text, to choose by"""
    kl: float
    """of the tail as it is, on the held-back text"""
    settings: TuningSettings = TuningSettings()
    seed: int = 0
    batch: int = 4
    """sequences run at once where no gradient is taken"""
    watchers: Mapping[str, Watcher] = field(default_factory=dict)
    """by rung, what `Rung.watch` returned, fed with the whole of `fit`"""

    def held_kl(self) -> float:
        """Held-back KL of the tail as it is now, nats per token; may be NaN."""
        return tail_kl(self.tail.body, self.held, self.tail, batch=self.batch)


@dataclass(frozen=True)
class Mended:
    """What a rung brought."""

    kl: float
    """of the tail as the rung left it, on the held-back text; NaN or infinite: it destroyed it"""
    facts: dict[str, Any] = field(default_factory=dict)
    """what there is to know besides, as plain JSON values"""


class Rung(ABC):
    """One step of the ladder."""

    name: ClassVar[str]
    """as in RUNGS"""
    noun: ClassVar[str]
    """in a sentence: "the refit was thrown away" """

    def refuses(self, body: Anatomy, segment: Segment) -> str | None:
        """Why it does not apply to this cut, or None."""
        return None

    def watch(self, body: Anatomy, segment: Segment) -> Watcher | None:
        """What is to be fed during the dense pass, if anything; asked for where it applies."""
        return None

    @abstractmethod
    def mend(self, job: Job, progress: Progress) -> Mended:
        """Change `job.tail` for the better. The dense model is left as it was."""
