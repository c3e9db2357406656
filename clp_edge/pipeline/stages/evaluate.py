"""Evaluate: quality of the dense, cut and healed models and of every file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from clp_edge import evaluate
from clp_edge.config import CompressConfig
from clp_edge.models.anatomy import dissect
from clp_edge.models.source import load_model, locate
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import cut, export, search, text
from clp_edge.progress import Progress
from clp_edge.records import (
    AnswerRecord,
    ArtifactRecord,
    EvaluateRecord,
    QualityRecord,
    SampleRecord,
    SanityRecord,
    measured,
    to_plain,
)
from clp_edge.runtimes import open_artifact

SAMPLE_PROMPT = "What is the capital of France, and what is it known for?"
TALK_CONTEXT = 512
"""tokens that the prompts and their answers need at most"""


@dataclass(frozen=True)
class Inputs:
    """How the runtimes are opened."""

    length: int
    """tokens of a sequence"""
    threads: int


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    return Inputs(plan.evaluation_length, plan.threads)


@dataclass(frozen=True)
class Talk:
    """What one side said to the fixed prompts (pitfall 22)."""

    sample: str
    sanity: SanityRecord


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> EvaluateRecord:
    ground = context.ground
    ids = text.evaluation_ids(context)
    artifacts = context.record(export.STAGE).artifacts
    names = ["dense", "pruned", "healed", *(artifact.name for artifact in artifacts)]
    order = iter(range(len(names)))

    def part(name: str) -> Progress:
        at = next(order)

        def step(done: float, total: float, note: str = "") -> None:
            progress(at + done / total, len(names), f"{name} {note}".strip())

        return step

    body = context.body()
    reference = evaluate.DenseReference.build(body, ids, spill_folder=room)
    dense = evaluate.measure_dense(reference, part("dense"))
    quality = {"dense": quality_record(dense, dense)}
    dense_by, healed_by = _speakers(artifacts)
    talks: dict[str, Talk] = {}
    if dense_by == "dense":
        talks["dense"] = _talk(partial(evaluate.sample, body.model, ground.tokenizer))
    model = dissect(cut.pruned(context, search.segment(context)))
    quality["pruned"] = quality_record(
        evaluate.measure_model(model, ids, reference, part("pruned")), dense
    )
    # The dense head is the healed one: the dense model itself may go.
    del model
    reference = reference.with_head(body.logits)
    folder = locate(str((context.out / cut.FOLDER).resolve()))
    healed = dissect(load_model(folder, dtype=ground.compute, device=ground.device))
    quality["healed"] = quality_record(
        evaluate.measure_model(healed, ids, reference, part("healed")), dense
    )
    if healed_by == "healed":
        talks["healed"] = _talk(partial(evaluate.sample, healed.model, ground.tokenizer))
    reference = reference.with_head(healed.logits)
    del body
    context.let_go()
    for artifact in artifacts:
        name = artifact.name
        step = part(name)
        with open_artifact(
            context.out / artifact.path,
            threads=given.threads,
            context=max(given.length, TALK_CONTEXT),
        ) as session:
            quality[name] = quality_record(
                evaluate.measure_artifact(session, ids, reference, step), dense
            )
            if name in (dense_by, healed_by):
                talks[name] = _talk(partial(evaluate.sample_artifact, session, ground.tokenizer))
    for name, talk in talks.items():
        tasks = {**quality[name].tasks, "sanity": to_plain(talk.sanity)}
        quality[name] = replace(quality[name], tasks=tasks)
    sample = SampleRecord(
        prompt=SAMPLE_PROMPT,
        dense=talks[dense_by].sample,
        healed=talks[healed_by].sample,
        dense_by=dense_by,
        healed_by=healed_by,
    )
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


def _talk(answer: evaluate.Generate) -> Talk:
    checked = evaluate.sanity(answer)
    answers = tuple(AnswerRecord(**asdict(one)) for one in checked.answers)
    return Talk(answer(SAMPLE_PROMPT, 48), SanityRecord(checked.passed, checked.total, answers))


def quality_record(quality: evaluate.Quality, dense: evaluate.Quality) -> QualityRecord:
    """A measurement as plain values, beside the dense model's on the same sequences."""
    ratio = quality.ratio_to(dense)
    return QualityRecord(
        perplexity=measured(quality.perplexity),
        perplexity_se=measured(quality.perplexity_se),
        kl=measured(quality.kl),
        kl_se=measured(quality.kl_se),
        top1_agreement=measured(quality.top1_agreement),
        tasks={},
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
