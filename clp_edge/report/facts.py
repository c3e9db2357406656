"""Questions about a report that more than one renderer asks.

`before` is always the dense side and `after` the pruned one; None is what the report does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from clp_edge.records import ArtifactRecord, QualityRecord, Report, RunRecord, SpeedupRecord
from clp_edge.report import format as write


@dataclass(frozen=True)
class Pair:
    """What was measured of one target."""

    target: str
    before: ArtifactRecord | None
    after: ArtifactRecord
    quality_before: QualityRecord | None
    quality_after: QualityRecord | None
    run_before: RunRecord | None
    run_after: RunRecord | None
    speedup: SpeedupRecord | None


def pairs(report: Report) -> list[Pair]:
    """Each healed artifact with the dense one of its target, their quality, runs and speed-up."""
    timed = report.bench.runs if report.bench else ()
    faster = report.bench.speedup if report.bench else ()
    runs = {run.artifact: run for run in reversed(timed) if run.status == "ok"}
    found = []
    for after in report.artifacts:
        if after.variant != "healed":
            continue
        same = [one for one in report.artifacts if one.target == after.target]
        before = next((one for one in same if one.variant == "dense"), None)
        name = before.name if before else ""
        found.append(
            Pair(
                target=after.target,
                before=before,
                after=after,
                quality_before=report.quality.get(name) if before else None,
                quality_after=report.quality.get(after.name),
                run_before=runs.get(name) if before else None,
                run_after=runs.get(after.name),
                speedup=next(
                    (s for s in faster if (s.before, s.after) == (name, after.name)), None
                ),
            )
        )
    return found


def sequences(report: Report) -> int | None:
    """How many sequences the quality figures are means of; None where nothing was evaluated."""
    evaluation = report.evaluation
    if evaluation is None or not evaluation.sequence_length:
        return None
    return max(1, round(evaluation.tokens / evaluation.sequence_length))


def model_quality(report: Report) -> tuple[QualityRecord | None, QualityRecord | None]:
    """Quality of the dense and the final model before quantization (the cut one if not healed)."""
    quality = report.quality
    return quality.get("dense"), quality.get("healed") or quality.get("pruned")


def model_name(report: Report) -> str:
    """What the model is called: its own name, or the last part of its path, without ".gguf"."""
    if report.model.name:
        return report.model.name
    name = PurePath(report.model.source).name or report.model.source
    return name.removesuffix(".gguf")


def all_warnings(report: Report) -> list[str]:
    """The run's own warnings, the bench's, and what failed or fell back."""
    texts = [*report.warnings]
    if report.bench is not None:
        texts += report.bench.warnings
        for run in report.bench.runs:
            if run.status != "ok":
                texts.append(f"{run.artifact} was not timed ({run.status}): {run.reason}")
    for artifact in report.artifacts:
        if not artifact.verified:
            texts.append(f"{artifact.name} did not pass verification")
        if artifact.fallback_tensors:
            texts.append(
                f"{artifact.name}: {artifact.fallback_tensors} tensors are not in the type "
                "asked for, since their rows do not divide; "
                f"{write.fixed(artifact.bits_per_weight, 2)} bits per weight in fact"
            )
    return list(dict.fromkeys(texts))
