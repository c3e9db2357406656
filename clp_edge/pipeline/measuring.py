"""The stages that measure: evaluate (quality) and bench (speed)."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from clp_edge import evaluate
from clp_edge.bench.runner import BenchItem, BenchSettings, run_bench
from clp_edge.models.anatomy import dissect
from clp_edge.models.source import load_model, locate
from clp_edge.pipeline.run import Run
from clp_edge.progress import Progress
from clp_edge.runtimes import open_artifact

SAMPLE_PROMPT = "What is the capital of France, and what is it known for?"
TALK_CONTEXT = 512
"""tokens that the prompts and their answers need at most"""


def evaluate_stage(run: Run, room: Path, progress: Progress) -> dict[str, Any]:
    """Quality of the dense, cut and healed models and of every file."""
    artifacts = run.results["export"]["artifacts"]
    names = ["dense", "pruned", "healed", *(a["name"] for a in artifacts)]
    order = iter(range(len(names)))

    def part(name: str) -> Progress:
        at = next(order)

        def step(done: float, total: float, note: str = "") -> None:
            progress(at + done / total, len(names), f"{name} {note}".strip())

        return step

    body = run.body()
    reference = evaluate.DenseReference.build(body, run.evaluation_ids, spill_folder=room)
    quality = {"dense": evaluate.measure_dense(reference, part("dense"))}
    speakers = _speakers(artifacts)
    said: dict[str, dict[str, Any]] = {}
    if speakers["dense"] == "dense":
        said["dense"] = _talk(partial(evaluate.sample, body.model, run.plan.tokenizer))
    pruned = dissect(run.pruned())
    quality["pruned"] = evaluate.measure_model(
        pruned, run.evaluation_ids, reference, part("pruned")
    )
    del pruned
    # The dense head is the healed one: the dense model itself may go.
    reference = reference.with_head(body.logits)
    healed = dissect(
        load_model(
            locate(str((run.plan.out / "hf").resolve())),
            dtype=run.plan.compute,
            device=run.plan.device,
        )
    )
    quality["healed"] = evaluate.measure_model(
        healed, run.evaluation_ids, reference, part("healed")
    )
    if speakers["healed"] == "healed":
        said["healed"] = _talk(partial(evaluate.sample, healed.model, run.plan.tokenizer))
    reference = reference.with_head(healed.logits)
    del body
    run.let_go()
    for artifact in artifacts:
        name = artifact["name"]
        step = part(name)
        with open_artifact(
            run.plan.out / artifact["path"],
            threads=run.plan.threads,
            context=max(run.plan.evaluation_length, TALK_CONTEXT),
        ) as session:
            quality[name] = evaluate.measure_artifact(session, run.evaluation_ids, reference, step)
            if name in speakers.values():
                said[name] = _talk(partial(evaluate.sample_artifact, session, run.plan.tokenizer))
    dense, healed_by = speakers["dense"], speakers["healed"]
    return {
        "quality": {name: asdict(value) for name, value in quality.items()},
        "samples": [
            {
                "prompt": SAMPLE_PROMPT,
                "dense": said[dense]["sample"],
                "healed": said[healed_by]["sample"],
                "dense_by": dense,
                "healed_by": healed_by,
            }
        ],
        "sanity": {name: answers["sanity"] for name, answers in said.items()},
    }


def _speakers(artifacts: list[dict[str, Any]]) -> dict[str, str]:
    """Who answers the prompts for each side: the first file of that side, since that is what the
    device will run; where there is none, the torch model."""
    found = {"dense": "dense", "healed": "healed"}
    for artifact in reversed(artifacts):
        if artifact["variant"] in found:
            found[artifact["variant"]] = artifact["name"]
    return found


def _talk(answer: evaluate.Generate) -> dict[str, Any]:
    """A sample of text, and the sanity prompts (pitfall 22)."""
    checked = evaluate.sanity(answer)
    return {
        "sample": answer(SAMPLE_PROMPT, 48),
        "sanity": {
            "passed": checked.passed,
            "total": checked.total,
            "answers": [asdict(a) for a in checked.answers],
        },
    }


def bench_stage(run: Run, room: Path, progress: Progress) -> dict[str, Any]:
    """Speed of every file, interleaved."""
    if not run.config.bench.wanted:
        progress(1, 1, "left out: --no-bench")
        return {"bench": None}
    run.let_go()
    items = [
        BenchItem(a["name"], run.plan.out / a["path"], a["variant"], a["target"])
        for a in run.results["export"]["artifacts"]
    ]
    settings = BenchSettings(
        prompt=run.config.bench.prompt,
        generate=run.config.bench.generate,
        rounds=run.config.bench.rounds,
        threads=run.plan.threads,
        seed=run.config.seed,
    )
    return {"bench": run_bench(items, settings, progress=progress)}
