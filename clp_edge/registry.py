"""Names of what can be chosen: one table for each kind, with aliases, help and the nearest name.

A row points at its implementation by "module:attribute", which is imported only when it is used,
so that `--help` can list everything without importing torch. Adding a method, rung, format, task or
report section is one file and one row here.

>>> FRUIT = Registry("fruit", "--fruit")
>>> FRUIT.add("apple", "math:pi", "round and sweet", aliases=("malus",))
>>> round(FRUIT.load("malus"), 2), FRUIT.names()
(3.14, ('apple',))
>>> FRUIT.resolve("appel")
Traceback (most recent call last):
    ...
clp_edge.errors.UsageError: unknown fruit 'appel' (--fruit); did you mean apple? known: apple
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from clp_edge.errors import UsageError


@dataclass(frozen=True)
class Row:
    """One thing that can be chosen."""

    name: str
    value: Any
    """the thing itself, or "module:attribute" of it"""
    help: str
    aliases: tuple[str, ...] = ()


class Registry:
    """The rows of one kind, in the order in which people should read them."""

    def __init__(self, kind: str, flag: str, beside: Mapping[str, str] | None = None) -> None:
        """`beside`: what else the flag takes, with its help: words for no row of their own."""
        self.kind = kind
        self.flag = flag
        self.beside = dict(beside or {})
        self._rows: dict[str, Row] = {}

    def add(self, name: str, value: Any, help: str, *, aliases: tuple[str, ...] = ()) -> None:
        """Add a row. Raises ValueError where the name or an alias is taken."""
        taken = {key for row in self for key in (row.name, *row.aliases)} | set(self.beside)
        doubled = sorted(taken & {name, *aliases})
        if doubled:
            raise ValueError(f"the {self.kind} {doubled[0]!r} is registered already")
        self._rows[name] = Row(name, value, help, aliases)

    def __iter__(self) -> Iterator[Row]:
        return iter(tuple(self._rows.values()))

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def names(self) -> tuple[str, ...]:
        """Every name, without aliases."""
        return tuple(self._rows)

    def help(self) -> str:
        """All that the flag takes in a sentence, for the command line's help."""
        said = [*self.beside.items(), *((row.name, row.help) for row in self)]
        return "; ".join(f"{name}: {help}" for name, help in said)

    def _find(self, name: str) -> Row | None:
        wanted = name.strip().lower()
        return next((row for row in self if wanted in (row.name, *row.aliases)), None)

    def resolve(self, name: str) -> Row:
        """The row of that name or alias, any case; UsageError with the nearest name."""
        found = self._find(name)
        if found is not None:
            return found
        keys = [*self.beside, *(key for row in self for key in (row.name, *row.aliases))]
        near = difflib.get_close_matches(name.strip().lower(), keys, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        known = ", ".join([*self.beside, *self.names()])
        raise UsageError(f"unknown {self.kind} {name!r} ({self.flag})", f"{hint}known: {known}")

    def choose(self, word: str) -> str:
        """What a user gave to the flag, in its one spelling; UsageError as `resolve` has it."""
        plain = word.strip().lower()
        return plain if plain in self.beside else self.resolve(word).name

    def load(self, name: str) -> Any:
        """The thing of that name, imported if it has to be."""
        value = self.resolve(name).value
        if not isinstance(value, str):
            return value
        module, _, attribute = value.partition(":")
        return getattr(importlib.import_module(module), attribute)

    @contextmanager
    def temporarily(
        self, name: str, value: Any, help: str, *, aliases: tuple[str, ...] = ()
    ) -> Iterator[None]:
        """A row that is there while the context is open: for tests and notebooks."""
        self.add(name, value, help, aliases=aliases)
        try:
            yield
        finally:
            del self._rows[name]


FORMATS = Registry("export format", "--target")
FORMATS.add("gguf", "clp_edge.export.gguf.format:FORMAT", "one file for llama.cpp")
FORMATS.add("onnx", "clp_edge.export.onnx.format:FORMAT", "a folder for onnxruntime-genai")
FORMATS.add("onnx-optimum", "clp_edge.export.onnx.optimum:FORMAT", "a portable graph, by Optimum")

SECTIONS = Registry("report section", "report.md")
for _name, _help in (
    ("warnings", "what to mind"),
    ("summary", "quality, speed, memory and size before and after"),
    ("gate", "the quality that was asked for, and whether the files reach it"),
    ("tries", "every cut that --prune auto tried"),
    ("goal", "the size or speed that was asked for, and whether it is met"),
    ("frontier", "dense and cut model at several types: quality against bytes and speeds"),
    ("tasks", "the answers of every side to the questions"),
    ("sanity", "fixed prompts with a plain rule, answered by every side"),
    ("search", "which blocks went, with the receipts"),
    ("cards", "block by block: what it weighs, what its loss costs, what became of it"),
    ("heal", "how the cut was mended"),
    ("tradeoff", "quality of every file against its size and its speed"),
    ("files", "what was written for the device"),
    ("speed", "every run of the bench"),
    ("samples", "the same prompts, continued by both sides"),
    ("costs", "seconds and memory of every stage"),
    ("method", "how each number was taken"),
    ("environment", "versions that the numbers depend on"),
):
    SECTIONS.add(_name, f"clp_edge.report.sections:{_name}", _help)

METHODS = Registry("search method", "--search", {"auto": "the one predicted to cost least"})
METHODS.add("exact", "clp_edge.search.exact:EXACT", "the KL of every window", aliases=("oracle",))
METHODS.add(
    "halving",
    "clp_edge.search.halving:HALVING",
    "the KL of every window, the hopeless ones on the first sequences alone",
)
METHODS.add("gate", "clp_edge.search.gate:GATE", "the concave gate, by gradient descent")

# Each rung stands on those before it: the name on the command line means "up to this one".
RUNGS = Registry("heal rung", "--heal", {"none": "the cut as it is"})
RUNGS.add(
    "refit",
    "clp_edge.heal.refit:REFIT",
    "the block before the cut in closed form, in seconds",
)
RUNGS.add(
    "graft",
    "clp_edge.heal.graft:GRAFT",
    "then neurons of the removed blocks in place of its weakest",
)
RUNGS.add(
    "local",
    "clp_edge.heal.local:LOCAL",
    "then the blocks around the cut (--tune-blocks) on the hidden state behind them",
)
RUNGS.add(
    "endpoints",
    "clp_edge.heal.endpoints:ENDPOINTS",
    "then tuning of the same blocks on KL",
)

TASKS = Registry("form of a task file", "--tasks")
TASKS.add("choices", "clp_edge.evaluate.tasks:CHOICES", "context, choices, label")
TASKS.add("contexts", "clp_edge.evaluate.tasks:CONTEXTS", "contexts, choices, label: partial")
TASKS.add("target", "clp_edge.evaluate.tasks:TARGET", "context, target: the last word")
