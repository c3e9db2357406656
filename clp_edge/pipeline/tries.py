"""--prune auto: the largest cut whose files pass the quality gate, by at most three tries.

The curve of the stage `predict` says which cut should just pass; it is made, healed, written and
measured on the file that would ship, and the measurement corrects the curve (`sizing.next_try`).
The largest that passed is what the run goes on with; where the last try was another one, it was set
aside meanwhile (`OutputFolder.set_aside`) and is brought back. Where none passes, the smallest that
was tried is kept, and the gate says that it failed.

Tries are written down as they are done (`stages/tries/tries.json`), under the hash of all that they
depend on: an interrupted run goes on with the next one, and inside a try with its next stage.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clp_edge.config import CompressConfig, digest
from clp_edge.durable import write_text
from clp_edge.errors import ClpEdgeError
from clp_edge.evaluate.gate import QualityGate, retention_of
from clp_edge.pipeline.folder import admit
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.runner import Runner
from clp_edge.pipeline.sizing import (
    MOST_TRIES,
    WORST_SHARE,
    barred,
    corrected,
    counts_that_may_go,
    interpolated,
    next_try,
)
from clp_edge.pipeline.stage import Context, Ground, Stage, stage_keys
from clp_edge.pipeline.stages import (
    STAGES,
    bench,
    calibrate,
    evaluate,
    export,
    predict,
    search,
    text,
)
from clp_edge.pipeline.stages.frontier import with_frontier
from clp_edge.progress import Observer
from clp_edge.records import (
    ArtifactRecord,
    QualityRecord,
    RecordError,
    TriesRecord,
    TryRecord,
    decode,
    encode,
    measured,
)

AUTO_STAGES: tuple[Stage[Any, Any], ...] = (
    calibrate.STAGE,
    text.STAGE,
    predict.STAGE,
    *(stage for stage in STAGES if stage not in (calibrate.STAGE, text.STAGE)),
)
NAME = "tries"
FILE = f"stages/{NAME}/{NAME}.json"
PASSED = f"stages/{NAME}/passed"
"""What the largest cut that passed so far has left, while another is tried."""


@dataclass(frozen=True)
class _Stored:
    """The tries beside the hash of all that they depend on."""

    key: str
    record: TriesRecord


def stages_of(config: CompressConfig) -> tuple[Stage[Any, Any], ...]:
    """The stages of a whole run of this configuration."""
    usual = AUTO_STAGES if config.cut.auto else STAGES
    return with_frontier(usual) if config.frontier.wanted else usual


def with_count(plan: Plan, count: int) -> Plan:
    """The plan of a run in which so many blocks go."""
    formats = {planned.target.format for planned in plan.targets}
    share = round(100 * count / plan.blocks)
    return replace(
        plan,
        count=count,
        name=f"{plan.source.name}-clp{share}",
        forbidden=barred(plan.config, formats, count),
    )


def key_of_tries(config: CompressConfig, plan: Plan) -> str:
    """The hash of all that the tries depend on: every stage but the bench, and the limits."""
    stages = [stage for stage in AUTO_STAGES if stage is not bench.STAGE]
    keys = stage_keys(stages, config, plan, Ground.of(config, plan))
    return digest(keys, config.as_json()["gate"], MOST_TRIES)


def check_room(config: CompressConfig, plan: Plan) -> None:
    """Raises ClpEdgeError where OUT holds a finished run of another command."""
    hashes = {NAME: key_of_tries(config, plan)}
    admit(plan.out, hashes=hashes, force=config.force, resume=config.resume)


def settled(config: CompressConfig, plan: Plan) -> TriesRecord | None:
    """What an earlier run of the same command has settled in OUT, or None."""
    if config.force or not config.resume:
        return None
    found = _stored(plan.out, key_of_tries(config, plan))
    return found if found is not None and found.chosen is not None else None


def settle(
    config: CompressConfig, plan: Plan, gate: QualityGate, observer: Observer
) -> tuple[TriesRecord, CompressConfig]:
    """Try cuts until it is settled how many blocks go.

    Returns: the tries, and the configuration to go on with (what is in OUT is this run's by then).
    Raises what a run raises: ClpEdgeError where OUT holds another finished run.
    """
    found = settled(config, plan)
    if found is not None:
        return found, config
    key = key_of_tries(config, plan)
    check_room(config, plan)
    kept = _stored(plan.out, key) if config.resume and not config.force else None
    later = replace(config, force=False, resume=True)
    if kept is None:
        runner = Runner(AUTO_STAGES[:3], config, plan, observer)
        with runner.folder:
            context = runner.work()
            kept = _begun(gate, plan, context)
            _keep(context, key, kept)
    plan = replace(plan, warnings=())  # they have been said
    shares = {int(count): share for count, share in kept.shares.items()}
    while True:
        done = [(one.count, _share(one)) for one in kept.tries]
        count = next_try(shares, done)
        if count is None:
            break
        expected = corrected(shares, done)[count]
        observer.note(
            f"try {len(done) + 1} of at most {MOST_TRIES}: without {_blocks(count)}, predicted to "
            f"use {100 * expected:.0f} % of what is allowed"
        )
        began = time.perf_counter()
        runner = Runner(AUTO_STAGES[:-1], later, with_count(plan, count), observer)
        with runner.folder:
            context = runner.work()
            one = _judged(context, gate, count, expected, time.perf_counter() - began)
            kept = replace(kept, tries=(*kept.tries, one))
            _keep(context, key, kept)
            done.append((count, _share(one)))
            if one.passed and next_try(shares, done) is not None:
                context.folder.set_aside((s.name for s in AUTO_STAGES[3:-1]), plan.out / PASSED)
        observer.note(_said(one))
    kept = _decided(kept)
    runner = Runner(AUTO_STAGES[:3], later, plan, observer)
    runner.folder.begin()
    with runner.folder:
        if kept.chosen != kept.tries[-1].count:
            runner.folder.bring_back(plan.out / PASSED)
        _keep(runner.context, key, kept)
    observer.note(kept.note)
    return kept, later


def shipped(
    artifacts: Sequence[ArtifactRecord], quality: Mapping[str, QualityRecord]
) -> dict[str, QualityRecord]:
    """The quality of the files that ship, by name."""
    return {one.name: quality[one.name] for one in artifacts if one.variant == "healed"}


def _begun(gate: QualityGate, plan: Plan, context: Context) -> TriesRecord:
    prediction = context.record(predict.STAGE)
    formats = {planned.target.format for planned in plan.targets}
    points = {cut.count: cut.kl_mended / gate.allowed_kl for cut in prediction.cuts}
    shares = interpolated(points, counts_that_may_go(plan.config, formats))
    if not shares:
        raise ClpEdgeError("no cut could be predicted", "give --drop-blocks N instead of auto")
    return TriesRecord(
        allowed_kl=gate.allowed_kl,
        prediction=prediction,
        shares={str(count): share for count, share in shares.items()},
    )


def _judged(
    context: Context, gate: QualityGate, count: int, predicted: float, seconds: float
) -> TryRecord:
    files = shipped(context.record(export.STAGE).artifacts, context.record(evaluate.STAGE).quality)
    worst = max(files.values(), key=gate.share)
    misses = tuple(f"{name}: {said}" for name, q in files.items() for said in gate.failures(q))
    span = context.record(search.STAGE).segment
    assert span is not None  # every method of today finds one run
    return TryRecord(
        count=count,
        blocks=span,
        predicted=predicted,
        measured=measured(gate.share(worst)),
        ppl_ratio=worst.ppl_ratio,
        kl=worst.kl,
        retention=retention_of(worst),
        passed=not misses,
        misses=misses,
        seconds=seconds,
    )


def _share(one: TryRecord) -> float:
    return WORST_SHARE if one.measured is None else one.measured


def _blocks(count: int) -> str:
    return "1 block" if count == 1 else f"{count} blocks"


def _said(one: TryRecord) -> str:
    if one.passed:
        return f"{_blocks(one.count)}: passes, {100 * _share(one):.0f} % of what is allowed"
    return f"{_blocks(one.count)}: does not pass, {'; '.join(one.misses)}"


def _decided(record: TriesRecord) -> TriesRecord:
    """The largest that passed; where none did, the smallest that was tried."""
    passed = [one.count for one in record.tries if one.passed]
    n = len(record.tries)
    tries = "1 try" if n == 1 else f"{n} tries"
    if passed:
        chosen = max(passed)
        goes = "1 block goes" if chosen == 1 else f"{chosen} blocks go"
        note = f"{goes}: the largest cut of {tries} that passes"
    else:
        chosen = min(one.count for one in record.tries)
        note = (
            f"no cut passes: of {tries} the smallest, {_blocks(chosen)}, is kept, and it does not "
            "reach what was asked for"
        )
    return replace(record, chosen=chosen, note=note)


def _keep(context: Context, key: str, record: TriesRecord) -> None:
    path = context.out / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, encode(_Stored(key, record)).decode())
    context.folder.own([path])


def _stored(out: Path, key: str) -> TriesRecord | None:
    try:
        found = decode((out / FILE).read_bytes(), _Stored)
    except (OSError, RecordError):
        return None
    return found.record if found.key == key else None
