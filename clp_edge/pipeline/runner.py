"""Run stages in an output folder: which have to run, how long and how large they were.

Every verb that computes is a tuple of stages and an end: the runner skips what an earlier run of
the same key left, runs the rest in order, and the end writes the documents people read.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

import clp_edge
from clp_edge.heal.ranks import SINGLE, Ranks
from clp_edge.kernels.dispatch import describe
from clp_edge.pipeline.folder import OutputFolder
from clp_edge.pipeline.memory import PeakMemory
from clp_edge.pipeline.stage import Context, Ground, Stage, stage_keys
from clp_edge.progress import Observer
from clp_edge.records import RecordError, from_plain, to_plain

T = TypeVar("T")


@dataclass
class Ledger:
    """What each stage cost: seconds of wall time, and peak resident memory where measured."""

    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending(Generic[T]):
    """What a verb leaves at the end of its stages."""

    write: Callable[[Context, Ledger], tuple[T, Iterable[Path]]]
    """make the documents; returns the result and the files written"""
    read: Callable[[Path], T | None]
    """the result of a finished run in that folder; None where its documents are not whole"""


class Runner:
    """One command over one output folder."""

    def __init__(
        self,
        stages: Sequence[Stage[Any, Any]],
        config: Any,
        plan: Any,
        observer: Observer,
        *,
        ground: Ground | None = None,
        ranks: Ranks = SINGLE,
    ) -> None:
        """Open the folder; nothing is written yet.

        Args: config with out, force, resume, seed, command and as_json(); plan with out, source,
            threads and warnings. Raises ClpEdgeError where the folder cannot be taken.
        """
        self.stages = tuple(stages)
        self.config = config
        self.plan = plan
        self.observer = observer
        ground = ground or Ground.of(config, plan)
        self.folder = OutputFolder.open(
            plan.out,
            hashes=stage_keys(self.stages, config, plan, ground),
            about={
                "schema": 1,
                "version": clp_edge.__version__,
                "command": config.command,
                "config": config.as_json(),
                "source": plan.source.spec or plan.source.name,
                "seed": config.seed,
                "environment": environment(),
                "learning": ground.learning.name,
                **_remembered(plan),
            },
            force=config.force,
            resume=config.resume,
        )
        self.context = Context(ground, self.folder, observer, ranks)
        self.ledger = Ledger()

    def go(self, ending: Ending[T]) -> tuple[T, bool]:
        """Run what has to run. Returns the result, and whether it had all been done before."""
        torch.set_num_threads(self.plan.threads)
        if self.folder.finished and all(self._stored(stage) for stage in self.stages):
            before = ending.read(self.plan.out)
            if before is not None:
                return before, True
        with self.folder:
            self.work()
            result, files = ending.write(self.context, self.ledger)
            self.folder.own(files)
            self.folder.finish()
        return result, False

    def work(self) -> Context:
        """Run what has to run and leave the folder unfinished, and ours until its `release`."""
        torch.set_num_threads(self.plan.threads)
        self.folder.begin()
        for name in self.folder.redone:
            self.observer.note(f"stage {name} is redone: what it depends on has changed")
        for warning in (*self.plan.warnings, *self.folder.warnings):
            self.observer.warn(warning)
        for number, stage in enumerate(self.stages, start=1):
            self._stage(number, stage)
        return self.context

    def _stored(self, stage: Stage[Any, Any]) -> tuple[Any, float | None] | None:
        """A finished stage's record and its peak memory; None where it has to run."""
        found = self.folder.result(stage.name)
        if found is None:
            return None
        try:
            return from_plain(found.get("record"), stage.record), found.get("peak_memory_mib")
        except RecordError:
            return None  # another version's: the stage runs again

    def _stage(self, number: int, stage: Stage[Any, Any]) -> None:
        stored = self._stored(stage) if self.config.resume else None
        if stored is not None:
            record, self.ledger.peaks[stage.name] = stored
            self.context.keep(stage, record)
            self.ledger.seconds[stage.name] = self.folder.state["stages"][stage.name]["seconds"]
            self.observer.note(f"[{number}/{len(self.stages)}] {stage.title}: done before, kept")
            return
        room = self.folder.clear_stage(stage.name)
        began = time.perf_counter()
        self.context.running = stage
        with (
            PeakMemory() as memory,
            self.observer.stage(number, len(self.stages), stage.title) as progress,
        ):
            given = stage.inputs(self.config, self.plan)
            record = stage.run(given, self.context, room, progress)
        self.context.running = None
        self.context.keep(stage, record)
        self.ledger.seconds[stage.name] = time.perf_counter() - began
        self.ledger.peaks[stage.name] = memory.peak_mib
        self.folder.store(
            stage.name,
            {"record": to_plain(record), "peak_memory_mib": memory.peak_mib},
            files=[self.plan.out / file for file in stage.files(record)],
            seconds=self.ledger.seconds[stage.name],
        )


def _remembered(plan: Any) -> dict[str, Any]:
    """What was measured to make the plan, so that a resumed run makes the same one."""
    bandwidth = getattr(plan, "bandwidth", None)
    return {} if bandwidth is None else {"memory_bandwidth": to_plain(bandwidth)}


def environment() -> dict[str, str]:
    """Versions that the numbers depend on, and the kernels with the reason for them."""
    import importlib.metadata

    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in (
        "torch", "transformers", "gguf", "llama-cpp-python", "onnxruntime", "onnxruntime-genai",
        "numpy",
    ):  # fmt: skip
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {**versions, "kernels": describe()}
