"""bench: speed of any files side by side; what is dense and what is pruned they say themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clp_edge.bench.runner import BenchItem, BenchSettings, run_bench
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.gguf_file.header import read_header
from clp_edge.pipeline import provenance
from clp_edge.progress import Progress, silent
from clp_edge.records import BenchRecord, Variant

HF_TARGET = "hugging-face"


def bench(
    paths: Sequence[Path],
    settings: BenchSettings,
    *,
    baseline: Path | None = None,
    progress: Progress = silent,
) -> BenchRecord:
    """Measure every path, interleaved. Pairs of one target and runtime give a speed-up.

    Args: baseline, the path that counts as dense where the files do not say so themselves; the
        others then count as pruned, and all as of one target.
    Raises UsageError for a path that is not there.
    """
    every = [*([baseline] if baseline is not None else []), *paths]
    unique = list(dict.fromkeys(path.resolve() for path in every))
    for path in unique:
        if not path.exists():
            raise UsageError(f"{path} does not exist", "give .gguf files or model folders")
    first = baseline.resolve() if baseline is not None else None
    names = _names(unique)
    items = [
        BenchItem(names[path], path, *(_said(path) if first is None else _told(path, first)))
        for path in unique
    ]
    return run_bench(items, settings, progress=progress)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """File names, with as many folders before them as it takes to tell them apart."""
    depth = 1
    while True:
        names = {path: "/".join(path.parts[-depth:]) for path in paths}
        if len(set(names.values())) == len(paths) or depth > 32:
            return names
        depth += 1


def _told(path: Path, first: Path) -> tuple[Variant, str]:
    return ("dense" if path == first else "healed"), "as given"


def _said(path: Path) -> tuple[Variant, str]:
    """What a file says of itself: the side it is on, and the target it was written for."""
    if path.is_dir():
        kinds = (("onnx", "genai_config.json"), ("onnx-optimum", "model.onnx"))
        kind = next((name for name, file in kinds if (path / file).is_file()), HF_TARGET)
        return ("healed" if provenance.read(path) is not None else "dense"), kind
    try:
        header = read_header(path)
    except ClpEdgeError:
        return "dense", "unknown"  # its row will say what is wrong with it
    said = str(header.value("clp_edge.variant", "dense") or "dense")
    variant: Variant = "healed" if said == "healed" else "dense"
    return variant, f"gguf file type {header.value('general.file_type', 'unknown')}"
