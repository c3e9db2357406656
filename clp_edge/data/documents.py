"""Read text: a file, a folder of files, or a dataset, as documents that are never altered.

`.txt` and `.md` are cut at blank lines into documents of about 4,000 characters which, put end to
end, are the file again. `.jsonl` and `.json` hold one document an object: a `text` field, or the
fields of an instruction joined by newlines.

>>> read_documents("notes.txt").texts[0][:20]                               # doctest: +SKIP
'The first paragraph '
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clp_edge.errors import ClpEdgeError, MissingDependencyError, UsageError

DOCUMENT_CHARACTERS = 4_000
"""A .txt file is cut at the first blank line after this many characters."""

DATASET_CHARACTERS = 64_000_000
"""Reading of a dataset stops here: calibration needs far less."""

SUFFIXES = (".txt", ".md", ".jsonl", ".json")
# first match wins; the first and the last field must be there, the middle ones may be missing
RECORD_FIELDS = (
    ("text",),
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
)
BLANK_LINE = re.compile(r"\n(?:[^\S\n]*\n)+")
LINE_END = re.compile(r"\n+")
SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Documents:
    """Texts in their order, where they come from, and the sha256 (hex) of the files' bytes."""

    texts: tuple[str, ...]
    origin: str
    sha256: str

    @property
    def characters(self) -> int:
        """How much text there is."""
        return sum(map(len, self.texts))


def read_documents(spec: str, *, cut: bool = True) -> Documents:
    """Read FILE (.txt, .md, .jsonl, .json), a DIR of them, or hf:NAME[:split].

    With cut=False a .txt file stays one document, as the perplexity protocol wants it. Raises
    ClpEdgeError for what is missing, empty, not UTF-8 or not text; MissingDependencyError for a
    dataset without the `datasets` package.
    """
    if spec.startswith("hf:"):
        return _read_dataset(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        files = sorted(
            p
            for p in path.rglob("*")
            if p.is_file() and p.suffix.lower() in SUFFIXES and not _hidden(p, path)
        )
        if not files:
            raise ClpEdgeError(f"{spec} holds no {', '.join(SUFFIXES)} file", "give one with text")
    elif path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"{spec} is no {', '.join(SUFFIXES)} file", "convert it first")
        files = [path]
    else:
        raise ClpEdgeError(f"{spec} does not exist", "give a text file, a folder, or hf:NAME")
    digest = hashlib.sha256()
    texts: list[str] = []
    for file in files:
        raw = _read_bytes(file)
        digest.update(raw)
        texts.extend(_texts_of(file, raw, cut=cut))
    if not any(text.strip() for text in texts):
        raise ClpEdgeError(f"{spec} holds no text", "give one with text")
    return Documents(tuple(texts), spec, digest.hexdigest())


def documents_from_texts(texts: Iterable[str], origin: str) -> Documents:
    """Documents from texts in memory; the hash is over the texts joined by a blank line."""
    kept = tuple(text for text in texts if text)
    return Documents(kept, origin, hashlib.sha256("\n\n".join(kept).encode()).hexdigest())


def cut_text(text: str, size: int = DOCUMENT_CHARACTERS) -> list[str]:
    """Cut at the first blank line after `size` characters; the pieces concatenate to the text.

    Where no blank line comes within another `size`, at a line's end, else at a space, else there.
    """
    pieces = []
    start = 0
    while len(text) - start > size:
        at = _cut_point(text, start + size, min(len(text), start + 2 * size))
        pieces.append(text[start:at])
        start = at
    if pieces and len(text) - start < size // 4:
        pieces[-1] += text[start:]  # a short tail is no document of its own
    elif start < len(text):
        pieces.append(text[start:])
    return pieces


def _cut_point(text: str, first: int, limit: int) -> int:
    for pattern in (BLANK_LINE, LINE_END, SPACE):
        match = pattern.search(text, first - 1, limit)
        if match is not None:
            return match.end()
    return limit


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ClpEdgeError(f"{path} cannot be read ({error.strerror or error})") from error


def _texts_of(path: Path, raw: bytes, *, cut: bool) -> list[str]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClpEdgeError(
            f"{path} is not UTF-8 text (byte {error.start})", "convert it to UTF-8"
        ) from error
    if not text.strip():
        raise ClpEdgeError(f"{path} is empty", "give a file with text")
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return [t for t in (_record_text(r, w) for r, w in _json_lines(path, text)) if t]
    if suffix == ".json":
        return [t for t in (_record_text(r, w) for r, w in _json_records(path, text)) if t]
    if "\0" in text:
        raise ClpEdgeError(f"{path} is not text (it holds zero bytes)", "give a text file")
    return cut_text(text) if cut else [text]


def _json_lines(path: Path, text: str) -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line), f"{path}, line {number}"
            except ValueError as error:
                raise ClpEdgeError(
                    f"{path}, line {number} is not JSON ({error})",
                    "a .jsonl file holds one JSON object a line",
                ) from error


def _json_records(path: Path, text: str) -> Iterator[tuple[Any, str]]:
    try:
        value = json.loads(text)
    except ValueError:
        yield from _json_lines(path, text)  # many .json files are .jsonl in truth
        return
    records = value if isinstance(value, list) else [value]
    for number, record in enumerate(records, start=1):
        yield record, f"{path}, object {number}"


def _record_text(record: Any, where: str) -> str:
    """The text of one object, or an error that names the fields that were found."""
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise ClpEdgeError(f"{where} is no object but {type(record).__name__}", _FIELDS_CURE)
    messages = record.get("messages")
    if isinstance(messages, list):
        return "\n".join(t for t in (_message_text(m, where) for m in messages) if t)
    for fields in RECORD_FIELDS:
        if fields[0] in record and fields[-1] in record:
            values = [record.get(field) for field in fields]
            for field, value in zip(fields, values, strict=True):
                if value is not None and not isinstance(value, str):
                    raise ClpEdgeError(
                        f"{where}: the field {field!r} is {type(value).__name__}, not text",
                        _FIELDS_CURE,
                    )
            return "\n".join(value for value in values if value)
    found = ", ".join(map(str, record)) or "none"
    raise ClpEdgeError(f"{where} has no known text field (found: {found})", _FIELDS_CURE)


_FIELDS_CURE = (
    "use a 'text' field, or instruction/input/output, prompt/response, question/answer, messages"
)


def _message_text(message: Any, where: str) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # parts of a multimodal message: the text ones
        parts = [p.get("text") for p in content if isinstance(p, dict)]
        return "\n".join(p for p in parts if isinstance(p, str) and p)
    if content is None and isinstance(message, dict):  # a tool call says nothing
        return ""
    raise ClpEdgeError(f"{where} has a message without text content", _FIELDS_CURE)


def _read_dataset(spec: str) -> Documents:
    name, _, split = spec.removeprefix("hf:").partition(":")
    if not name:
        raise UsageError(f"{spec} names no dataset", "give hf:NAME or hf:NAME:SPLIT")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            "reading a dataset needs the package datasets",
            "run `pip install 'clp-edge[eval]'`, or give a text file",
        ) from error
    try:
        rows = load_dataset(name, split=split or "train")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClpEdgeError(
            f"the dataset {name} cannot be loaded ({reason})",
            "check its name and split, or give a text file",
        ) from error
    texts: list[str] = []
    size = 0
    for number, row in enumerate(rows, start=1):
        text = _record_text(dict(row), f"{spec}, row {number}")
        if text:
            texts.append(text)
            size += len(text)
        if size >= DATASET_CHARACTERS:
            break
    if not any(text.strip() for text in texts):
        raise ClpEdgeError(f"{spec} holds no text", "give a dataset with text")
    return documents_from_texts(texts, spec)
