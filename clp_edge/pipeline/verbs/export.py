"""export: a Hugging Face folder as files for the device, each proved before it gets its name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import clp_edge
import clp_edge.export as exporters
from clp_edge import data
from clp_edge.config import PRESETS, SEQUENCE_LENGTH, FileConfig, digest
from clp_edge.errors import UsageError
from clp_edge.export.targets import Target, resolve
from clp_edge.models.source import (
    Source,
    check_weights,
    fingerprint,
    load_config,
    load_tokenizer,
    locate,
    source_warnings,
    stored_dtype,
    tokenizer_gguf,
)
from clp_edge.pipeline import lock, provenance
from clp_edge.pipeline.folder import admit, hf_folder_of
from clp_edge.pipeline.foretold import options_of
from clp_edge.pipeline.overlap import overlaps
from clp_edge.pipeline.preflight import Problems, check_disk
from clp_edge.pipeline.runner import Ledger, Runner
from clp_edge.pipeline.stage import UNKEYED, Context, Ground, Stage, keyed_by
from clp_edge.pipeline.stages import calibrate
from clp_edge.pipeline.stages import export as export_stage
from clp_edge.pipeline.verbs.ending import Done, document
from clp_edge.progress import Observer, Progress, Quiet
from clp_edge.records import ExportDocument, ExportRecord, Provenance
from clp_edge.registry import FORMATS
from clp_edge.runtimes import default_threads

NAME = "export.json"


@dataclass(frozen=True)
class ExportConfig:
    """What `clp-edge export` is asked for."""

    model: str
    targets: tuple[str, ...]
    out: Path | None = None
    force: bool = False
    resume: bool = True
    calibration: str | None = None
    """text that importance is measured on; None: what an output folder of ours was healed with"""
    files: FileConfig = field(default_factory=FileConfig)
    threads: int | None = None
    seed: int = 0
    command: str = "clp-edge export"

    def __post_init__(self) -> None:
        if not self.targets:
            raise UsageError("no --target was given", "give one, such as --target gguf-q4")

    def as_json(self) -> dict[str, Any]:
        """The resolved configuration as plain JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


@dataclass(frozen=True)
class ExportPlanned:
    """An export that may begin."""

    source: Source
    name: str
    """of the files"""
    says: Provenance | None
    targets: tuple[Target, ...]
    files: tuple[exporters.ExportPlan, ...]
    """what each target will be"""
    text: Tensor | None
    out: Path
    threads: int
    warnings: tuple[str, ...]
    ground: Ground


def plan_export(config: ExportConfig) -> ExportPlanned:
    """Look at everything. Raises PreflightError with every problem that was found."""
    problems = Problems()
    found = [problems.attempt(partial(resolve, name)) for name in config.targets]
    targets = tuple(dict.fromkeys(target for target in found if target is not None))
    for name in dict.fromkeys(target.format for target in targets):
        missing = FORMATS.load(name).requires()
        if missing is not None:
            problems.add(missing)
    source = problems.attempt(lambda: locate(str(hf_folder_of(Path(config.model)))))
    problems.raise_if_any()
    assert source is not None
    if source.is_gguf:
        problems.add(
            UsageError(
                f"{config.model} is a GGUF file",
                "give a Hugging Face folder, or let clp-edge compress or prune make one",
            )
        )
        problems.raise_if_any()
    model_config = problems.attempt(lambda: load_config(source))
    tokenizer = problems.attempt(lambda: load_tokenizer(source))
    problems.raise_if_any()
    problems.attempt(lambda: check_weights(source, model_config))
    says = provenance.read(source.path)
    name = says.name if says is not None else source.name
    out = config.out if config.out is not None else Path(f"{name}-export")
    size = 0
    notes: list[str] = []
    planned_files: list[exporters.ExportPlan] = []
    text = problems.attempt(lambda: _text(config, tokenizer))
    options = options_of(config.files, says)
    for target in targets:
        planned = exporters.plan(
            model_config,
            tokenizer,
            target,
            tokenizer_gguf=tokenizer_gguf(source),
            metadata=_metadata(says, name),
            calibrated=text is not None,
            options=options,
        )
        planned_files.append(planned)
        size += planned.predicted_bytes
        notes += planned.notes
        for problem in planned.problems:
            problems.add(problem)
    for problem in overlaps(out, model=source.path, calibration=None, evaluation=None):
        problems.add(problem)
    problems.attempt(lambda: lock.check_free(out))
    problems.attempt(lambda: admit(out, force=config.force, resume=config.resume))
    weights = sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
    check_disk(problems, out, size + 2 * weights)  # the F16 file stands beside for a while
    problems.raise_if_any()
    ground = Ground(
        source=source,
        fingerprint=fingerprint(source),
        tokenizer=tokenizer,
        seed=config.seed,
        device="cpu",
        compute=torch.float32,
        stored=stored_dtype(source),
    )
    return ExportPlanned(
        source=source,
        name=name,
        says=says,
        targets=targets,
        files=tuple(planned_files),
        text=text,
        out=out,
        threads=config.threads or default_threads(),
        warnings=tuple(dict.fromkeys([*source_warnings(source), *notes])),
        ground=ground,
    )


def _text(config: ExportConfig, tokenizer: Any) -> Tensor | None:
    """(sequences, tokens) of calibration text: what the user names, or what the folder was healed
    with, where it is an output folder of ours."""
    if config.calibration is not None:
        return data.calibrate(
            data.read_documents(config.calibration),
            tokenizer,
            sequences=PRESETS["balanced"].given_sequences,
            length=SEQUENCE_LENGTH,
            seed=config.seed,
        ).fit
    kept = Path(config.model) / "stages" / calibrate.STAGE.name / calibrate.TENSORS
    return load_file(str(kept))["fit"] if kept.is_file() else None


def _metadata(says: Provenance | None, name: str) -> dict[str, Any]:
    """What the files say of themselves."""
    return provenance.dense_metadata(name) if says is None else provenance.file_metadata(says)


def _content(text: Tensor | None) -> str | None:
    return hashlib.sha256(text.numpy().tobytes()).hexdigest() if text is not None else None


@dataclass(frozen=True)
class Inputs:
    """What to write, and what it says of itself."""

    targets: tuple[Target, ...]
    name: str
    files: FileConfig
    says: Provenance | None = field(metadata=keyed_by(lambda found: digest(str(found))))
    text: Tensor | None = field(metadata=keyed_by(_content))
    threads: int = field(metadata=UNKEYED)


def inputs(config: ExportConfig, plan: ExportPlanned) -> Inputs:
    return Inputs(plan.targets, plan.name, config.files, plan.says, plan.text, plan.threads)


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> ExportRecord:
    folder = context.ground.source.path
    cut = given.says is not None
    says = _metadata(given.says, given.name)
    options = options_of(given.files, given.says)
    jobs = [
        export_stage.Job(
            target,
            "healed" if cut else "dense",
            folder,
            context.out / target.format / target.file_name(given.name),
            says,
            given.text,
            options,
        )
        for target in given.targets
    ]
    return export_stage.write(jobs, context, room, threads=given.threads, progress=progress)


STAGE: Stage[Inputs, ExportRecord] = Stage(
    "export", "Export and verify", (), ExportRecord, inputs, run, files=lambda record: record.files
)


def export(
    config: ExportConfig,
    *,
    observer: Observer | None = None,
    plan: ExportPlanned | None = None,
) -> Done[ExportDocument]:
    """Write every target of a Hugging Face folder; OUT defaults to ./NAME-export.

    Raises: PreflightError before any work; VerificationError (exit code 3).
    """
    planned = plan or plan_export(config)
    runner = Runner((STAGE,), config, planned, observer or Quiet(), ground=planned.ground)

    def make(context: Context, ledger: Ledger) -> ExportDocument:
        return ExportDocument(
            command=config.command,
            version=clp_edge.__version__,
            source=planned.source.spec or planned.source.name,
            artifacts=context.record(STAGE).artifacts,
            seconds=ledger.seconds,
        )

    made, reused = runner.go(document(NAME, ExportDocument, make))
    return Done(made, planned.out, reused)
