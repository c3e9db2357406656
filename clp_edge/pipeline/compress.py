"""compress(): preflight, then every stage in order, then the report.

The whole way: all stages of `stages/`, and the report at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clp_edge.config import CompressConfig
from clp_edge.errors import ClpEdgeError, QualityGateError, UsageError
from clp_edge.evaluate.gate import QualityGate
from clp_edge.models.licence import licence_of
from clp_edge.pipeline import tries
from clp_edge.pipeline.goals import goal_of
from clp_edge.pipeline.preflight import Plan, preflight
from clp_edge.pipeline.runner import Ending, Ledger, Runner, environment
from clp_edge.pipeline.stage import Context
from clp_edge.pipeline.stages import (
    bench,
    calibrate,
    evaluate,
    export,
    frontier,
    heal,
    search,
    text,
)
from clp_edge.progress import Observer, Quiet
from clp_edge.records import (
    ArtifactRecord,
    FrontierRecord,
    ModelRecord,
    QualityRecord,
    Report,
    TriesRecord,
)
from clp_edge.report import build_report, load_report, write_report
from clp_edge.report.frontier import goal_words


@dataclass(frozen=True)
class Outcome:
    """A finished run: its report, its folder, and whether it had been run before."""

    report: Report
    out: Path
    reused: bool
    missed: tuple[str, ...] = ()
    """what the files do not reach of the quality that was asked for"""

    def require(self) -> None:
        """Raises QualityGateError (exit code 4) where anything was missed; the files stay."""
        if self.missed:
            raise QualityGateError(
                f"the quality asked for is not reached: {'; '.join(self.missed)}",
                "the files are there and verified; drop fewer blocks, heal more, or lower the gate",
            )


def compress(
    config: CompressConfig, *, observer: Observer | None = None, plan: Plan | None = None
) -> Outcome:
    """Run the whole way, or what is left of it.

    Raises: PreflightError before any work; VerificationError (exit code 3) where a file does not do
        what the model does; other ClpEdgeErrors. An interrupted or failed run resumes.
    """
    if not config.targets:
        raise UsageError("no --target was given", "give one, such as --target gguf-q4")
    gate = QualityGate(**asdict(config.gate))
    if gate.min_retention is not None and not config.evaluation.tasks:
        raise UsageError("--min-retention needs questions to judge by", "give --tasks FILE.jsonl")
    plan = plan or preflight(config)
    observer = observer or Quiet()
    stages, tried = tries.stages_of(config), None
    if config.cut.auto:
        tried, config = tries.settle(config, plan, gate, observer)
        assert tried.chosen is not None  # it is settled
        plan = tries.with_count(plan, tried.chosen)
    runner = Runner(stages, config, plan, observer)

    def write(context: Context, ledger: Ledger) -> tuple[Report, list[Path]]:
        report = _report(config, plan, context, ledger, gate, tried)
        kept = [plan.out / tries.FILE] if tried is not None else []
        if config.frontier.wanted:
            context.folder.disown(frontier.WRITE.name, frontier.spent(context))
        return report, [*write_report(report, plan.out), *kept]

    report, reused = runner.go(Ending(write, _stored_report))
    chosen = report.frontier.choice if report.frontier is not None else None
    missed = _missed(gate, _ships(report.artifacts, report.frontier), report.quality)
    if chosen is not None and chosen.chosen is None:
        missed = (f"--aim {chosen.aim}: {chosen.why}",)
    return Outcome(report, plan.out, reused, missed)


def _ships(
    artifacts: Sequence[ArtifactRecord], compared: FrontierRecord | None
) -> list[ArtifactRecord]:
    """What ships: the file that --aim chose, else every file of the cut model."""
    choice = compared.choice if compared is not None else None
    if compared is not None and choice is not None and choice.chosen is not None:
        every = (*artifacts, *compared.artifacts)
        return [one for one in every if one.name == choice.chosen]
    return [one for one in artifacts if one.variant == "healed"]


def _missed(
    gate: QualityGate, artifacts: Sequence[ArtifactRecord], quality: Mapping[str, QualityRecord]
) -> tuple[str, ...]:
    """What these files do not reach of the quality asked for."""
    judged = gate.judge({one.name: quality[one.name] for one in artifacts}).misses
    return tuple(f"{name}: {miss}" for name, misses in judged.items() for miss in misses)


def _report(
    config: CompressConfig,
    plan: Plan,
    context: Context,
    ledger: Ledger,
    gate: QualityGate,
    tried: TriesRecord | None,
) -> Report:
    record = context.record
    found, healed = record(search.STAGE), record(heal.STAGE)
    judged, benched = record(evaluate.STAGE), record(bench.STAGE)
    timed = benched.bench
    artifacts = record(export.STAGE).artifacts
    compared = record(frontier.CHOOSE) if config.frontier.wanted else None
    quality = dict(judged.quality)
    if compared is not None:
        quality |= record(frontier.JUDGE).quality
    ships = _ships(artifacts, compared)
    warnings = [*plan.warnings, *healed.notes]
    if found.near_tie:
        warnings.append("the two best windows are a near tie: their gap is within its error")
    if timed:
        warnings += timed.warnings
    warnings += _missed(gate, ships, quality)
    goal = goal_of(config, plan, artifacts, timed)
    if goal is not None and goal.met == "not met":
        warnings.append(goal_words(goal))
    if compared is not None:
        warnings += compared.failures
    stated = licence_of(plan.source)
    model = ModelRecord(
        source=plan.source.spec or plan.source.name,
        name=plan.source.name,
        architecture=plan.config.model_type,
        blocks=plan.blocks,
        parameters=plan.parameters,
        parameters_after=plan.kept_parameters,
        license=stated.name if stated else None,
        license_link=stated.link if stated else None,
        license_stated_in=stated.stated_in if stated else None,
    )
    return build_report(
        command=config.command,
        model=model,
        seed=config.seed,
        evaluation=record(text.STAGE),
        search=found,
        heal=healed,
        quality=quality,
        artifacts=artifacts,
        bench=timed,
        seconds=ledger.seconds,
        peak_memory_mib=ledger.peaks,
        environment={**environment(), "calibration": record(calibrate.STAGE).origin},
        samples=judged.samples,
        warnings=list(dict.fromkeys(warnings)),
        quality_gate=(
            gate.judge({one.name: quality[one.name] for one in ships}) if gate.wanted else None
        ),
        tries=tried,
        goal=goal,
        frontier=compared,
        context_memory=benched.memory,
    )


def _stored_report(out: Path) -> Report | None:
    try:
        return load_report(out)
    except ClpEdgeError:
        return None
