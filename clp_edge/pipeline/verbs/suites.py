"""eval --suite: lm-eval's suites, asked of the dense model and of every path beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clp_edge.errors import UsageError
from clp_edge.evaluate.harness import Suites, window_of
from clp_edge.evaluate.speaker import of_model, of_session
from clp_edge.progress import Progress
from clp_edge.records import SuitesRecord
from clp_edge.runtimes import default_threads, open_artifact


def find_suites(names: Sequence[str], limit: int | None) -> Suites | None:
    """What --suite and --limit ask for, loaded; None where nothing is asked."""
    if names:
        return Suites(names, limit=limit)
    if limit is not None:
        raise UsageError("--limit is about suites, and none is named", "give --suite NAME as well")
    return None


def ask_suites(
    suites: Suites,
    dense: tuple[str, Any],
    artifacts: Sequence[tuple[str, Path]],
    tokenizer: Any,
    *,
    threads: int | None,
    steps: Sequence[Progress],
) -> SuitesRecord:
    """Ask the dense model as it is loaded, and each artifact in its own runtime.

    Args: dense, its name and the transformers model; artifacts, the name that the user typed and
        the file or folder; tokenizer, the dense model's, so that all get the same ids; steps,
        the progress of each, the dense model first.
    """
    name, model = dense
    window = window_of(int(model.config.max_position_embeddings))
    first, *others = steps
    answers = {name: suites.ask(of_model(model), tokenizer, window=window, progress=first)}
    cores = threads or default_threads()
    for (typed, path), step in zip(artifacts, others, strict=True):
        with open_artifact(path, threads=cores, context=window + 1) as session:
            speaker = of_session(session)
            answers[typed] = suites.ask(speaker, tokenizer, window=window, progress=step)
    return SuitesRecord(suites.version, window, answers)
