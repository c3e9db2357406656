"""eval: perplexity, KL and agreement of any models and files beside one dense model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import clp_edge
from clp_edge import data, evaluate
from clp_edge.config import EvaluationConfig
from clp_edge.errors import UsageError
from clp_edge.models.anatomy import dissect
from clp_edge.models.source import fingerprint, load_config, load_model, load_tokenizer, locate
from clp_edge.pipeline import provenance
from clp_edge.pipeline.folder import hf_folder_of
from clp_edge.pipeline.preflight import compute_dtype, device_of
from clp_edge.pipeline.stages.evaluate import Side, quality_record
from clp_edge.progress import Progress, silent
from clp_edge.records import EvalDocument, EvaluationRecord, QualityRecord
from clp_edge.runtimes import default_threads, open_artifact


def measure(
    paths: Sequence[Path],
    evaluation: EvaluationConfig,
    *,
    dense: str | None = None,
    threads: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    command: str = "clp-edge eval",
    progress: Progress = silent,
) -> EvalDocument:
    """Judge every path on evaluation.text, the dense model first.

    Args: paths, Hugging Face folders (or output folders of ours), .gguf files or ONNX folders;
        dense, the model they are compared with, by default the one that the first folder names.
    Raises UsageError where the dense model is not known or the text is missing.
    """
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
    source = locate(dense or None)
    where = device_of(device)
    kind = compute_dtype(dtype)
    tokenizer = load_tokenizer(source)
    limit = int(getattr(load_config(source), "max_position_embeddings", 0) or evaluation.length)
    length = min(evaluation.length, limit)
    text = data.evaluation_text(
        evaluation.text, tokenizer, sequences=evaluation.sequences, length=length
    )
    ids = text.ids.to(where)
    sides = len(folders) + 1

    def part(number: int, name: str) -> Progress:
        def step(done: float, total: float, note: str = "") -> None:
            progress(number + done / total, sides, f"{name}: {note}")

        return step

    model = dissect(load_model(source, dtype=kind, device=where))
    reference = evaluate.DenseReference.build(model, ids)
    whole = Side(evaluate.measure_dense(reference, part(0, source.name)), {}, None)
    measured: dict[str, QualityRecord] = {source.name: quality_record(whole, whole)}
    for number, folder in enumerate(folders, start=1):
        name = str(paths[number - 1])
        step = part(number, folder.name)
        is_hf = (folder / "config.json").is_file() and not any(folder.glob("*.onnx"))
        if is_hf:
            other = dissect(load_model(locate(str(folder)), dtype=kind, device=where))
            found_quality = evaluate.measure_model(other, ids, reference, step)
            del other
        else:
            with open_artifact(
                folder, threads=threads or default_threads(), context=length
            ) as session:
                found_quality = evaluate.measure_artifact(session, ids, reference, step)
        measured[name] = quality_record(Side(found_quality, {}, None), whole)
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
    )
