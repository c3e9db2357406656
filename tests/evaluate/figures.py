"""The figures of docs/LOG.md about evaluation, each taken by one command (minutes, not a test).

    python -m tests.evaluate.figures files WORK             dense folder and F16 GGUF in WORK
    python -m tests.evaluate.figures answers WORK TASK      torch against the F16 GGUF, 200 items
    python -m tests.evaluate.figures speed WORK TASK        all items in llama.cpp
    python -m tests.evaluate.figures interval HEALED TEXT   ratio of perplexities, paired

The model is the demo's; TASK is a .jsonl of questions, TEXT a text that nothing was tuned on. Each
command prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from clp_edge import data, evaluate, export
from clp_edge.models.anatomy import dissect
from clp_edge.models.source import load_model, load_tokenizer, locate, save_model
from clp_edge.progress import silent
from clp_edge.runtimes import default_threads, open_artifact

CONTEXT = 512


def files(work: Path) -> dict[str, Any]:
    """Write the dense demo model as a float32 folder and as F16 GGUF, proved."""
    source = locate(None)
    folder = work / "dense"
    tokenizer = load_tokenizer(source)
    save_model(load_model(source), tokenizer, folder, dtype=torch.float32, source=source)
    made = export.export(
        folder,
        export.resolve("gguf-f16"),
        work / "dense.F16.gguf",
        metadata={},
        threads=default_threads(),
        progress=silent,
    )
    return {
        "folder": str(folder),
        "gguf": str(made.path),
    }


def _asked(task_file: Path, items: int | None) -> tuple[evaluate.Task, Any]:
    task = evaluate.read_task(task_file, limit=items)
    return task, evaluate.encode(task, load_tokenizer(locate(None)), longest=CONTEXT)


def _in_llama(work: Path, task: evaluate.Task, asked: Any) -> tuple[evaluate.Answers, float]:
    with open_artifact(work / "dense.F16.gguf", context=CONTEXT) as session:
        begin = time.perf_counter()
        found = evaluate.answer(task, asked, session.score)
    return found, time.perf_counter() - begin


def answers(work: Path, task_file: Path, items: int) -> dict[str, Any]:
    """Right answers of float32 torch and of the F16 file, and the items where they differ."""
    task, asked = _asked(task_file, items)
    scorer = evaluate.model_scorer(dissect(load_model(locate(None))))
    begin = time.perf_counter()
    ours = evaluate.answer(task, asked, scorer)
    seconds = time.perf_counter() - begin
    theirs, other_seconds = _in_llama(work, task, asked)
    report: dict[str, Any] = {"items": len(task.items), "torch_s": seconds, "gguf_s": other_seconds}
    for metric, hits in ours.hits.items():
        pairs = list(zip(hits, theirs.hits[metric], strict=True))
        report[metric] = {
            "torch": sum(hits),
            "gguf": sum(theirs.hits[metric]),
            "items_that_differ": sum(one != other for one, other in pairs),
        }
    return report


def speed(work: Path, task_file: Path, items: int | None) -> dict[str, Any]:
    """How long llama.cpp takes for the items, the file being open already."""
    task, asked = _asked(task_file, items)
    found, seconds = _in_llama(work, task, asked)
    tokens = sum(
        len(context) + sum(map(len, ends)) for item in asked for context, ends in item.groups
    )
    right = {metric: sum(hits) for metric, hits in found.hits.items()}
    return {"items": len(task.items), "seconds": seconds, "tokens": tokens, "right": right}


def interval(healed: Path, text: Path, sequences: int, length: int) -> dict[str, Any]:
    """Perplexity of the healed folder over the dense model's, float32 torch, with its interval."""
    source = locate(None)
    ids = data.evaluation_text(
        str(text), load_tokenizer(source), sequences=sequences, length=length
    ).ids
    reference = evaluate.DenseReference.build(dissect(load_model(source)), ids)
    before = evaluate.measure_dense(reference)
    after = evaluate.measure_model(dissect(load_model(locate(str(healed)))), ids, reference)
    ratio = evaluate.perplexity_ratio(before.sequence_nll, after.sequence_nll)
    return {
        "sequences": list(ids.shape),
        "dense": [before.perplexity, before.perplexity_se],
        "healed": [after.perplexity, after.perplexity_se],
        "ratio": [ratio.value, ratio.low, ratio.high],
        "half_width": (ratio.high - ratio.low) / 2 / ratio.value,
        "kl": [after.kl, after.kl_se],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, places in {
        "files": ["work"],
        "answers": ["work", "task_file"],
        "speed": ["work", "task_file"],
        "interval": ["healed", "text"],
    }.items():
        verb = verbs.add_parser(name)
        for place in places:
            verb.add_argument(place, type=Path)
        if name in ("answers", "speed"):
            verb.add_argument("--items", type=int, default=200 if name == "answers" else None)
        if name == "interval":
            verb.add_argument("--sequences", type=int, default=32)
            verb.add_argument("--length", type=int, default=512)
    given = vars(parser.parse_args())
    verb = {"files": files, "answers": answers, "speed": speed, "interval": interval}
    begin = time.perf_counter()
    report = verb[given.pop("verb")](**given)
    print(json.dumps({**report, "whole_s": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
