"""The question at equal bytes: dense and cut model at several types, side by side.

Four stages beside the usual ones (`with_frontier`): WRITE makes and proves the files that are only
there for the comparison, in OUT/frontier; JUDGE measures their quality; BENCH is the bench of every
file together, so that all are compared in the same rounds; CHOOSE says who is on which front and
what --aim takes. Files that nobody needs any more are deleted at the end of the run, not before, so
an interrupted run goes on with what it has.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clp_edge import evaluate
from clp_edge.config import BenchConfig, CompressConfig, FileConfig, FrontierConfig, GateConfig
from clp_edge.errors import ClpEdgeError
from clp_edge.evaluate.gate import QualityGate
from clp_edge.export.base import Target
from clp_edge.pipeline import provenance
from clp_edge.pipeline.folder import HF_FOLDER
from clp_edge.pipeline.foretold import options_of
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import UNKEYED, Context, Stage
from clp_edge.pipeline.stages import bench, calibrate, cut, export, text
from clp_edge.pipeline.stages import evaluate as judging
from clp_edge.progress import Progress
from clp_edge.records import (
    ArtifactRecord,
    ChoiceRecord,
    FrontierRecord,
    QualityRecord,
)
from clp_edge.report.aims import fronts, measured_files
from clp_edge.report.choosing import below_bar, choose
from clp_edge.runtimes import GpuLayers, open_artifact

FOLDER = "frontier"
"""in OUT: the files that are only there for the comparison"""
USUAL_FILES = 2
BUDGET_SHARE = 0.5
"""Of the bench's time budget for each file beyond the usual two, as a share of what those get."""


@dataclass(frozen=True)
class WriteInputs:
    """The types that the run does not write anyway."""

    targets: tuple[Target, ...]
    name: str
    """of the healed model"""
    files: FileConfig
    threads: int = field(metadata=UNKEYED)


@dataclass(frozen=True)
class WriteRecord:
    """The files, and the types that could not be proved."""

    artifacts: tuple[ArtifactRecord, ...]
    files: tuple[str, ...]
    failures: tuple[str, ...]


def write_inputs(config: CompressConfig, plan: Plan) -> WriteInputs:
    targets = tuple(planned.target for planned in plan.frontier)
    return WriteInputs(targets, plan.name, config.files, plan.threads)


def write(given: WriteInputs, context: Context, room: Path, progress: Progress) -> WriteRecord:
    source = context.ground.source.name
    healed = context.out / HF_FOLDER
    says = provenance.read(healed)
    assert says is not None  # the cut stage wrote it
    dense = export.dense_folder(context, room / "source") if given.targets else healed
    calibration = calibrate.calibration(context).fit
    context.let_go()
    jobs = []
    for target in given.targets:
        for variant, folder, name, metadata, made_of in (
            ("dense", dense, source, provenance.dense_metadata(source), None),
            ("healed", healed, given.name, provenance.file_metadata(says), says),
        ):
            jobs.append(
                export.Job(
                    target,
                    variant,  # type: ignore[arg-type]
                    folder,
                    context.out / FOLDER / target.file_name(name),
                    metadata,
                    calibration,
                    options_of(given.files, made_of),
                )
            )
    failures: list[str] = []
    made = export.write(
        jobs, context, room, threads=given.threads, progress=progress, failures=failures
    )
    return WriteRecord(made.artifacts, made.files, tuple(failures))


WRITE: Stage[WriteInputs, WriteRecord] = Stage(
    "frontier",
    "Write what is compared at equal bytes",
    (calibrate.STAGE, cut.STAGE, export.STAGE),
    WriteRecord,
    write_inputs,
    write,
    files=lambda record: record.files,
)


@dataclass(frozen=True)
class JudgeInputs:
    """How the runtimes are opened."""

    length: int
    threads: int
    gpu_layers: GpuLayers = "auto"


@dataclass(frozen=True)
class JudgeRecord:
    """Quality of the files that are only there for the comparison."""

    quality: dict[str, QualityRecord]


def judge_inputs(config: CompressConfig, plan: Plan) -> JudgeInputs:
    return JudgeInputs(plan.evaluation_length, plan.threads, config.files.gpu_layers)


def judge(given: JudgeInputs, context: Context, room: Path, progress: Progress) -> JudgeRecord:
    """The same text and the same reference as the evaluation's; no task and no prompt is asked."""
    artifacts = context.record(WRITE).artifacts
    if not artifacts:
        return JudgeRecord({})
    check_there(context, artifacts)
    ids = text.evaluation_ids(context)
    names = ["dense", *(artifact.name for artifact in artifacts)]
    parts = judging.parts_of(progress, len(names), names)
    reference = evaluate.DenseReference.build(context.body(), ids, spill_folder=room)
    dense = judging.Side(evaluate.measure_dense(reference, parts[0]), {}, None)
    quality = {}
    for artifact, part in zip(artifacts, parts[1:], strict=True):
        with open_artifact(
            context.out / artifact.path,
            threads=given.threads,
            context=given.length,
            gpu_layers=given.gpu_layers,
        ) as session:
            found = evaluate.measure_artifact(session, ids, reference, part)
        quality[artifact.name] = judging.quality_record(judging.Side(found, {}, None), dense)
    return JudgeRecord(quality)


JUDGE: Stage[JudgeInputs, JudgeRecord] = Stage(
    "frontier-quality",
    "Evaluate what is compared",
    (text.STAGE, WRITE),
    JudgeRecord,
    judge_inputs,
    judge,
)


def bench_inputs(config: CompressConfig, plan: Plan) -> bench.Inputs:
    """As usual, with a time budget that grows with the files."""
    usual = bench.inputs(config, plan)
    more = 2 * len(plan.frontier)
    files = 2 * len(plan.targets) + more
    return replace(usual, bench=_longer(usual.bench, files))


def _longer(asked: BenchConfig, files: int) -> BenchConfig:
    extra = max(0, files - USUAL_FILES)
    return replace(asked, budget_s=asked.budget_s * (1 + BUDGET_SHARE * extra / USUAL_FILES))


def time_all(
    given: bench.Inputs, context: Context, room: Path, progress: Progress
) -> bench.BenchStageRecord:
    context.let_go()
    beside = context.record(WRITE).artifacts
    check_there(context, beside)
    artifacts = (*context.record(export.STAGE).artifacts, *beside)
    return bench.measure(given, artifacts, context, progress)


BENCH: Stage[bench.Inputs, bench.BenchStageRecord] = replace(
    bench.STAGE, needs=(export.STAGE, WRITE), inputs=bench_inputs, run=time_all
)


@dataclass(frozen=True)
class ChooseInputs:
    """What is asked of the files."""

    frontier: FrontierConfig
    gate: GateConfig


def choose_inputs(config: CompressConfig, plan: Plan) -> ChooseInputs:
    return ChooseInputs(config.frontier, config.gate)


def chosen(given: ChooseInputs, context: Context, room: Path, progress: Progress) -> FrontierRecord:
    written = context.record(WRITE)
    timed = context.record(BENCH)
    quality = {
        **context.record(judging.STAGE).quality,
        **context.record(JUDGE).quality,
    }
    files = measured_files(
        (*context.record(export.STAGE).artifacts, *written.artifacts),
        quality,
        timed.bench,
        timed.memory,
    )
    choice: ChoiceRecord | None = None
    if given.frontier.aim is not None:
        gate = QualityGate(given.gate.max_ppl_ratio, given.gate.max_kl, given.gate.min_retention)
        if gate.wanted:
            bar = _gate_words(given.gate)
            misses = {one.name: _misses(gate, one.quality) for one in files}
        else:
            bar, misses = below_bar(files)
        choice = choose(given.frontier.aim, files, bar, misses)
    names = [one.name for one in written.artifacts]
    stays = choice.chosen if choice is not None else None
    kept = names if given.frontier.keep else [name for name in names if name == stays]
    return FrontierRecord(written.artifacts, tuple(kept), written.failures, fronts(files), choice)


CHOOSE: Stage[ChooseInputs, FrontierRecord] = Stage(
    "choose",
    "Compare at equal bytes",
    (export.STAGE, judging.STAGE, WRITE, JUDGE, BENCH),
    FrontierRecord,
    choose_inputs,
    chosen,
)


def with_frontier(stages: tuple[Stage[Any, Any], ...]) -> tuple[Stage[Any, Any], ...]:
    """The stages of a run, the comparison among them; the bench is the last of `stages`."""
    return (*stages[:-1], WRITE, JUDGE, BENCH, CHOOSE)


def spent(context: Context) -> list[Path]:
    """The files that have served, at the end of a run."""
    record = context.record(CHOOSE)
    stay = {one.path for one in record.artifacts if one.name in record.kept}
    written = context.record(WRITE)
    paths = {one.path for one in written.artifacts}
    keep = {Path(path).stem for path in stay}
    found = []
    for file in written.files:
        # what stands beside a file (how another program opens it) goes and stays with it
        if file in stay or (file not in paths and any(stem in Path(file).name for stem in keep)):
            continue
        found.append(context.out / file)
    return found


def check_there(context: Context, artifacts: tuple[ArtifactRecord, ...]) -> None:
    """Raises ClpEdgeError where a file of the comparison is gone."""
    gone = [one.path for one in artifacts if not (context.out / one.path).exists()]
    if gone:
        raise ClpEdgeError(
            f"{gone[0]} was written for the comparison and is not there any more",
            "give --no-resume, so that it is written again",
        )


def _misses(gate: QualityGate, quality: QualityRecord | None) -> tuple[str, ...]:
    return ("its quality was not measured",) if quality is None else gate.failures(quality)


def _gate_words(gate: GateConfig) -> str:
    said = []
    if gate.max_ppl_ratio is not None:
        said.append(f"perplexity at most {gate.max_ppl_ratio:g} times the dense model's")
    if gate.max_kl is not None:
        said.append(f"KL at most {gate.max_kl:g} nats")
    return " and ".join(said)
