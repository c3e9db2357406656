"""Nothing of the user's is lost: two runs in one folder, killed runs, inputs inside the output."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clp_edge.errors import ClpEdgeError
from clp_edge.pipeline import lock
from clp_edge.pipeline.folder import STATE, OutputFolder, read_state
from clp_edge.report import write_report
from tests.report.sample import sample_report

HASHES = {"one": "a", "cut": "b"}
# the folder's modules alone: the package would import torch, which takes seconds
ALONE = """
import sys, time, types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
import clp_edge
package = types.ModuleType("clp_edge.pipeline")
package.__path__ = [str(Path(clp_edge.__file__).parent / "pipeline")]
sys.modules["clp_edge.pipeline"] = package
"""
WORKER = """
from clp_edge.pipeline.folder import OutputFolder
folder = OutputFolder.open(Path(sys.argv[1]), hashes={"one": "a", "cut": "b"}, about={})
folder.begin()
exec(sys.argv[2])
print("ready", flush=True)
time.sleep(60)
"""
SLOW_CUT = """
from clp_edge.durable import whole_folder
writing = whole_folder(folder.path / "hf")
(writing.__enter__() / "half.safetensors").write_text("half")
"""
AFTER_THE_RENAME = """
folder.claim(folder.path / "hf")
(folder.path / "hf").mkdir()
(folder.path / "hf" / "model.safetensors").write_text("whole, and not yet listed")
"""

RIVAL = """
from clp_edge.pipeline import lock
folder, lock.PATIENCE, won = Path(sys.argv[1]), 0.0, 0
while won < 100:
    try:
        held = lock.take(folder)
    except lock.ClpEdgeError:
        continue
    (folder / "inside").touch(exist_ok=False)
    (folder / "inside").unlink()
    held.release()
    won += 1
"""


def open_folder(path: Path, **options: bool) -> OutputFolder:
    return OutputFolder.open(path, hashes=HASHES, about={}, **options)


def start(path: Path, work: str = "") -> subprocess.Popen[str]:
    """A real second process that has begun a run in the folder."""
    child = subprocess.Popen(
        [sys.executable, "-c", ALONE + WORKER, str(path), work], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    assert child.stdout is not None
    child.stdout.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_is_told_of_the_first_and_touches_nothing(tmp_path: Path) -> None:
    child = start(tmp_path / "out")
    try:
        for force in (False, True):
            with pytest.raises(ClpEdgeError) as caught:
                open_folder(tmp_path / "out", force=force)
            said = str(caught.value)
            assert f"another run of clp-edge is working in {tmp_path / 'out'}" in said
            assert f"process {child.pid}, since 20" in said
            assert caught.value.exit_code == 1
            assert "\n" not in said
            assert "delete" not in said
            assert "--force" not in said
        assert names(tmp_path / "out") == [lock.NAME, STATE]
    finally:
        kill(child)
    # kill -9 frees the lock, although its file is still there
    assert lock.NAME in names(tmp_path / "out")
    with open_folder(tmp_path / "out") as folder:
        folder.begin()
    assert names(tmp_path / "out") == [STATE]


def test_who_opened_at_the_same_time_and_begins_second_is_refused(tmp_path: Path) -> None:
    late = open_folder(tmp_path)
    child = start(tmp_path)
    try:
        with pytest.raises(ClpEdgeError, match="another run of clp-edge is working in"):
            late.begin()
    finally:
        kill(child)


def test_who_begins_after_another_has_finished_is_refused(tmp_path: Path) -> None:
    late = OutputFolder.open(tmp_path, hashes={"one": "other"}, about={})
    with open_folder(tmp_path) as folder:
        folder.begin()
        folder.store("one", {}, seconds=1.0)
        folder.finish()
    with pytest.raises(ClpEdgeError, match="finished run of another command"):
        late.begin()
    assert read_state(tmp_path)["status"] == "finished"
    assert lock.NAME not in names(tmp_path)


def test_the_lock_goes_with_an_error_and_with_the_end(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), open_folder(tmp_path) as folder:
        folder.begin()
        raise KeyboardInterrupt
    folder = open_folder(tmp_path)
    folder.begin()
    with pytest.raises(ClpEdgeError, match=f"process {os.getpid()}"):
        open_folder(tmp_path)
    folder.finish()
    assert names(tmp_path) == [STATE]
    open_folder(tmp_path, force=True)


def test_many_processes_one_winner(tmp_path: Path) -> None:
    """The lock's file is deleted when it is freed: nobody may hold a lock on a deleted one."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", ALONE + RIVAL, str(tmp_path)], stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    said = [child.communicate(timeout=120)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], said
    assert names(tmp_path) == []


def test_without_locks_a_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / ".hf.clp-12345678.tmp").write_text("perhaps a living neighbour's")
    with open_folder(tmp_path) as folder:
        folder.begin()
        assert len(folder.warnings) == 1
        assert "cannot be locked (Operation not supported)" in folder.warnings[0]
    assert names(tmp_path) == [".hf.clp-12345678.tmp", STATE]


def test_looking_writes_nothing(tmp_path: Path) -> None:
    open_folder(tmp_path / "absent")
    assert names(tmp_path) == []


def test_what_a_killed_cut_leaves_is_swept_by_the_next_run(tmp_path: Path) -> None:
    child = start(tmp_path, SLOW_CUT)
    kill(child)
    assert [n for n in names(tmp_path) if n.startswith(".hf.")]
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "m.Q8_0.gguf.partial").write_text("half")
    (tmp_path / ".report.json.clp-12.tmp").write_text("half")
    (tmp_path / ".hf.k3j_9x0a.tmp").mkdir()
    (tmp_path / "notes.tmp").write_text("mine")
    with open_folder(tmp_path) as folder:
        assert [n for n in names(tmp_path) if n.startswith(".hf.")]  # opening deletes nothing
        folder.begin()
        assert names(tmp_path) == [lock.NAME, STATE, "gguf", "notes.tmp"]
    assert names(tmp_path / "gguf") == []


def test_a_kill_between_rename_and_list_does_not_stop_the_next_run(tmp_path: Path) -> None:
    child = start(tmp_path, AFTER_THE_RENAME)
    kill(child)
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    with open_folder(tmp_path) as folder:
        folder.begin()
        assert not (tmp_path / "hf").exists()


def test_what_is_stored_or_not_ours_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with open_folder(tmp_path / "out") as folder:
        folder.begin()
        (tmp_path / "out" / "hf").mkdir()
        (tmp_path / "out" / "hf" / "notes.txt").write_text("mine")
        folder.claim(tmp_path / "out" / "hf")
        folder.claim(tmp_path / "out" / "gguf" / "m.gguf")
        (tmp_path / "out" / "gguf").mkdir()
        (tmp_path / "out" / "gguf" / "m.gguf").write_text("product")
        folder.store("one", {}, files=[tmp_path / "out" / "gguf" / "m.gguf"], seconds=1.0)
    state = json.loads((tmp_path / "out" / STATE).read_text())
    (tmp_path / "out" / STATE).write_text(json.dumps({**state, "claimed": ["../precious", ".."]}))
    with open_folder(tmp_path / "out") as folder:
        folder.begin()
    assert (tmp_path / "out" / "hf" / "notes.txt").is_file()
    assert (tmp_path / "out" / "gguf" / "m.gguf").is_file()
    assert (tmp_path / "precious").is_file()


def test_a_kill_at_the_very_first_write_leaves_a_folder_that_starts(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).write_text("{")
    (tmp_path / ".clp_edge.json.clp-77.tmp").write_text("{")
    with open_folder(tmp_path) as folder:
        folder.begin()
    assert names(tmp_path) == [STATE]


def test_a_loser_does_not_wait_long(tmp_path: Path) -> None:
    held = lock.take(tmp_path)
    began = time.monotonic()
    with pytest.raises(ClpEdgeError):
        lock.take(tmp_path)
    assert time.monotonic() - began < 5
    held.release()
    held.release()


def test_a_report_is_old_or_new_wherever_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at each flush and each rename in turn: never half a file under a final name."""
    new = sample_report()
    write_report(new, tmp_path / "new")
    write_report(replace(new, seed=new.seed + 1, command="clp-edge other"), tmp_path / "out")
    old = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    whole = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert all(old[name] != whole[name] for name in ("report.json", "README.md"))
    steps, stop = 0, 0

    def stopping(call: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: object) -> None:
            nonlocal steps
            steps += 1
            if steps == stop:
                raise KeyboardInterrupt
            call(*arguments)

        return counted

    monkeypatch.setattr(os, "fsync", stopping(os.fsync))
    monkeypatch.setattr(os, "replace", stopping(os.replace))
    ended = False
    while not ended:
        steps, stop = 0, stop + 1
        try:
            write_report(new, tmp_path / "out")
            ended = True
        except KeyboardInterrupt:
            pass
        found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert set(found) == set(old)
        assert all(found[name] in (old[name], whole[name]) for name in old)
    assert stop > 3 * len(old)
    assert found == whole
