"""A final name only for what is whole: failures, folders, what a kill leaves, what is not ours."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clp_edge.durable import (
    is_leftover,
    remove_leftovers,
    settle,
    sha256_of,
    whole_file,
    whole_folder,
    write_text,
)
from clp_edge.errors import ClpEdgeError

FULL = OSError(28, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_replaces_the_old_one_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_text(path, "ä\n")
    write_text(path, "ö\r\n")
    assert path.read_bytes() == "ö\r\n".encode()
    assert names(path.parent) == ["a.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_pitfall_25_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write_text(tmp_path / "a.json", "old")

    def full(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(ClpEdgeError, match=r"a\.json cannot be written .No space left on device"):
        write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def write_half_a_file(path: Path, error: BaseException) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        assert is_leftover(temporary.name)
        raise error


def write_half_a_folder(path: Path, error: BaseException) -> None:
    with whole_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "x").write_bytes(b"half")
        assert is_leftover(folder.name)
        raise error


@pytest.mark.parametrize("write", [write_half_a_file, write_half_a_folder])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ClpEdgeError("no")])
def test_an_error_while_writing_leaves_nothing(
    tmp_path: Path, write: Callable[[Path, BaseException], None], error: BaseException
) -> None:
    kind = ClpEdgeError if isinstance(error, OSError) else type(error)
    with pytest.raises(kind):
        write(tmp_path / "result", error)
    assert names(tmp_path) == []


def test_the_order_is_write_flush_rename_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def note_replace(old: Path, new: Path) -> None:
        seen.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    with whole_folder(tmp_path / "hf") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "x").write_text("x")
        temporary = folder.name
    assert seen == ["inner", "x", temporary, "rename", tmp_path.name]
    assert (tmp_path / "hf").stat().st_mode & 0o777 == 0o755


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    with whole_folder(tmp_path / "hf") as folder:
        (folder / "x").write_text("new")
    assert (tmp_path / "hf" / "x").read_text() == "new"
    with pytest.raises(ClpEdgeError, match="cannot be written"), whole_folder(tmp_path / "hf"):
        pass
    assert (tmp_path / "hf" / "x").read_text() == "new"
    assert names(tmp_path) == ["hf"]


def test_settle_and_sha256(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "m.gguf.partial").write_bytes(data)
    settle(tmp_path / "m.gguf.partial", tmp_path / "m.gguf")
    assert names(tmp_path) == ["m.gguf"]
    assert sha256_of(tmp_path / "m.gguf") == hashlib.sha256(data).hexdigest()


LEFT = [
    ".hf.clp-k3j_9x0a.tmp",
    ".report.json.clp-4711.tmp",
    ".own.safetensors.clp-1.tmp",
    ".clp-edge-ab12cd_9",
    "m.Q4_K_M.gguf.partial",
    "onnx-int4.partial",  # as the folders were called at first
    "SmolLM2-135M-clp20.onnx-int4.partial",
    "m.onnx-optimum-int8.partial",
    ".hf.k3j_9x0a.tmp",  # as the first version called them
    ".report.json.4711.tmp",
]
KEPT = [
    "report.json", "m.gguf", "notes.tmp", ".notes.txt.12.tmp", "film.mp4.partial", ".clp_edge.lock",
    "m.onnx.partial", "m.onnx-int4", "phonnx-int4.partial",
    "clp-edge-notes", ".clp-edge-my-own-folder",
]  # fmt: skip


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / LEFT[0]).write_text("not below the folder")
    out = tmp_path / "out"
    for place in (out, out / "gguf" / "dense"):
        place.mkdir(parents=True)
        for name in (*LEFT, *KEPT):
            (place / name).write_text("x")
    (out / ".hf.clp-folder.tmp" / "inner").mkdir(parents=True)
    (out / ".hf.clp-folder.tmp" / "inner" / "x").write_text("x")
    (out / "linked").symlink_to(outside)
    (out / ".hf.clp-link.tmp").symlink_to(outside)
    removed = remove_leftovers(out)
    assert len(removed) == 2 * len(LEFT) + 2
    assert names(out) == sorted([*KEPT, "gguf", "linked"])
    assert names(out / "gguf" / "dense") == sorted(KEPT)
    assert names(outside) == [LEFT[0]]


KILLED = """
import sys, time
from pathlib import Path
from clp_edge.durable import whole_file, whole_folder
path = Path(sys.argv[1])
with whole_folder(path / "hf") as folder, whole_file(path / "report.json") as file:
    (folder / "half.safetensors").write_text("half")
    file.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_pitfall_25_a_kill_leaves_no_final_name_and_only_what_can_be_swept(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("old")
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    child.stdout.close()
    assert len(names(tmp_path)) == 3  # the kill came while both were being written
    assert not (tmp_path / "hf").exists()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


def test_nobody_else_gives_final_names() -> None:
    """DESIGN.md, rooms: durable.py is the only place that does."""
    root = Path(__file__).resolve().parents[1]
    sources = [
        path
        for folder in ("clp_edge", "kernels", "export", "bench")
        for path in (root / folder).rglob("*.py")
    ]
    assert len(sources) > 50
    telling = ("os.replace(", "os.rename(", ".rename(", "os.fsync(", "shutil.move(")
    found = {
        path.name: word
        for path in sources
        for word in telling
        if word in path.read_text(encoding="utf-8")
    }
    assert set(found) == {"durable.py"}
