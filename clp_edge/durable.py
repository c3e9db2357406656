"""Give a file or a folder its final name only when it is whole and on the disk (PITFALLS 25).

A temporary name in the same folder, write, fsync, rename, fsync of the folder: whatever happens in
between, the final name holds the old content or the new one, never a half. What a killed process
leaves behind carries a name of `is_leftover`'s kind, so that a later run can take it away.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     write_text(Path(folder) / "note.txt", "whole")
...     [path.name for path in Path(folder).iterdir()]
['note.txt']
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from clp_edge.errors import ClpEdgeError

PARTIAL = ".partial"
"""What a file is called until it has been verified: NAME.gguf.partial."""
WORK = ".clp-edge-"
"""How the temporary work folders that stand beside a result begin."""
# `.NAME.clp-TOKEN.tmp`, a work folder, `NAME.gguf.partial`, `NAME.onnx-KIND.partial`; and what the
# first version called `.hf.k3j_9x0a.tmp` and `.report.json.4711.tmp`. Nobody else's files: a bare
# `x.tmp` stays.
LEFTOVER = re.compile(
    r"\..+\.clp-[a-z0-9_]+\.tmp|\.clp-edge-[a-z0-9_]{8}|.+\.gguf\.partial|(.+\.)?onnx-.+\.partial"
    r"|\.(hf|dense-hf|(report|result|clp_edge)\.json|(report|README)\.md)\.[a-z0-9_]+\.tmp"
)
CURE = "free some space, or choose another place for it"


def write_text(path: Path, text: str) -> None:
    """Replace the file by one with this text (UTF-8, line ends as they are), whole or not at all.

    Raises ClpEdgeError where it cannot be written; the old file then stays.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to; the file gets `path` as its name when the block ends well.

    Raises ClpEdgeError for an OSError inside the block; after any error nothing is left of it.
    """
    temporary = path.with_name(f".{path.name}.clp-{os.getpid()}.tmp")
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            settle(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder to fill; it becomes `path`, absent or empty so far, in the end.

    Raises ClpEdgeError for an OSError inside the block; after any error nothing is left of it.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f".{path.name}.clp-", suffix=".tmp", dir=path.parent)
        temporary = Path(made)
        try:
            yield temporary
            temporary.chmod(0o755)  # mkdtemp's folders are private
            for inner in sorted(temporary.rglob("*")):
                _sync(inner)
            if path.is_dir():
                path.rmdir()
            settle(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def settle(temporary: Path, final: Path) -> None:
    """What is under the temporary name goes to the disk, then gets the final name."""
    _sync(temporary)
    os.replace(temporary, final)
    _sync(final.parent)


def move(path: Path, final: Path) -> None:
    """Give a file that is whole already another place on the same file system."""
    os.replace(path, final)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file that only grows; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode("utf-8"))
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read a piece at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is one that was never given its final name."""
    return LEFTOVER.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete what killed runs left in the folder and below it; returns what was deleted.

    Only for a folder in which nobody else is writing. Links are deleted, never followed.
    """
    removed = []
    for place, folders, files in os.walk(folder):
        for name in [n for n in folders if is_leftover(n)]:
            folders.remove(name)
            path = Path(place, name)
            path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
        for name in filter(is_leftover, files):
            path = Path(place, name)
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClpEdgeError(f"{path} cannot be written ({error.strerror or error})", CURE) from error


def _sync(path: Path) -> None:
    """Flush a file or, where the system can, a folder's list of names."""
    if path.is_dir() and os.name != "posix":
        return
    # Windows flushes only what is open for writing; elsewhere a read-only file can be flushed too
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
