"""compress(): preflight, calibrate, search, heal, cut, export, evaluate, bench, report.

The frame around the stages: which have to run, in what order, how long and how large, and the
report at the end. The stages themselves are in learning.py, making.py and measuring.py; a finished
stage is read back instead of run again.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import clp_edge
from clp_edge import data
from clp_edge.config import CompressConfig, digest
from clp_edge.errors import ClpEdgeError
from clp_edge.pipeline.folder import OutputFolder
from clp_edge.pipeline.learning import calibrate_stage, heal_stage, search_stage, text_stage
from clp_edge.pipeline.making import cut_stage, export_stage
from clp_edge.pipeline.measuring import bench_stage, evaluate_stage
from clp_edge.pipeline.memory import PeakMemory
from clp_edge.pipeline.preflight import Plan, preflight
from clp_edge.pipeline.run import Run
from clp_edge.progress import Observer, Progress, Quiet
from clp_edge.report import build_report, validate, write_report

Stage = Callable[[Run, Path, Progress], dict[str, Any]]
STAGES: dict[str, tuple[str, Stage]] = {
    "calibrate": ("Calibration text", calibrate_stage),
    "text": ("Evaluation text", text_stage),
    "search": ("Search", search_stage),
    "heal": ("Heal", heal_stage),
    "cut": ("Cut", cut_stage),
    "export": ("Export and verify", export_stage),
    "evaluate": ("Evaluate", evaluate_stage),
    "bench": ("Bench", bench_stage),
}


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


def stage_hashes(config: CompressConfig, plan: Plan) -> dict[str, str]:
    """The hash of all that each stage depends on; known before any work."""
    import transformers

    ground = digest(
        clp_edge.__version__,
        torch.__version__,
        transformers.__version__,
        plan.fingerprint,
        config.seed,
        plan.device,
        str(plan.compute),
    )
    names = [p.target.name for p in plan.targets]
    documents = plan.documents.sha256 if plan.documents else None
    evaluation = asdict(config.evaluation)
    if config.evaluation.text is not None:
        evaluation["sha256"] = data.read_documents(config.evaluation.text, cut=False).sha256
    calibrate = digest(ground, documents, asdict(config.calibration), plan.sequence_length)
    text = digest(calibrate, evaluation, plan.evaluation_length)
    found = digest(calibrate, asdict(config.search), asdict(config.cut), plan.count)
    healed = digest(found, asdict(config.heal))
    cut = digest(healed, str(plan.stored))
    files = digest(cut, names, plan.name, config.bench.wanted)
    return {
        "calibrate": calibrate,
        "text": text,
        "search": found,
        "heal": healed,
        "cut": cut,
        "export": files,
        "evaluate": digest(files, text, plan.threads),
        "bench": digest(files, asdict(config.bench), plan.threads),
    }


class _Frame:
    """Runs what has to run, and remembers how long and how large it was."""

    def __init__(self, config: CompressConfig, observer: Observer, plan: Plan) -> None:
        self.config = config
        self.plan = plan
        self.observer = observer
        self.folder = OutputFolder.open(
            plan.out,
            hashes=stage_hashes(config, plan),
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
        self.run = Run(config, plan, observer, self.folder)
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float | None] = {}
        self.warnings: list[str] = list(plan.warnings)

    def go(self) -> Outcome:
        torch.set_num_threads(self.plan.threads)
        if self.folder.finished and all(self.folder.result(n) is not None for n in STAGES):
            report = self._stored_report()
            if report is not None:
                return Outcome(report, self.plan.out, reused=True)
        self.folder.begin()
        for name in self.folder.redone:
            self.observer.note(f"stage {name} is redone: what it depends on has changed")
        for warning in self.warnings:
            self.observer.warn(warning)
        for number, name in enumerate(STAGES, start=1):
            self._stage(number, name)
        report = self._report()
        self.folder.own(write_report(report, self.plan.out))
        self.folder.finish()
        return Outcome(report, self.plan.out, reused=False)

    def _stage(self, number: int, name: str) -> None:
        title, work = STAGES[name]
        stored = self.folder.result(name) if self.config.resume else None
        if stored is not None:
            self.run.results[name] = stored
            self.seconds[name] = self.folder.state["stages"][name]["seconds"]
            self.peaks[name] = stored.get("peak_memory_mib")
            self.observer.note(f"[{number}/{len(STAGES)}] {title}: done before, kept")
            return
        room = self.folder.clear_stage(name)
        began = time.perf_counter()
        with (
            PeakMemory() as memory,
            self.observer.stage(number, len(STAGES), title) as progress,
        ):
            result = work(self.run, room, progress)
        self.seconds[name] = time.perf_counter() - began
        self.peaks[name] = result["peak_memory_mib"] = memory.peak_mib
        self.run.results[name] = result
        files = [self.plan.out / file for file in result.get("files", ())]
        self.folder.store(name, result, files=files, seconds=self.seconds[name])

    def _report(self) -> dict[str, Any]:
        found = self.run.results
        measured = found["bench"]["bench"]
        warnings = [*self.warnings, *found["heal"]["notes"]]
        if found["search"]["near_tie"]:
            warnings.append("the two best windows are a near tie: their gap is within its error")
        if measured:
            warnings += measured.get("warnings", [])
        quality = {
            name: {**value, "tasks": value.get("tasks", {})}
            for name, value in found["evaluate"]["quality"].items()
        }
        for side, checked in found["evaluate"]["sanity"].items():
            quality[side]["tasks"] = {**quality[side]["tasks"], "sanity": checked}
        return build_report(
            command=self.config.command,
            model={
                "source": self.plan.source.spec or self.plan.source.name,
                "name": self.plan.source.name,
                "architecture": self.plan.config.model_type,
                "blocks": self.plan.blocks,
                "parameters": self.plan.parameters,
                "parameters_after": self.plan.kept_parameters,
            },
            seed=self.config.seed,
            evaluation=found["text"],
            search=found["search"],
            heal=found["heal"],
            quality=quality,
            artifacts=found["export"]["artifacts"],
            bench=measured,
            seconds=self.seconds,
            peak_memory_mib=self.peaks,
            environment={**environment(), "calibration": found["calibrate"]["origin"]},
            samples=found["evaluate"]["samples"],
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
