"""Task files: one JSON object a line, in one of three forms, read and checked whole.

choices: `context`, `choices`, `label` (0-based): which continuation is the likeliest.
contexts: `contexts`, `choices`, `label`: one context a choice and one continuation for all, so that
only the end is scored (partial evaluation, as WinoGrande and WSC are asked).
target: `context`, `target`: does greedy decoding write the last word (LAMBADA).

Each line may have an `id`; other keys are ignored. A fault names the file and the line.

>>> read_item({"context": "The sky is", "choices": ["blue", "made of tin"], "label": 0}).requests
(('The sky is', ' blue'), ('The sky is', ' made of tin'))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clp_edge.errors import UsageError
from clp_edge.registry import TASKS


@dataclass(frozen=True)
class Item:
    """One question: continuations after contexts, and which is right."""

    requests: tuple[tuple[str, str], ...]
    """(context, continuation with its leading space)"""
    label: int | None
    """None: the one continuation is right where greedy decoding writes it"""


@dataclass(frozen=True)
class Form:
    """One row of TASKS: which keys a line of this form has, and how it becomes an item."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[dict[str, Any]], Item]
    metrics: tuple[str, ...]
    """the first is the one that a verdict quotes: fixed here, never chosen by the result"""


@dataclass(frozen=True)
class Task:
    """The items of one file."""

    name: str
    form: Form
    items: tuple[Item, ...]
    total: int
    """items in the file"""


class _Fault(ValueError):
    """What is wrong with a line, without its place."""


def _text(value: Any, what: str, *, empty: bool = True) -> str:
    if not isinstance(value, str):
        raise _Fault(f"{what} is no text")
    if not empty and not value.strip():
        raise _Fault(f"{what} is empty")
    return value


def _choices(line: dict[str, Any]) -> tuple[list[str], int]:
    choices, label = line["choices"], line["label"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise _Fault("`choices` is no list of two or more")
    texts = [_text(one, f"choice {at}", empty=False) for at, one in enumerate(choices)]
    if isinstance(label, bool) or not isinstance(label, int):
        raise _Fault(f"`label` {label!r} is no whole number")
    if not 0 <= label < len(texts):
        raise _Fault(f"`label` {label} is not one of the choices 0 to {len(texts) - 1}")
    return texts, label


def _read_choices(line: dict[str, Any]) -> Item:
    texts, label = _choices(line)
    context = _text(line["context"], "`context`")
    return Item(tuple((context, f" {text}") for text in texts), label)


def _read_contexts(line: dict[str, Any]) -> Item:
    texts, label = _choices(line)
    contexts = line["contexts"]
    if not isinstance(contexts, list) or len(contexts) != len(texts):
        raise _Fault(f"`contexts` is no list of {len(texts)}, one for each choice")
    pairs = [
        (_text(context, f"context {at}"), f" {text}")
        for at, (context, text) in enumerate(zip(contexts, texts, strict=True))
    ]
    return Item(tuple(pairs), label)


def _read_target(line: dict[str, Any]) -> Item:
    target = _text(line["target"], "`target`", empty=False)
    return Item(((_text(line["context"], "`context`"), f" {target}"),), None)


CHOICES = Form("choices", ("context", "choices", "label"), _read_choices, ("acc_norm", "acc"))
CONTEXTS = Form("contexts", ("contexts", "choices", "label"), _read_contexts, ("acc",))
TARGET = Form("target", ("context", "target"), _read_target, ("acc",))


def form_of(line: dict[str, Any]) -> Form:
    """The form whose keys are all there. Raises ValueError where none is."""
    forms = [TASKS.load(name) for name in TASKS.names()]
    for form in forms:
        if all(key in line for key in form.keys):
            return form
    known = "; ".join(", ".join(form.keys) for form in forms)
    raise _Fault(f"it has {', '.join(sorted(line)) or 'no keys'}, and needs one of: {known}")


def read_item(line: dict[str, Any]) -> Item:
    """One line's object as an item. Raises ValueError with what is wrong."""
    return form_of(line).read(line)


def read_task(path: Path | str, *, limit: int | None = None) -> Task:
    """All items of a file, or `limit` of them spread evenly through it.

    Every line is checked, whatever the limit. Raises UsageError that names file and line.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise UsageError(f"--task-items {limit} asks nothing", "give 1 or more")
    items: list[Item] = []
    first: Form | None = None
    for number, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise _Fault("it is no JSON object")
            form = form_of(line)
            first = first or form
            if form is not first:
                raise _Fault(f"it is of the form {form.name!r}, the lines before of {first.name!r}")
            items.append(form.read(line))
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}, line {number}: no JSON ({error.msg})", "give one JSON object a line"
            ) from None
        except _Fault as fault:
            raise UsageError(f"{path}, line {number}: {fault}") from None
    if first is None:
        raise UsageError(f"{path} has no items", "give one JSON object a line")
    count = len(items) if limit is None else min(limit, len(items))
    spread = tuple(items[at * len(items) // count] for at in range(count))
    return Task(path.stem, first, spread, len(items))


def read_tasks(paths: Sequence[str], *, limit: int | None = None) -> tuple[Task, ...]:
    """Several files; their names without suffix name the tasks, so they must differ."""
    tasks = tuple(read_task(path, limit=limit) for path in paths)
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1 or name == "sanity":
            why = "two task files are named" if names.count(name) > 1 else "a task is named"
            raise UsageError(f"{why} {name!r}", "rename one: the report names tasks by their file")
    return tasks


def contents(paths: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(name, sha256) of each file: what a result depends on, whatever folder they lie in."""
    return tuple(
        (Path(path).stem, hashlib.sha256(_bytes(Path(path))).hexdigest()) for path in paths
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"--tasks {path} cannot be read ({error.strerror})", "give a .jsonl file"
        ) from None


def _lines(path: Path) -> list[str]:
    try:
        # a byte order mark would stand in front of the first brace; only \n ends a line of JSON
        return _bytes(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
