"""Evaluate: quality of the dense, cut and healed models and of every file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from clp_edge import evaluate
from clp_edge.config import CompressConfig
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.source import load_model, locate
from clp_edge.pipeline.folder import HF_FOLDER
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage, keyed_by
from clp_edge.pipeline.stages import cut, export, search, text
from clp_edge.progress import Progress
from clp_edge.records import (
    AnswerRecord,
    ArtifactRecord,
    EvaluateRecord,
    MetricRecord,
    QualityRecord,
    RateRecord,
    SampleRecord,
    SanityRecord,
    TaskRecord,
    measured,
    to_plain,
)
from clp_edge.runtimes import GpuLayers, open_artifact

SAMPLE_PROMPT = "What is the capital of France, and what is it known for?"
TALK_CONTEXT = 512
"""tokens that the prompts and their answers need at most"""


@dataclass(frozen=True)
class Inputs:
    """How the runtimes are opened, and what is asked besides the evaluation text."""

    length: int
    """tokens of a sequence"""
    threads: int
    task_items: int | None
    prompts: int
    """fixed prompts of each kind"""
    tasks: tuple[str, ...] = field(metadata=keyed_by(evaluate.contents))
    gpu_layers: GpuLayers = "auto"


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    asked = config.evaluation
    return Inputs(
        plan.evaluation_length,
        plan.threads,
        asked.task_items,
        asked.prompts,
        asked.tasks,
        config.files.gpu_layers,
    )


@dataclass(frozen=True)
class Talk:
    """What one side said to the fixed prompts (pitfall 22)."""

    sample: str
    sanity: evaluate.Sanity


@dataclass(frozen=True)
class Side:
    """All that is known of one model or file."""

    quality: evaluate.Quality
    answers: dict[str, evaluate.Answers]
    """task name -> what it answered"""
    talk: Talk | None


@dataclass(frozen=True)
class Exam:
    """What a side is asked besides the evaluation text."""

    tasks: tuple[tuple[evaluate.Task, tuple[evaluate.Asked, ...]], ...]
    prompts: int

    @classmethod
    def of(
        cls, files: Sequence[str], limit: int | None, prompts: int, *, tokenizer: Any, config: Any
    ) -> Exam:
        """The items of these files, `limit` of each (None: all), as ids of this model."""
        longest = getattr(config, "max_position_embeddings", None)
        tasks = evaluate.read_tasks(files, limit=limit)
        asked = [(task, evaluate.encode(task, tokenizer, longest=longest)) for task in tasks]
        return cls(tuple(asked), prompts)

    @property
    def tokens(self) -> int:
        """What a runtime's context has to hold."""
        longest = [one.tokens for _, asked in self.tasks for one in asked]
        return max([TALK_CONTEXT, *longest])

    def side(
        self,
        measure: Callable[[Progress], evaluate.Quality],
        score: evaluate.Scorer,
        speak: evaluate.Generate | None,
        progress: Progress,
    ) -> Side:
        """Measure a side, ask it every task, and the prompts where `speak` is there."""
        steps = iter(parts_of(progress, 1 + len(self.tasks) + (speak is not None)))
        quality = measure(next(steps))
        answers = {
            task.name: evaluate.answer(task, asked, score, next(steps))
            for task, asked in self.tasks
        }
        talk = None
        if speak is not None:
            checked = evaluate.sanity(speak, next(steps), per_kind=self.prompts)
            talk = Talk(speak(SAMPLE_PROMPT, 48), checked)
        return Side(quality, answers, talk)


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> EvaluateRecord:
    ground = context.ground
    ids = text.evaluation_ids(context)
    artifacts = context.record(export.STAGE).artifacts
    names = ["dense", "pruned", "healed", *(artifact.name for artifact in artifacts)]
    part = dict(zip(names, parts_of(progress, len(names), names), strict=True))
    body = context.body()
    exam = Exam.of(
        given.tasks, given.task_items, given.prompts, tokenizer=ground.tokenizer, config=body.config
    )
    reference = evaluate.DenseReference.build(body, ids, spill_folder=room)
    dense_by, healed_by = _speakers(artifacts)
    sides: dict[str, Side] = {}

    def ask(name: str, model: Anatomy, measure: Callable[[Progress], evaluate.Quality]) -> None:
        speaks = name in (dense_by, "healed")
        speak = partial(evaluate.sample, model.model, ground.tokenizer) if speaks else None
        sides[name] = exam.side(measure, evaluate.model_scorer(model), speak, part[name])

    ask("dense", body, partial(evaluate.measure_dense, reference))
    model = dissect(cut.pruned(context, search.segment(context)))
    pruned = evaluate.measure_model(model, ids, reference, part["pruned"])
    sides["pruned"] = Side(pruned, {}, None)
    # The dense head is the healed one: the dense model itself may go.
    del model
    reference = reference.with_head(body.logits)
    folder = locate(str((context.out / HF_FOLDER).resolve()))
    healed = dissect(load_model(folder, dtype=ground.compute, device=ground.device))
    ask("healed", healed, partial(evaluate.measure_model, healed, ids, reference))
    reference = reference.with_head(healed.logits)
    del body
    context.let_go()
    for artifact in artifacts:
        name = artifact.name
        speaks = name == dense_by or artifact.variant == "healed"
        with open_artifact(
            context.out / artifact.path,
            threads=given.threads,
            context=max(given.length, exam.tokens),
            gpu_layers=given.gpu_layers,
        ) as session:
            sides[name] = exam.side(
                partial(evaluate.measure_artifact, session, ids, reference),
                session.score,
                partial(evaluate.sample_artifact, session, ground.tokenizer) if speaks else None,
                part[name],
            )
    sample = SampleRecord(
        prompt=SAMPLE_PROMPT,
        dense=_sample(sides[dense_by]),
        healed=_sample(sides[healed_by]),
        dense_by=dense_by,
        healed_by=healed_by,
        mended=_sample(sides["healed"]) if healed_by != "healed" else "",
    )
    quality = {name: quality_record(side, sides["dense"]) for name, side in sides.items()}
    return EvaluateRecord(quality=quality, samples=(sample,))


STAGE: Stage[Inputs, EvaluateRecord] = Stage(
    "evaluate",
    "Evaluate",
    (text.STAGE, search.STAGE, cut.STAGE, export.STAGE),
    EvaluateRecord,
    inputs,
    run,
)


def _speakers(artifacts: Sequence[ArtifactRecord]) -> tuple[str, str]:
    """Who answers the prompts for the dense and the healed side: the first file of that side,
    since that is what the device will run; where there is none, the torch model."""
    found = {"dense": "dense", "healed": "healed"}
    for artifact in reversed(artifacts):
        if artifact.variant in found:
            found[artifact.variant] = artifact.name
    return found["dense"], found["healed"]


def parts_of(progress: Progress, count: int, names: Sequence[str] = ()) -> list[Progress]:
    """`count` callbacks that each move one part of the whole, in order."""

    def part(at: int) -> Progress:
        name = names[at] if names else ""

        def step(done: float, total: float, note: str = "") -> None:
            progress(at + done / total, count, f"{name} {note}".strip())

        return step

    return [part(at) for at in range(count)]


def _sample(side: Side) -> str:
    return side.talk.sample if side.talk is not None else ""


def quality_record(side: Side, dense: Side) -> QualityRecord:
    """Everything of a side as it stands in report.json, beside the dense model."""
    quality = side.quality
    ratio = quality.ratio_to(dense.quality)
    tasks: dict[str, Any] = {
        name: to_plain(_task_record(dense.answers[name], found))
        for name, found in side.answers.items()
    }
    if side.talk is not None:
        tasks["sanity"] = to_plain(_sanity_record(side.talk.sanity))
    return QualityRecord(
        perplexity=measured(quality.perplexity),
        perplexity_se=measured(quality.perplexity_se),
        kl=measured(quality.kl),
        kl_se=measured(quality.kl_se),
        top1_agreement=measured(quality.top1_agreement),
        tasks=tasks,
        tokens=quality.tokens,
        top1_agreement_se=measured(quality.top1_agreement_se),
        kl_median=measured(quality.kl_median),
        kl_90=measured(quality.kl_90),
        kl_99=measured(quality.kl_99),
        kl_max=measured(quality.kl_max),
        ppl_ratio=measured(ratio.value),
        ppl_ratio_low=measured(ratio.low),
        ppl_ratio_high=measured(ratio.high),
        sequence_nll=quality.sequence_nll,
        sequence_kl=quality.sequence_kl,
    )


def _task_record(dense: evaluate.Answers, found: evaluate.Answers) -> TaskRecord:
    return TaskRecord(
        form=found.form,
        items=len(found.chances),
        metric=next(iter(found.hits)),
        metrics={metric: _metric_record(dense, found, metric) for metric in found.hits},
        target_perplexity=measured(found.target_perplexity),
    )


def _metric_record(dense: evaluate.Answers, found: evaluate.Answers, metric: str) -> MetricRecord:
    accuracy = found.accuracy(metric)
    kept = evaluate.retention(dense, found, metric)
    return MetricRecord(
        value=accuracy.value,
        se=measured(found.standard_error(metric)),
        low=accuracy.low,
        high=accuracy.high,
        chance=found.chance,
        at_chance=found.at_chance(metric),
        retention=measured(kept.value) if kept else None,
        retention_low=measured(kept.low) if kept else None,
        retention_high=measured(kept.high) if kept else None,
        dense_at_chance=dense.at_chance(metric),
        hits="".join("01"[hit] for hit in found.hits[metric]),
    )


def _sanity_record(checked: evaluate.Sanity) -> SanityRecord:
    answers = tuple(
        AnswerRecord(one.name, one.prompt, one.text, one.passed, one.kind)
        for one in checked.answers
    )
    kinds = {
        name: RateRecord(one.passed, one.total, one.rate.low, one.rate.high)
        for name, one in checked.kinds().items()
    }
    share = checked.rate
    return SanityRecord(checked.passed, checked.total, answers, share.low, share.high, kinds)
