"""What a stage is: a name, what it needs, what it looks at, and the work that leaves a record.

A stage declares its inputs: a frozen dataclass made of the configuration and the plan. It gets
those values and no others, so its key - the hash by which a finished stage is found again - follows
from the declaration: the ground (model, versions, seed, device), its inputs, and the keys of the
stages that it needs. A stage that asks for the record of one it does not need is refused.

Adding a stage is one file in `stages/` and one line in `stages/__init__.py`.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

import clp_edge
from clp_edge.config import CompressConfig, digest
from clp_edge.heal.ranks import SINGLE, Ranks
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.precision import NO_AUTOCAST, Learning
from clp_edge.models.precision import choose as choose_learning
from clp_edge.models.source import Source, load_model
from clp_edge.pipeline.folder import STATE, OutputFolder
from clp_edge.pipeline.preflight import Plan
from clp_edge.progress import Observer, Progress

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


@dataclass(frozen=True)
class Stage(Generic[I, R]):
    """One step of the pipeline; `run` takes inputs, context, its own empty folder, progress."""

    name: str
    title: str
    needs: tuple[Stage[Any, Any], ...]
    """stages whose records it reads"""
    record: type[R]
    inputs: Callable[[Any, Any], I]
    """(config, plan) -> a frozen dataclass, all that the stage may look at; a field may say in its
    metadata how it enters the key, see `key_of`"""
    run: Callable[[I, Context, Path, Progress], R]
    files: Callable[[R], Sequence[str]] = lambda record: ()
    """what it wrote outside its own folder, relative to the output folder"""


def keyed_by(part: Callable[[Any], Any]) -> dict[str, Any]:
    """Metadata of a field that enters the key through `part` of it (a text through its sha256)."""
    return {"key": part}


UNKEYED = keyed_by(lambda value: None)
"""Metadata of a field that a stage may look at although it does not change the result (threads)."""


def key_of(inputs: Any) -> dict[str, Any]:
    """Field name -> what of it enters the stage's key."""
    found = {}
    for row in dataclasses.fields(inputs):
        value = getattr(inputs, row.name)
        through = row.metadata.get("key")
        if through is not None:
            value = through(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        found[row.name] = value
    return found


@dataclass(frozen=True)
class Ground:
    """What every stage stands on."""

    source: Source
    fingerprint: str
    tokenizer: Any
    seed: int
    device: str
    compute: torch.dtype
    """what torch computes in"""
    stored: torch.dtype
    """what the source keeps its weights in, and so the healed folder"""
    learning: Learning = NO_AUTOCAST
    """what the stages that learn run under"""

    @classmethod
    def of(cls, config: CompressConfig, plan: Plan) -> Ground:
        return cls(
            source=plan.source,
            fingerprint=plan.fingerprint,
            tokenizer=plan.tokenizer,
            seed=config.seed,
            device=plan.device,
            compute=plan.compute,
            stored=plan.stored,
            learning=choose_learning(config.dtype, plan.device, kept=_kept_learning(config, plan)),
        )

    @property
    def key(self) -> str:
        """The hash of all of it, with the versions that compute."""
        import transformers

        return digest(
            clp_edge.__version__,
            torch.__version__,
            transformers.__version__,
            self.fingerprint,
            self.seed,
            self.device,
            str(self.compute),
            str(self.stored),
            str(self.learning.dtype),
        )


def _kept_learning(config: CompressConfig, plan: Plan) -> str | None:
    """What the run that is resumed in this folder began with, on this machine or another."""
    if config.force or not config.resume:
        return None
    try:
        said = json.loads((plan.out / STATE).read_text())["learning"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if isinstance(said, str) else None


def stage_keys(
    stages: Sequence[Stage[Any, Any]], config: Any, plan: Any, ground: Ground
) -> dict[str, str]:
    """The key of every stage, in order; known before any work."""
    keys: dict[str, str] = {}
    for stage in stages:
        below = {need.name: keys[need.name] for need in stage.needs}
        given = key_of(stage.inputs(config, plan))
        keys[stage.name] = digest(ground.key, stage.name, given, below)
    return keys


class Context:
    """What the stages of one run share: the ground, the folder, earlier records, the dense model.

    The model is loaded when a stage needs it, and let go.
    """

    def __init__(
        self, ground: Ground, folder: OutputFolder, observer: Observer, ranks: Ranks = SINGLE
    ) -> None:
        self.ground = ground
        self.folder = folder
        self.observer = observer
        self.ranks = ranks
        """this process, the first, among those that heal along (pipeline/shared_healing.py)"""
        self.running: Stage[Any, Any] | None = None
        """the stage at work, which may read what it declared; None: the frame, which may read all
        """
        self._records: dict[str, Any] = {}
        self._dense: Any = None

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.folder.path

    def keep(self, stage: Stage[Any, R], record: R) -> None:
        """A stage is done, now or by an earlier run."""
        self._records[stage.name] = record

    def record(self, stage: Stage[Any, R]) -> R:
        """What a stage left. Raises LookupError where the running stage does not need it."""
        self._check(stage)
        return self._records[stage.name]

    def stage_folder(self, stage: Stage[Any, Any]) -> Path:
        """Where a stage keeps its tensors. Raises LookupError as `record` does."""
        self._check(stage)
        return self.folder.stage_folder(stage.name)

    def _check(self, stage: Stage[Any, Any]) -> None:
        running = self.running
        if running is not None and stage not in running.needs:
            raise LookupError(f"stage {running.name} reads {stage.name} and does not declare it")

    def model(self) -> Any:
        """The dense model, loaded when it is first needed."""
        if self._dense is None:
            ground = self.ground
            self._dense = load_model(ground.source, dtype=ground.compute, device=ground.device)
        return self._dense

    def body(self) -> Anatomy:
        """The dense model taken apart."""
        return dissect(self.model())

    def learner(self) -> Anatomy:
        """The dense model as the stages that learn run it; `body` is what reports measure."""
        return dataclasses.replace(self.body(), autocast=self.ground.learning.dtype)

    def let_go(self) -> None:
        """Free the dense model before a child process needs the memory."""
        self._dense = None
        gc.collect()
