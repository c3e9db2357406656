"""The stages that measure: evaluate (quality) and bench (speed)."""

from __future__ import annotations

from dataclasses import asdict
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
    dense_answers = talk(run, body.model)
    pruned = dissect(run.pruned())
    quality["pruned"] = evaluate.measure_model(
        pruned, run.evaluation_ids, reference, part("pruned")
    )
    del pruned
    # The dense head is the healed one: the dense model itself may go.
    reference = evaluate.DenseReference(reference.ids, reference.hidden, body.logits)
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
    healed_answers = talk(run, healed.model)
    reference = evaluate.DenseReference(reference.ids, reference.hidden, healed.logits)
    del body
    run.let_go()
    for artifact in artifacts:
        with open_artifact(
            run.plan.out / artifact["path"],
            threads=run.plan.threads,
            context=run.plan.evaluation_length,
        ) as session:
            quality[artifact["name"]] = evaluate.measure_artifact(
                session, run.evaluation_ids, reference, part(artifact["name"])
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


def talk(run: Run, model: Any) -> dict[str, Any]:
    """A sample of text, and the sanity prompts (pitfall 22)."""

    def answer(prompt: str, limit: int) -> str:
        return evaluate.sample(model, run.plan.tokenizer, prompt, limit)

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


# --- report -------------------------------------------------------------------------------
