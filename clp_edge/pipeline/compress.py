"""compress(): preflight, then every stage in order, then the report.

The frame around the stages (`stages/`): which have to run, how long and how large they were, and
the report at the end. A stage that was finished with the same key is read back instead.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import clp_edge
from clp_edge.config import CompressConfig
from clp_edge.errors import ClpEdgeError
from clp_edge.pipeline.folder import OutputFolder
from clp_edge.pipeline.memory import PeakMemory
from clp_edge.pipeline.preflight import Plan, preflight
from clp_edge.pipeline.stage import Context, Ground, Stage, stage_keys
from clp_edge.pipeline.stages import (
    STAGES,
    bench,
    calibrate,
    evaluate,
    export,
    heal,
    search,
    text,
)
from clp_edge.progress import Observer, Quiet
from clp_edge.records import ModelRecord, RecordError, from_plain, to_plain
from clp_edge.report import build_report, validate, write_report


@dataclass(frozen=True)
class Outcome:
    """A finished run: its report, its folder, and whether it had been run before."""

    report: dict[str, Any]
    out: Path
    reused: bool


def compress(
    config: CompressConfig, *, observer: Observer | None = None, plan: Plan | None = None
) -> Outcome:
    """Run the whole way, or what is left of it.

    Raises: PreflightError before any work; VerificationError (exit code 3) where a file does not do
        what the model does; other ClpEdgeErrors. An interrupted or failed run resumes.
    """
    return _Frame(config, observer or Quiet(), plan or preflight(config)).go()


class _Frame:
    """Runs what has to run, and remembers how long and how large it was."""

    def __init__(self, config: CompressConfig, observer: Observer, plan: Plan) -> None:
        self.config = config
        self.plan = plan
        self.observer = observer
        self.folder = OutputFolder.open(
            plan.out,
            hashes=stage_keys(STAGES, config, plan),
            about={
                "schema": 1,
                "version": clp_edge.__version__,
                "command": config.command,
                "config": config.as_json(),
                "source": plan.source.spec or plan.source.name,
                "seed": config.seed,
                "environment": environment(),
            },
            force=config.force,
            resume=config.resume,
        )
        self.context = Context(Ground.of(config, plan), self.folder, observer)
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float | None] = {}

    def go(self) -> Outcome:
        torch.set_num_threads(self.plan.threads)
        if self.folder.finished and all(self._stored(stage) is not None for stage in STAGES):
            report = self._stored_report()
            if report is not None:
                return Outcome(report, self.plan.out, reused=True)
        self.folder.begin()
        for name in self.folder.redone:
            self.observer.note(f"stage {name} is redone: what it depends on has changed")
        for warning in self.plan.warnings:
            self.observer.warn(warning)
        for number, stage in enumerate(STAGES, start=1):
            self._stage(number, stage)
        report = self._report()
        self.folder.own(write_report(report, self.plan.out))
        self.folder.finish()
        return Outcome(report, self.plan.out, reused=False)

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
            record, self.peaks[stage.name] = stored
            self.context.keep(stage, record)
            self.seconds[stage.name] = self.folder.state["stages"][stage.name]["seconds"]
            self.observer.note(f"[{number}/{len(STAGES)}] {stage.title}: done before, kept")
            return
        room = self.folder.clear_stage(stage.name)
        began = time.perf_counter()
        self.context.running = stage
        with (
            PeakMemory() as memory,
            self.observer.stage(number, len(STAGES), stage.title) as progress,
        ):
            given = stage.inputs(self.config, self.plan)
            record = stage.run(given, self.context, room, progress)
        self.context.running = None
        self.context.keep(stage, record)
        self.seconds[stage.name] = time.perf_counter() - began
        self.peaks[stage.name] = memory.peak_mib
        self.folder.store(
            stage.name,
            {"record": to_plain(record), "peak_memory_mib": memory.peak_mib},
            files=[self.plan.out / file for file in stage.files(record)],
            seconds=self.seconds[stage.name],
        )

    def _report(self) -> dict[str, Any]:
        record = self.context.record
        found, healed = record(search.STAGE), record(heal.STAGE)
        judged, timed = record(evaluate.STAGE), record(bench.STAGE).bench
        warnings = [*self.plan.warnings, *healed.notes]
        if found.near_tie:
            warnings.append("the two best windows are a near tie: their gap is within its error")
        if timed:
            warnings += timed.get("warnings", [])
        model = ModelRecord(
            source=self.plan.source.spec or self.plan.source.name,
            name=self.plan.source.name,
            architecture=self.plan.config.model_type,
            blocks=self.plan.blocks,
            parameters=self.plan.parameters,
            parameters_after=self.plan.kept_parameters,
        )
        return build_report(
            command=self.config.command,
            model=to_plain(model),
            seed=self.config.seed,
            evaluation=to_plain(record(text.STAGE)),
            search=to_plain(found),
            heal=to_plain(healed),
            quality=to_plain(judged.quality),
            artifacts=to_plain(record(export.STAGE).artifacts),
            bench=timed,
            seconds=self.seconds,
            peak_memory_mib=self.peaks,
            environment={**environment(), "calibration": record(calibrate.STAGE).origin},
            samples=to_plain(judged.samples),
            warnings=list(dict.fromkeys(warnings)),
        )

    def _stored_report(self) -> dict[str, Any] | None:
        try:
            report = json.loads((self.plan.out / "report.json").read_text())
            validate(report)
        except (OSError, ValueError, ClpEdgeError):
            return None
        return report


def environment() -> dict[str, str]:
    """Versions that the numbers depend on."""
    import importlib.metadata

    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("torch", "transformers", "gguf", "llama-cpp-python", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
