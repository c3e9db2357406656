"""eval: any models and files beside one dense model.

Perplexity, KL and agreement on a text; questions and the fixed prompts where they are asked for;
and a quality gate on every path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import clp_edge
from clp_edge import data, evaluate
from clp_edge.config import EvaluationConfig
from clp_edge.errors import QualityGateError, UsageError
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.source import fingerprint, load_config, load_model, load_tokenizer, locate
from clp_edge.pipeline import provenance
from clp_edge.pipeline.folder import hf_folder_of
from clp_edge.pipeline.preflight import compute_dtype, device_of
from clp_edge.pipeline.stages.evaluate import Exam, Side, parts_of, quality_record
from clp_edge.pipeline.verbs.suites import ask_suites, find_suites
from clp_edge.progress import Progress, silent
from clp_edge.records import EvalDocument, EvaluationRecord, QualityRecord
from clp_edge.runtimes import GpuLayers, default_threads, open_artifact


def measure(
    paths: Sequence[Path],
    evaluation: EvaluationConfig,
    *,
    dense: str | None = None,
    sanity: bool = False,
    gate: evaluate.QualityGate | None = None,
    suites: Sequence[str] = (),
    limit: int | None = None,
    threads: int | None = None,
    gpu_layers: GpuLayers = "auto",
    device: str = "auto",
    dtype: str = "auto",
    command: str = "clp-edge eval",
    progress: Progress = silent,
) -> EvalDocument:
    """Judge every path on evaluation.text and evaluation.tasks, the dense model first.

    Args: paths, Hugging Face folders (or output folders of ours), .gguf files or ONNX folders;
        dense, the model they are compared with, by default the one that the first folder names;
        sanity, whether evaluation.prompts prompts of each kind are answered; gate, what every path
        has to reach (the document says what is missed; nothing is raised for it);
        suites, names of lm-eval's tasks, and limit, how many items of each.
    Raises UsageError where the dense model is not known, the text is missing, a task file is
        wrong, or retention is asked for without a task.
    """
    gate = gate or evaluate.QualityGate()
    if gate.min_retention is not None and not evaluation.tasks:
        raise UsageError("--min-retention needs questions to judge by", "give --tasks FILE.jsonl")
    folders = [hf_folder_of(path) for path in paths]
    for folder in folders:
        if not folder.exists():
            raise UsageError(f"{folder} does not exist", "give .gguf files or model folders")
    if dense is None:
        found = (provenance.read(folder) for folder in folders if folder.is_dir())
        says = next((said for said in found if said is not None), None)
        if says is None:
            raise UsageError(
                "nothing says which dense model to compare with", "give it with --dense"
            )
        dense = says.source
    if evaluation.text is None:
        raise UsageError("there is no text to measure on", "give --eval-text FILE")
    asked = find_suites(suites, limit)
    source = locate(dense or None)
    where = device_of(device)
    kind = compute_dtype(dtype)
    tokenizer = load_tokenizer(source)
    config = load_config(source)
    longest = int(getattr(config, "max_position_embeddings", 0) or evaluation.length)
    length = min(evaluation.length, longest)
    text = data.evaluation_text(
        evaluation.text, tokenizer, sequences=evaluation.sequences, length=length
    )
    ids = text.ids.to(where)
    exam = Exam.of(
        evaluation.tasks,
        evaluation.task_items,
        evaluation.prompts,
        tokenizer=tokenizer,
        config=config,
    )
    names = [source.name, *(folder.name for folder in folders)] * (2 if asked else 1)
    parts = parts_of(progress, len(names), names)
    steps = iter(parts)
    model = dissect(load_model(source, dtype=kind, device=where))
    reference = evaluate.DenseReference.build(model, ids)

    def torch_side(body: Anatomy, quality: Callable[[Progress], evaluate.Quality]) -> Side:
        speak = partial(evaluate.sample, body.model, tokenizer) if sanity else None
        return exam.side(quality, evaluate.model_scorer(body), speak, next(steps))

    whole = torch_side(model, partial(evaluate.measure_dense, reference))
    measured: dict[str, QualityRecord] = {source.name: quality_record(whole, whole)}
    computed_on: dict[str, str] = {}
    for folder, path in zip(folders, paths, strict=True):
        is_hf = (folder / "config.json").is_file() and not any(folder.glob("*.onnx"))
        if is_hf:
            other = dissect(load_model(locate(str(folder)), dtype=kind, device=where))
            side = torch_side(other, partial(evaluate.measure_model, other, ids, reference))
            del other
        else:
            with open_artifact(
                folder,
                threads=threads or default_threads(),
                context=max(length, exam.tokens) if evaluation.tasks or sanity else length,
                gpu_layers=gpu_layers,
            ) as session:
                reason = session.info.backend_reason
                computed_on[str(path)] = f"{session.info.runtime}, {session.info.where}" + (
                    f": {reason}" if reason else ""
                )
                side = exam.side(
                    partial(evaluate.measure_artifact, session, ids, reference),
                    session.score,
                    partial(evaluate.sample_artifact, session, tokenizer) if sanity else None,
                    next(steps),
                )
        measured[str(path)] = quality_record(side, whole)
    judged = {str(path): measured[str(path)] for path in paths}
    answers = None
    if asked is not None:
        answers = ask_suites(
            asked,
            (source.name, model.model),
            [(str(path), folder) for path, folder in zip(paths, folders, strict=True)],
            tokenizer,
            threads=threads,
            steps=parts[len(folders) + 1 :],
        )
    return EvalDocument(
        command=command,
        version=clp_edge.__version__,
        dense=source.spec or source.name,
        fingerprint=fingerprint(source),
        evaluation=EvaluationRecord(
            text=text.origin,
            sha256=text.sha256,
            tokens=text.tokens,
            sequence_length=int(text.ids.shape[1]),
            removed_as_leaked=text.removed_as_leaked,
        ),
        quality=measured,
        quality_gate=gate.judge(judged) if gate.wanted else None,
        suites=answers,
        computed_on=computed_on,
    )


def require(found: EvalDocument) -> None:
    """Raises QualityGateError (exit code 4) where a path misses what was asked for."""
    judged = found.quality_gate.misses if found.quality_gate is not None else {}
    missed = [f"{name}: {miss}" for name, misses in judged.items() for miss in misses]
    if missed:
        raise QualityGateError(
            f"the quality asked for is not reached: {'; '.join(missed)}",
            "drop fewer blocks, heal more, or lower the gate",
        )
