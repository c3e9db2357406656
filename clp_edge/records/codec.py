"""The one codec between records and JSON."""

from __future__ import annotations

import math
import re
from pathlib import PurePath
from typing import Any, TypeVar

import msgspec

from clp_edge.errors import ClpEdgeError

R = TypeVar("R")
_HALF = re.compile(r"[\ud800-\udfff]")
# A list of nothing but numbers, one a line. No text of JSON holds a line break as it is.
_NUMBER = rb"(?:-?\d[\d.eE+-]*|null)"
_NUMBERS = re.compile(rb"\[\n\s+" + _NUMBER + rb"(?:,\n\s+" + _NUMBER + rb")*\n\s+\]")
_BREAK = re.compile(rb"\n\s+")


class RecordError(ClpEdgeError):
    """A document departs from the shape of its record."""


def encode(record: Any) -> bytes:
    """A record as JSON (UTF-8), two spaces deep; NaN and infinities become null.

    A list of numbers is one line: samples by the thousand would be mostly blanks else.
    Inside the free objects paths become text, and numpy scalars become numbers; half a surrogate
    pair, which no UTF-8 has, becomes U+FFFD. Raises RecordError for what JSON cannot hold.
    """
    document = msgspec.json.format(_json(record), indent=2) + b"\n"
    return _NUMBERS.sub(_on_one_line, document)


def _on_one_line(found: re.Match[bytes]) -> bytes:
    return _BREAK.sub(b"", found[0]).replace(b",", b", ")


def decode(document: bytes | str, kind: type[R]) -> R:
    """The record of that kind that a JSON document holds.

    Raises RecordError, naming the place, where the document has another shape.
    """
    try:
        return msgspec.json.decode(document, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RecordError(f"no {kind.__name__}: {error}") from error


def to_plain(record: Any) -> Any:
    """A record as dicts, lists, numbers and text, ready for any JSON writer."""
    return msgspec.json.decode(_json(record))


def from_plain(value: Any, kind: type[R]) -> R:
    """The inverse of `to_plain`. Raises RecordError where the value has another shape."""
    try:
        return msgspec.convert(value, type=kind)
    except msgspec.ValidationError as error:
        raise RecordError(f"no {kind.__name__}: {error}") from error


def _json(record: Any) -> bytes:
    try:
        return msgspec.json.encode(record, enc_hook=_known)
    except UnicodeEncodeError:
        # A tokenizer may make such text of bytes that a model wrote in the middle of a character.
        return msgspec.json.encode(_whole(msgspec.to_builtins(record, enc_hook=_known)))


def _whole(value: Any) -> Any:
    """Plain values, their text without lone surrogates."""
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_whole(key): _whole(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(one) for one in value]
    return value


def _known(value: Any) -> Any:
    """What the codec does not know itself, as something that it knows."""
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, range):
        return list(value)
    item = getattr(value, "item", None)  # numpy scalars and arrays of one
    if callable(item) and getattr(value, "size", 1) == 1:
        return item()
    raise RecordError(f"a record cannot hold a {type(value).__name__}")


def measured(value: float) -> float | None:
    """The number, or None where it is NaN or infinite: what could not be measured."""
    return float(value) if math.isfinite(value) else None
