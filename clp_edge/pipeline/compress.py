"""compress(): preflight, calibrate, search, heal, cut, export, evaluate, bench, report.

Each stage is a method that takes what earlier stages left and returns plain JSON (tensors go to
safetensors files in the stage's folder), so that a finished stage is read back instead of run
again. Models are loaded when a stage needs them and let go before children run.
"""

from __future__ import annotations

import copy
import gc
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import clp_edge
from clp_edge import data, evaluate, export
from clp_edge.bench.runner import BenchItem, BenchSettings, run_bench
from clp_edge.config import CompressConfig, digest
from clp_edge.errors import ClpEdgeError
from clp_edge.heal import HealResult, TuningSettings, heal
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.source import load_model, locate, save_model
from clp_edge.models.surgery import remove_blocks
from clp_edge.pipeline.folder import OutputFolder
from clp_edge.pipeline.memory import PeakMemory
from clp_edge.pipeline.preflight import Plan, preflight
from clp_edge.progress import Observer, Progress, Quiet
from clp_edge.report import build_report, write_report
from clp_edge.runtimes import open_artifact
from clp_edge.search import search
from clp_edge.segment import Segment

SAMPLE_PROMPT = "What is the capital of France, and what is it known for?"
STAGES = ("calibrate", "text", "search", "heal", "cut", "export", "evaluate", "bench")
TITLES = {
    "calibrate": "Calibration text",
    "text": "Evaluation text",
    "search": "Search",
    "heal": "Heal",
    "cut": "Cut",
    "export": "Export and verify",
    "evaluate": "Evaluate",
    "bench": "Bench",
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
    return _Run(config, observer or Quiet(), plan or preflight(config)).go()


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


class _Run:
    """One run over one output folder."""

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
        self.results: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float | None] = {}
        self.warnings: list[str] = list(plan.warnings)
        self._dense: Any = None

    def go(self) -> Outcome:
        torch.set_num_threads(self.plan.threads)
        if self.folder.finished and all(self.folder.result(n) is not None for n in STAGES):
            report = self._stored_report()
            if report is not None:
                return Outcome(report, self.plan.out, reused=True)
        self.folder.begin()
        for name in self.folder.redone:
            self.observer.note(f"stage {name} is redone: what it depends on has changed")
        work: dict[str, Callable[[Path, Progress], dict[str, Any]]] = {
            "calibrate": self._calibrate,
            "text": self._text,
            "search": self._search,
            "heal": self._heal,
            "cut": self._cut,
            "export": self._export,
            "evaluate": self._evaluate,
            "bench": self._bench,
        }
        for warning in self.warnings:
            self.observer.warn(warning)
        for number, name in enumerate(STAGES, start=1):
            self._stage(number, name, work[name])
        report = self._report()
        self.folder.own(write_report(report, self.plan.out))
        self.folder.finish()
        return Outcome(report, self.plan.out, reused=False)

    def _stage(
        self, number: int, name: str, work: Callable[[Path, Progress], dict[str, Any]]
    ) -> None:
        stored = self.folder.result(name) if self.config.resume else None
        if stored is not None:
            self.results[name] = stored
            self.seconds[name] = self.folder.state["stages"][name]["seconds"]
            self.peaks[name] = stored.get("peak_memory_mib")
            self.observer.note(f"[{number}/{len(STAGES)}] {TITLES[name]}: done before, kept")
            return
        room = self.folder.clear_stage(name)
        began = time.perf_counter()
        with (
            PeakMemory() as memory,
            self.observer.stage(number, len(STAGES), TITLES[name]) as progress,
        ):
            result = work(room, progress)
        self.seconds[name] = time.perf_counter() - began
        self.peaks[name] = result["peak_memory_mib"] = memory.peak_mib
        self.results[name] = result
        files = [self.plan.out / file for file in result.get("files", ())]
        self.folder.store(name, result, files=files, seconds=self.seconds[name])

    # --- models -------------------------------------------------------------------------------

    def _model(self) -> Any:
        """The dense model, loaded when it is first needed."""
        if self._dense is None:
            self._dense = load_model(
                self.plan.source, dtype=self.plan.compute, device=self.plan.device
            )
        return self._dense

    def _body(self) -> Anatomy:
        return dissect(self._model())

    def _let_go(self) -> None:
        """Free the dense model before a child process needs the memory."""
        self._dense = None
        gc.collect()

    def _pruned(self) -> Any:
        """The dense model without the segment, sharing its tensors."""
        model = self._model()
        shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
        pruned = copy.deepcopy(model, memo=dict(shared))
        remove_blocks(pruned, self._segment.blocks)
        return pruned

    # --- stages -------------------------------------------------------------------------------

    def _calibrate(self, room: Path, progress: Progress) -> dict[str, Any]:
        settings = self.config.calibration
        if self.plan.documents is not None:
            found = data.calibrate(
                self.plan.documents,
                self.plan.tokenizer,
                sequences=settings.sequences,
                length=self.plan.sequence_length,
                seed=self.config.seed,
            )
        else:
            found = data.write_own_text(
                self._model(),
                self.plan.tokenizer,
                sequences=settings.sequences,
                length=self.plan.sequence_length,
                seed=self.config.seed,
                progress=progress,
                cache_dir=cache_folder(),
                fingerprint=self.plan.fingerprint,
            )
        progress(1, 1, f"{found.sequences} sequences of {self.plan.sequence_length} tokens")
        parts = {"fit": found.fit, "select": found.select, "report": found.report}
        save_file(parts, str(room / "calibration.safetensors"))
        return {
            "origin": found.origin,
            "sha256": found.sha256,
            "sequences": {name: len(ids) for name, ids in parts.items()},
            "fit_texts": found.fit_texts,
            "select_texts": found.select_texts,
            "report_texts": found.report_texts,
            "report_sequences": found.report_sequences,
        }

    @cached_property
    def _calibration(self) -> data.Calibration:
        said = self.results["calibrate"]
        parts = load_file(str(self.folder.stage_folder("calibrate") / "calibration.safetensors"))
        texts = ("fit_texts", "select_texts", "report_texts", "report_sequences")
        return data.Calibration(
            **parts,
            origin=said["origin"],
            sha256=said["sha256"],
            **{name: tuple(said[name]) for name in texts},
        )

    def _text(self, room: Path, progress: Progress) -> dict[str, Any]:
        settings = self.config.evaluation
        if settings.text is None:
            found = data.held_back(self._calibration)
        else:
            found = data.evaluation_text(
                settings.text,
                self.plan.tokenizer,
                sequences=settings.sequences,
                length=self.plan.evaluation_length,
                against=self._calibration,
            )
        progress(1, 1, f"{len(found.ids)} sequences of {found.ids.shape[1]} tokens")
        save_file({"ids": found.ids}, str(room / "evaluation.safetensors"))
        return {
            "text": found.origin,
            "sha256": found.sha256,
            "tokens": found.tokens,
            "sequence_length": int(found.ids.shape[1]),
            "removed_as_leaked": found.removed_as_leaked,
        }

    @cached_property
    def _evaluation_ids(self) -> Tensor:
        folder = self.folder.stage_folder("text")
        return load_file(str(folder / "evaluation.safetensors"))["ids"].to(self.plan.device)

    def _search(self, room: Path, progress: Progress) -> dict[str, Any]:
        given = self.config.cut.segment
        wanted = max(1, self.config.search.tokens // self.plan.sequence_length)
        ids = torch.cat([self._calibration.select, self._calibration.fit])[:wanted]
        found = search(
            self._body(),
            ids.to(self.plan.device),
            count=self.plan.count,
            method="exact" if given else self.config.search.method,
            seed=self.config.seed,
            allow_ends=given is not None,
            allowed=(lambda segment: segment == given) if given else (lambda segment: True),
            progress=progress,
        )
        return {
            "method": "given" if given else found.method,
            "reason": "the blocks were named with --blocks" if given else found.reason,
            "criterion": "raw",
            "segment": asdict(found.segment),
            "segments": [asdict(found.segment)],
            "dropped": list(found.segment.blocks),
            "kl_raw": found.kl_raw,
            "kl_healed": None,
            "windows": [
                {
                    **asdict(window.segment),
                    "kl_raw": window.kl,
                    "kl_raw_se": window.kl_se,
                    "kl_healed": None,
                }
                for window in found.windows
            ],
            "regret": None if given else found.regret,
            "stability": None if len(found.windows) < 2 else found.stability.wins,
            "rivals": [
                {**asdict(segment), "wins": wins} for segment, wins in found.stability.rivals
            ],
            "gap": found.stability.gap,
            "gap_se": found.stability.gap_se,
            "near_tie": len(found.windows) > 1 and found.stability.near_tie,
            "gate": asdict(found.gate) if found.gate else None,
            "tokens": ids.numel(),
            "forward_equivalents": found.forward_equivalents,
            "seconds": found.seconds,
        }

    @property
    def _segment(self) -> Segment:
        return Segment(**self.results["search"]["segment"])

    def _heal(self, room: Path, progress: Progress) -> dict[str, Any]:
        settings = self.config.heal
        began = time.perf_counter()
        found = heal(
            self._body(),
            self._segment,
            self._calibration.fit.to(self.plan.device),
            self._calibration.select.to(self.plan.device),
            rungs=settings.rungs,
            tuning=TuningSettings(steps=settings.steps),
            seed=self.config.seed,
            progress=progress,
        )
        state = {
            f"{index}.{name}": value.contiguous()
            for index, tensors in found.state.items()
            for name, value in tensors.items()
        }
        save_file(state, str(room / "healed.safetensors"))
        for note in found.notes:
            self.observer.note(note)
        return {
            "method": settings.rungs,
            "trained_blocks": sorted(found.state),
            "kl_cut": found.kl_cut,
            "kl_refit": found.kl_refit,
            "kl_tuned": found.kl_tuned,
            "ridge": found.ridge,
            "explained": found.explained,
            "history": [asdict(point) for point in found.history],
            "notes": list(found.notes),
            "parts": found.seconds,
            "seconds": time.perf_counter() - began,
        }

    def _healing(self) -> HealResult:
        said = self.results["heal"]
        state: dict[int, dict[str, Tensor]] = {}
        path = self.folder.stage_folder("heal") / "healed.safetensors"
        for key, value in load_file(str(path)).items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        return HealResult(
            said["method"],
            self._segment,
            said["kl_cut"],
            said["kl_refit"],
            said["kl_tuned"],
            said["ridge"],
            said["explained"],
            (),
            tuple(said["notes"]),
            state,
            said["parts"],
        )

    def _cut(self, room: Path, progress: Progress) -> dict[str, Any]:
        final = self.plan.out / "hf"
        for file in self._ours_below(final):
            file.unlink()
        pruned = self._pruned()
        self._healing().apply(pruned)
        progress(1, 2, f"{len(dissect(pruned))} blocks")
        save_model(
            pruned, self.plan.tokenizer, final, dtype=self.plan.stored, source=self.plan.source
        )
        progress(2, 2, "saved as a Hugging Face folder")
        return {"files": self._relative(final.rglob("*"))}

    def _export(self, room: Path, progress: Progress) -> dict[str, Any]:
        jobs = [(p.target, variant) for p in self.plan.targets for variant in self._variants]
        dense_folder = self._dense_folder(room) if "dense" in self._variants else None
        self._let_go()
        artifacts = []
        for number, (target, variant) in enumerate(jobs):
            # "variant: note" of the step, as a share of all steps
            def step(done: float, total: float, note: str = "", at: int = number) -> None:
                share = done / total if total else 0.0
                progress(at + share, len(jobs), f"{jobs[at][1]} {jobs[at][0].name}: {note}")

            folder = dense_folder if variant == "dense" else self.plan.out / "hf"
            assert folder is not None
            path = self._artifact_path(target, variant)
            for file in self._ours_below(path):
                file.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            artifact = export.export(
                folder,
                target,
                path,
                metadata=self._metadata(variant),
                threads=self.plan.threads,
                progress=step,
                workdir=room / variant,
            )
            self.folder.own([path])
            artifacts.append(
                {
                    "name": f"{variant} {target.quantization}",
                    "target": target.name,
                    "variant": variant,
                    "path": os.path.relpath(path, self.plan.out),
                    "bytes": artifact.bytes,
                    "bits_per_weight": artifact.bits_per_weight,
                    "fallback_tensors": artifact.fallback_tensors,
                    "sha256": artifact.sha256,
                    "verified": artifact.verified,
                    "verify": artifact.verify,
                }
            )
        for leftover in sorted(room.rglob("*"), reverse=True):  # intermediates of the exporter
            leftover.unlink() if leftover.is_file() or leftover.is_symlink() else leftover.rmdir()
        return {"artifacts": artifacts, "files": [a["path"] for a in artifacts]}

    @property
    def _variants(self) -> tuple[str, ...]:
        return ("dense", "healed") if self.config.bench.wanted else ("healed",)

    def _dense_folder(self, room: Path) -> Path:
        """The dense model as a Hugging Face folder: the source's own, or written for the export."""
        if not self.plan.source.is_gguf:
            return self.plan.source.path
        folder = room / "dense-hf"
        save_model(
            self._model(),
            self.plan.tokenizer,
            folder,
            dtype=self.plan.stored,
            source=self.plan.source,
        )
        return folder

    def _artifact_path(self, target: Any, variant: str) -> Path:
        if variant == "dense":
            name = f"{self.plan.source.name}.{target.file_suffix}.gguf"
            return self.plan.out / target.format / "dense" / name
        return self.plan.out / target.format / f"{self.plan.name}.{target.file_suffix}.gguf"

    def _metadata(self, variant: str) -> dict[str, Any]:
        base = {
            "version": clp_edge.__version__,
            "source": self.plan.source.name,
            "general.name": self.plan.source.name if variant == "dense" else self.plan.name,
        }
        if variant == "dense":
            return {**base, "variant": "dense"}
        return {
            **base,
            "variant": variant,
            "segment": str(self._segment),
            "blocks_before": self.plan.blocks,
            "method": f"search {self.results['search']['method']}, "
            f"heal {self.results['heal']['method']}",
        }

    def _evaluate(self, room: Path, progress: Progress) -> dict[str, Any]:
        artifacts = self.results["export"]["artifacts"]
        names = ["dense", "pruned", "healed", *(a["name"] for a in artifacts)]
        done = iter(range(len(names)))

        def part(name: str) -> Progress:
            at = next(done)

            def step(part_done: float, total: float, note: str = "") -> None:
                progress(at + part_done / total, len(names), f"{name} {note}".strip())

            return step

        body = self._body()
        reference = evaluate.DenseReference.build(body, self._evaluation_ids, spill_folder=room)
        quality = {"dense": evaluate.measure_dense(reference, part("dense"))}
        dense_answers = self._talk(body.model)
        pruned = dissect(self._pruned())
        quality["pruned"] = evaluate.measure_model(
            pruned, self._evaluation_ids, reference, part("pruned")
        )
        del pruned
        # The dense head is the healed one: the dense model itself may go.
        reference = evaluate.DenseReference(reference.ids, reference.hidden, body.logits)
        healed = dissect(
            load_model(
                locate(str((self.plan.out / "hf").resolve())),
                dtype=self.plan.compute,
                device=self.plan.device,
            )
        )
        quality["healed"] = evaluate.measure_model(
            healed, self._evaluation_ids, reference, part("healed")
        )
        healed_answers = self._talk(healed.model)
        reference = evaluate.DenseReference(reference.ids, reference.hidden, healed.logits)
        del body
        self._let_go()
        for artifact in artifacts:
            with open_artifact(
                self.plan.out / artifact["path"],
                threads=self.plan.threads,
                context=self.plan.evaluation_length,
            ) as session:
                quality[artifact["name"]] = evaluate.measure_artifact(
                    session, self._evaluation_ids, reference, part(artifact["name"])
                )
        return {
            "quality": {name: asdict(value) for name, value in quality.items()},
            "samples": [
                {
                    "prompt": SAMPLE_PROMPT,
                    "dense": dense_answers["sample"],
                    "healed": healed_answers["sample"],
                }
            ],
            "sanity": {"dense": dense_answers["sanity"], "healed": healed_answers["sanity"]},
        }

    def _talk(self, model: Any) -> dict[str, Any]:
        """A sample of text, and the sanity prompts (pitfall 22)."""

        def answer(prompt: str, limit: int) -> str:
            return evaluate.sample(model, self.plan.tokenizer, prompt, limit)

        checked = evaluate.sanity(answer)
        return {
            "sample": answer(SAMPLE_PROMPT, 48),
            "sanity": {
                "passed": checked.passed,
                "total": checked.total,
                "answers": [asdict(a) for a in checked.answers],
            },
        }

    def _bench(self, room: Path, progress: Progress) -> dict[str, Any]:
        if not self.config.bench.wanted:
            progress(1, 1, "left out: --no-bench")
            return {"bench": None}
        self._let_go()
        items = [
            BenchItem(a["name"], self.plan.out / a["path"], a["variant"], a["target"])
            for a in self.results["export"]["artifacts"]
        ]
        settings = BenchSettings(
            prompt=self.config.bench.prompt,
            generate=self.config.bench.generate,
            rounds=self.config.bench.rounds,
            threads=self.plan.threads,
            seed=self.config.seed,
        )
        return {"bench": run_bench(items, settings, progress=progress)}

    # --- report -------------------------------------------------------------------------------

    def _report(self) -> dict[str, Any]:
        found = self.results
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
        import json

        from clp_edge.report import validate

        try:
            report = json.loads((self.plan.out / "report.json").read_text())
            validate(report)
        except (OSError, ValueError, ClpEdgeError):
            return None
        return report

    def _relative(self, paths: Any) -> list[str]:
        return sorted(os.path.relpath(p, self.plan.out) for p in paths if p.is_file())

    def _ours_below(self, path: Path) -> list[Path]:
        """Files at or below a path that an earlier run of ours wrote there."""
        listed = (self.plan.out / name for name in self.folder.state["files"])
        return [f for f in listed if (f == path or path in f.parents) and f.is_file()]


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


def cache_folder() -> Path:
    """Where text that models wrote themselves is kept: CLP_EDGE_CACHE, or the user's cache."""
    own = os.environ.get("CLP_EDGE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "clp-edge"
