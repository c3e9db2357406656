"""A small language for the shape of a JSON document, and the check that a document has it.

A spec is a type (`str`, `int`, `float`, `bool`, `dict`, `list`) or one of the classes below.
Numbers must be finite: JSON has no NaN, and "not measured" is null.

>>> list(problems({"n": 1.5}, Record({"n": int, "why": str})))
['n is 1.5, not int', 'why is missing']
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Nullable:
    """The spec, or null for what was not measured."""

    spec: Any


@dataclass(frozen=True)
class ListOf:
    """A list whose every member has the spec."""

    spec: Any


@dataclass(frozen=True)
class MapOf:
    """An object with free keys whose every value has the spec."""

    spec: Any


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Record:
    """An object with these keys; further keys are free, since a schema may grow."""

    required: dict[str, Any]
    optional: dict[str, Any] = field(default_factory=dict)


def problems(value: Any, spec: Any, where: str = "") -> Iterator[str]:
    """Every way in which a value departs from its spec, with the path to it."""
    place = where or "the report"
    if isinstance(spec, Nullable):
        if value is not None:
            yield from problems(value, spec.spec, where)
    elif isinstance(spec, Choice):
        if value not in spec.values:
            allowed = ", ".join(repr(item) for item in spec.values)
            yield f"{place} is {_short(value)}, not one of {allowed}"
    elif isinstance(spec, ListOf):
        if not isinstance(value, list):
            yield f"{place} is {_short(value)}, not a list"
            return
        for index, member in enumerate(value):
            yield from problems(member, spec.spec, f"{where}[{index}]")
    elif isinstance(spec, MapOf):
        if not isinstance(value, dict):
            yield f"{place} is {_short(value)}, not an object"
            return
        for key, member in value.items():
            yield from problems(member, spec.spec, _join(where, key))
    elif isinstance(spec, Record):
        if not isinstance(value, dict):
            yield f"{place} is {_short(value)}, not an object"
            return
        for key, member in spec.required.items():
            if key not in value:
                yield f"{_join(where, key)} is missing"
            else:
                yield from problems(value[key], member, _join(where, key))
        for key, member in spec.optional.items():
            if key in value:
                yield from problems(value[key], member, _join(where, key))
    elif not _is(value, spec):
        yield f"{place} is {_short(value)}, not {spec.__name__}"


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
