"""Standard suites by name, through EleutherAI's lm-eval: its tasks, prompts, metrics and versions.

The package is an extra and imported here alone, when a suite is asked for. Its data sets come from
the hub's cache or, with a network, from the hub; where neither has one, the error says which and
gives the line that fetches it. Everything is loaded and looked at before a model is opened.

>>> from clp_edge.evaluate.speaker import of_model
>>> suites = Suites(["arc_easy"], limit=100)                     # doctest: +SKIP
>>> found = suites.ask(of_model(model), tokenizer, window=2048)  # doctest: +SKIP
>>> found["arc_easy"].metrics["acc,none"].value                  # doctest: +SKIP
0.55
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import logging
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clp_edge.errors import ClpEdgeError, MissingDependencyError, UsageError
from clp_edge.progress import Progress, silent
from clp_edge.records import SuiteMetricRecord, SuiteRecord

if TYPE_CHECKING:
    from clp_edge.evaluate.speaker import Speaker

LONGEST_WINDOW = 2048
"""Tokens that go into a model at once, where its context is longer: few suites need more, and a
cache for 32,768 does not fit a small board."""
RESAMPLES = 1000
"""Of a bootstrap, for metrics that are no plain mean."""
SEEDS = {"python": 0, "numpy": 1234, "fewshot": 1234}
"""lm-eval's own defaults (evaluator.py)."""
INSTALL = "pip install 'clp-edge[eval]'"


def window_of(context_length: int) -> int:
    """How many tokens a suite may use: one less than fits, since an answer's last token is counted.

    >>> window_of(8192), window_of(512)
    (2048, 511)
    """
    return max(1, min(context_length - 1, LONGEST_WINDOW))


class Suites:
    """Suites that were found by name (or a task's .yaml file), their data sets loaded.

    Raises MissingDependencyError without lm-eval, UsageError for an unknown name or a suite that
    cannot be asked here, ClpEdgeError where a data set is missing.
    """

    def __init__(self, names: Sequence[str], *, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"--limit {limit} asks nothing", "give 1 or more")
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise MissingDependencyError(
                f"--suite needs the package lm-eval ({error})", INSTALL
            ) from error
        self.names = tuple(dict.fromkeys(names))
        self.limit = limit
        self.version = f"lm-eval {importlib.metadata.version('lm-eval')}"
        manager = TaskManager()
        for name in self.names:
            if name not in manager.all_tasks and not Path(name).is_file():
                near = difflib.get_close_matches(name, manager.all_tasks, n=3)
                raise UsageError(
                    f"lm-eval has no suite {name!r}",
                    f"did you mean {', '.join(near)}?" if near else "see `lm-eval ls tasks`",
                )
        random.seed(SEEDS["python"])
        np.random.seed(SEEDS["numpy"])
        with _hushed():
            self._loaded = _load(manager, self.names)
        for task in self._loaded["tasks"].values():
            _check(task)

    def ask(
        self,
        speaker: Speaker,
        tokenizer: Any,
        *,
        window: int,
        progress: Progress = silent,
    ) -> dict[str, SuiteRecord]:
        """Every task, and every group of them that has a figure of its own, by name.

        Args: `window` as `window_of` says; the speaker's session must hold one token more.
        """
        import lm_eval

        from clp_edge.evaluate.harness_model import model_class

        for task in self._loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEEDS["fewshot"])
        model = model_class()(speaker, tokenizer, window=window, progress=progress)
        # Results go to stdout, and only ours.
        with _hushed(), contextlib.redirect_stdout(sys.stderr):
            found = lm_eval.evaluate(
                lm=model,
                task_dict=self._loaded,
                limit=self.limit,
                log_samples=False,
                bootstrap_iters=RESAMPLES,
            )
        return read_results(found)


def read_results(found: Mapping[str, Any]) -> dict[str, SuiteRecord]:
    """lm-eval's results as records.

    >>> record = read_results({
    ...     "results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A"}},
    ...     "versions": {"t": 1.0}, "n-shot": {"t": 0}, "higher_is_better": {"t": {"acc": True}},
    ...     "n-samples": {"t": {"original": 9, "effective": 2}},
    ... })["t"]
    >>> record.items, record.metrics["acc,none"]
    (2, SuiteMetricRecord(value=0.5, se=None, higher_is_better=True))
    """
    records = {}
    for name, values in found["results"].items():
        metrics = {}
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            better = found["higher_is_better"].get(name, {}).get(metric)
            metrics[key] = SuiteMetricRecord(
                float(value), float(error) if isinstance(error, int | float) else None, better
            )
        if not metrics:  # a group without a figure of its own
            continue
        counted = found["n-samples"].get(name)
        version = found["versions"].get(name)
        records[name] = SuiteRecord(
            version="" if version is None else str(version),
            items=int(counted["effective"] if counted else values.get("sample_len", 0)),
            total=int(counted["original"]) if counted else None,
            fewshot=int(found["n-shot"].get(name) or 0),
            metrics=metrics,
        )
    return records


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """No bars of `datasets`, no warnings of lm-eval about what a task leaves to its defaults."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _load(manager: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """All suites, as lm-eval's `evaluate` takes them; the error names every one without data."""
    whole: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    missing: dict[str, str] = {}
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:  # whatever data sets, hub and lm-eval raise: said in one line
            if not _is_about_data(error):
                raise UsageError(
                    f"lm-eval cannot load {name!r} ({type(error).__name__}: {error})",
                    "install what it asks for, or choose another suite",
                ) from error
            missing[name] = " ".join(str(error).split())
            continue
        twice = whole["tasks"].keys() & loaded["tasks"].keys()
        if twice:
            raise UsageError(f"--suite names {min(twice)} twice", "name each task once")
        whole["tasks"].update(loaded["tasks"])
        whole["groups"].update(loaded.get("groups", {}))
    if missing:
        said = "; ".join(f"{name}: {words}" for name, words in missing.items())
        raise ClpEdgeError(
            f"data sets of lm-eval are not in the local cache ({said})",
            'with a network, run `python -c "from lm_eval.tasks import TaskManager; '
            f'TaskManager().load({list(missing)})"` and copy the cache here '
            "(~/.cache/huggingface, or what HF_HOME names); HF_HUB_OFFLINE=1 keeps it from trying",
        )
    return whole


def _is_about_data(error: Exception) -> bool:
    """Connection errors, missing files, and what says that a cache lacks it."""
    where = type(error).__module__.split(".")[0]
    return (
        isinstance(error, OSError)
        or where in ("datasets", "huggingface_hub", "httpx")
        or "find cache for" in str(error)
    )


def _check(task: Any) -> None:
    """Refuse, before any model is opened, what cannot or must not be asked."""
    from clp_edge.evaluate.harness_model import generation_settings

    name = task.config.task
    if getattr(task, "UNSAFE_CODE", False) or task.get_config("unsafe_code"):
        raise UsageError(f"{name} runs code that the model writes", "choose another suite")
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"{name} shows pictures or sound", "choose a suite of text")
    if task.get_config("output_type") == "generate_until":
        try:
            generation_settings(task.get_config("generation_kwargs") or {})
        except UsageError as error:
            raise UsageError(f"{name}: {error.cause}", error.cure) from None
