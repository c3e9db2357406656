"""What a rung is: one way to mend the cut, that folds into weights the model has.

A rung changes the tail in place and says what held-back KL came of it. It does not decide whether
it stays: the ladder keeps what lowers held-back KL and takes back the rest. A new rung is one file
with an object of this class and one row of RUNGS in clp_edge/registry.py, in the place where it is
climbed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from clp_edge.heal.collect import TailInputs
from clp_edge.heal.held import Judged, judge_tail
from clp_edge.heal.ranks import SINGLE, Ranks
from clp_edge.heal.tail import Tail
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress
from clp_edge.segment import Segment


@dataclass(frozen=True)
class TuningSettings:
    """Of the rungs that train. Defaults as run on the demo model (docs/LOG.md)."""

    steps: int = 100
    """at most, of the tuning on KL; and no more than `epochs` of the text"""
    tokens: int = 512
    """of one step"""
    rate: float = 5e-3
    """peak learning rate of a tensor as a share of its RMS at the start: the same for a model with
    small weights. An absolute 1e-3 suits the demo model (RMS 0.2) and wrecks one with 0.02"""
    warmup: int = 10
    weight_decay: float = 0.0
    clip: float = 0.2
    """largest norm of a gradient whose tensors are each multiplied by their RMS"""
    checks: int = 5
    """how often held-back KL is measured on the way; training stops after two that do not fall"""
    epochs: float = 1.5
    local_steps: int | None = None
    """at most, of the local rung, a third as dear as one on KL; None: three times `steps`"""
    at_once: int = 2048
    """tokens that are run at once; a step of more adds up its gradient from several parts"""


class Watcher(Protocol):
    """What a rung wants to know of the dense pass over the calibration text."""

    def add(self, inner: Tensor, at_cut: Tensor, target: Tensor) -> None:
        """One batch, flat over tokens: the MLP intermediate of block s-1 (what the norm behind the
        MLP reads where there is one), h_s and h_{s+n}."""
        ...


@dataclass(frozen=True)
class Job:
    """What a rung has to work with."""

    tail: Tail
    """the cut model from its first changing block on, as the rungs before left it; changed in
    place"""
    fit: TailInputs
    """the text to learn from"""
    held: TailInputs
    """held-back text, to choose by"""
    judged: Judged
    """the tail as it is, on the held-back text"""
    settings: TuningSettings = TuningSettings()
    seed: int = 0
    batch: int = 4
    """sequences run at once where no gradient is taken"""
    watchers: Mapping[str, Watcher] = field(default_factory=dict)
    """by rung, what `Rung.watch` returned, fed with the whole of `fit`"""
    kept: tuple[str, ...] = ()
    """the rungs before this one that stayed"""
    ranks: Ranks = SINGLE
    """the processes that do this very job together; each sees all of `fit` and `held`"""

    @property
    def kl(self) -> float:
        """Of the tail as the rungs before left it, on the held-back text, nats per token."""
        return self.judged.kl

    def judge(self) -> Judged:
        """The tail as it is now on the held-back text; KL may be NaN.

        All processes ask together, and get the same numbers.
        """
        return judge_tail(self.held, self.tail, batch=self.batch, ranks=self.ranks)


@dataclass(frozen=True)
class Mended:
    """What a rung brought."""

    judged: Judged | None
    """the tail as the rung left it, on the held-back text; None: it was destroyed, or never judged
    with a number"""
    facts: dict[str, Any] = field(default_factory=dict)
    """what there is to know besides, as plain JSON values"""

    @property
    def kl(self) -> float:
        """Held-back KL; infinite where there is none."""
        return math.inf if self.judged is None else self.judged.kl


class Rung(ABC):
    """One step of the ladder."""

    name: ClassVar[str]
    """as in RUNGS"""
    noun: ClassVar[str]
    """in a sentence: "the refit was thrown away" """
    trains: ClassVar[bool] = False
    """whether it takes steps along gradients; the others are closed forms"""

    def refuses(self, body: Anatomy, segment: Segment) -> str | None:
        """Why it does not apply to this cut, or None."""
        return None

    def passes(self, tail: Tail) -> str | None:
        """Why it has nothing to do with these blocks, or None."""
        return None

    def reach(self, tail: Tail) -> int:
        """The block of the dense model whose input it wants to know, s+n at least."""
        return tail.segment.last + 1

    def watch(self, body: Anatomy, segment: Segment) -> Watcher | None:
        """What is to be fed during the dense pass, if anything; asked for where it applies."""
        return None

    @abstractmethod
    def mend(self, job: Job, progress: Progress) -> Mended:
        """Change `job.tail` for the better. The dense model is left as it was."""
