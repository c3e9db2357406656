"""The verbs of the command line as functions, for notebooks and CI (docs/API.md).

Flags become keyword arguments of the same names; results are the typed records that the documents
on disk hold. Nothing is printed: pass an observer to hear of progress.

>>> from clp_edge import api
>>> api.resolve_target("gguf-q4").quantization
'Q4_K_M'
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clp_edge.bench.runner import BenchSettings
from clp_edge.config import CompressConfig, EvaluationConfig
from clp_edge.export.targets import resolve as resolve_target
from clp_edge.pipeline import Outcome, verbs
from clp_edge.pipeline import compress as _compress
from clp_edge.pipeline.verbs import bench as _bench
from clp_edge.pipeline.verbs import evaluate as _evaluate
from clp_edge.pipeline.verbs.ending import Done
from clp_edge.pipeline.verbs.search import read_search
from clp_edge.progress import Observer, Progress, silent
from clp_edge.records import (
    BenchRecord,
    CutDocument,
    EvalDocument,
    ExportDocument,
    Report,
    SearchDocument,
)
from clp_edge.report import load_report

__all__ = [
    "bench",
    "compress",
    "evaluate",
    "export",
    "heal",
    "load_report",
    "prune",
    "report",
    "resolve_target",
    "search",
]


def compress(
    model: str | None = None,
    *,
    targets: Sequence[str] = ("gguf-q4",),
    observer: Observer | None = None,
    **flags: Any,
) -> Outcome:
    """The whole way. flags: as `CompressConfig.of` takes them. Raises ClpEdgeErrors."""
    return _compress(CompressConfig.of(model, targets=tuple(targets), **flags), observer=observer)


def search(
    model: str | None = None,
    *,
    targets: Sequence[str] = (),
    observer: Observer | None = None,
    **flags: Any,
) -> Done[SearchDocument]:
    """Which blocks go. flags: as `CompressConfig.of` takes them. Raises ClpEdgeErrors."""
    return verbs.search(
        CompressConfig.of(model, targets=tuple(targets), **flags), observer=observer
    )


def prune(
    model: str | None = None,
    *,
    blocks: str | None = None,
    found: SearchDocument | Path | None = None,
    observer: Observer | None = None,
    **flags: Any,
) -> Done[CutDocument]:
    """Cut blocks FIRST-LAST, or what a search (its document or search.json) found."""
    document = read_search(found) if isinstance(found, Path) else found
    asked = CompressConfig.of(model, targets=(), blocks=blocks, **flags)
    return verbs.prune(asked, found=document, observer=observer)


def heal(
    folder: Path,
    *,
    teacher: str | None = None,
    observer: Observer | None = None,
    **flags: Any,
) -> Done[CutDocument]:
    """Mend a cut folder against the model that it came from."""
    asked = CompressConfig.of(targets=(), **flags)
    return verbs.heal(asked, Path(folder), teacher=teacher, observer=observer)


def export(
    folder: Path, *, targets: Sequence[str], observer: Observer | None = None, **flags: Any
) -> Done[ExportDocument]:
    """Write and prove every target. flags: as `ExportConfig` has them."""
    asked = verbs.ExportConfig(model=str(folder), targets=tuple(targets), **flags)
    return verbs.export(asked, observer=observer)


def evaluate(
    paths: Sequence[Path],
    *,
    eval_text: str,
    dense: str | None = None,
    eval_tokens: str | None = None,
    tasks: Sequence[str] = (),
    task_items: int | None = None,
    progress: Progress = silent,
    **flags: Any,
) -> EvalDocument:
    """Perplexity, KL and agreement of models and files beside the dense model, and questions.

    flags: sanity, gate (a `clp_edge.evaluate.QualityGate`; the document says what is missed),
    suites and limit (names of lm-eval's tasks, and how many items of each), threads, device, dtype.
    """
    evaluation = EvaluationConfig.with_tokens(
        eval_text,
        eval_tokens,
        EvaluationConfig().sequences,
        tasks=tuple(tasks),
        task_items=task_items,
    )
    return _evaluate.measure(
        [Path(path) for path in paths], evaluation, dense=dense, progress=progress, **flags
    )


def bench(
    paths: Sequence[Path],
    *,
    baseline: Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> BenchRecord:
    """Tokens per second, side by side. settings: as `clp_edge.bench.runner.BenchSettings` has."""
    return _bench.bench(
        [Path(path) for path in paths],
        BenchSettings(**settings),
        baseline=baseline,
        progress=progress,
    )


def report(folder: Path) -> Report:
    """The report of a finished run."""
    return load_report(Path(folder))
