"""Benches on disk: an append-only file of records, one JSON document a line.

A line holds the whole record: date, device, versions, settings and every round's samples. Lines are
only ever added, in one write that is on the disk before it returns.

>>> append(Path("bench/results/laptop.jsonl"), record)                     # doctest: +SKIP
>>> read(Path("bench/results/laptop.jsonl")).taken                         # doctest: +SKIP
'2026-11-25T03:00:00Z'
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from clp_edge import durable
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.records import BenchRecord, RecordError, decode, to_plain


def append(path: Path, record: BenchRecord) -> None:
    """Add a line. Raises ClpEdgeError where the file cannot be written or is no such file."""
    line = json.dumps(to_plain(record), ensure_ascii=False, allow_nan=False) + "\n"
    check_appendable(path)
    try:
        durable.append_line(path, line)
    except OSError as error:
        raise ClpEdgeError(
            f"cannot append to {path} ({error.strerror})", "choose another file"
        ) from error


def check_appendable(path: Path) -> None:
    """Raise UsageError unless the file is new, empty, or ends as such a file does.

    Asked before a bench of minutes, so that its result is not lost to a wrong name.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "give a file to append to, such as bench.jsonl")
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        first = file.read(1)
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
    if first != b"{" or last != b"\n":
        raise UsageError(
            f"{path} is no file of bench records, one a line", "give a new name to --append"
        )


def read(path: Path) -> BenchRecord:
    """The bench of a file: `-o json`, a report.json, or the last line of an append-only file.

    Raises UsageError where the file is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {path} ({error})", "give a file of clp-edge bench"
        ) from error
    lines = text.strip().splitlines()
    found = _decoded(text) or (_decoded(lines[-1]) if lines else None)
    if found is None:
        raise UsageError(
            f"{path} holds no bench", "give what `clp-edge bench -o json` or --append wrote"
        )
    return found


def _decoded(text: str) -> BenchRecord | None:
    try:
        return decode(text, BenchRecord)
    except RecordError:
        pass
    try:  # a report.json holds it under "bench"
        document = json.loads(text)
    except ValueError:
        return None
    inner = document.get("bench") if isinstance(document, dict) else None
    if not isinstance(inner, dict):
        return None
    try:
        return decode(json.dumps(inner), BenchRecord)
    except RecordError:
        return None
