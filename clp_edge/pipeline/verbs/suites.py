"""eval --suite: lm-eval's suites, asked of the dense model and of every path beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_edge.evaluate.harness import window_of
from clp_edge.evaluate.speaker import of_model, of_session
from clp_edge.progress import Progress
from clp_edge.records import SuitesRecord
from clp_edge.runtimes import default_threads, open_artifact

if TYPE_CHECKING:
    from clp_edge.evaluate.harness import Suites


def ask_suites(
    suites: Suites,
    dense: tuple[str, Any],
    artifacts: Sequence[tuple[str, Path]],
    tokenizer: Any,
    *,
    threads: int | None,
    part: Callable[[int, str], Progress],
) -> SuitesRecord:
    """Ask the dense model as it is loaded, and each artifact in its own runtime.

    Args: dense, its name and the transformers model; artifacts, the name that the user typed and
        the file or folder; tokenizer, the dense model's, so that all get the same ids; part, the
        progress of side 0, 1, ... under a name.
    """
    name, model = dense
    window = window_of(int(model.config.max_position_embeddings))
    answers = {name: suites.ask(of_model(model), tokenizer, window=window, progress=part(0, name))}
    for number, (typed, path) in enumerate(artifacts, start=1):
        with open_artifact(
            path, threads=threads or default_threads(), context=window + 1
        ) as session:
            answers[typed] = suites.ask(
                of_session(session), tokenizer, window=window, progress=part(number, path.name)
            )
    return SuitesRecord(suites.version, window, answers)
