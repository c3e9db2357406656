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
from collections.abc import Iterator
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

    def __init__(self, kind: str, flag: str) -> None:
        self.kind = kind
        self.flag = flag
        self._rows: dict[str, Row] = {}

    def add(self, name: str, value: Any, help: str, *, aliases: tuple[str, ...] = ()) -> None:
        """Add a row. Raises ValueError where the name or an alias is taken."""
        taken = {key for row in self for key in (row.name, *row.aliases)}
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
        """All rows in a sentence, for the command line's help."""
        return "; ".join(f"{row.name}: {row.help}" for row in self)

    def _find(self, name: str) -> Row | None:
        wanted = name.strip().lower()
        return next((row for row in self if wanted in (row.name, *row.aliases)), None)

    def resolve(self, name: str) -> Row:
        """The row of that name or alias, any case; UsageError with the nearest name."""
        found = self._find(name)
        if found is not None:
            return found
        keys = [key for row in self for key in (row.name, *row.aliases)]
        near = difflib.get_close_matches(name.strip().lower(), keys, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"unknown {self.kind} {name!r} ({self.flag})", f"{hint}known: {', '.join(self.names())}"
        )

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
