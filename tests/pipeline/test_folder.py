"""The output folder: the four cases of an existing one, what --force may delete, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clp_edge.errors import ClpEdgeError
from clp_edge.pipeline.folder import STATE, OutputFolder, read_state

HASHES = {"one": "a", "two": "b"}
ABOUT = {"command": "clp-edge compress"}


def open_folder(path: Path, hashes: dict[str, str] = HASHES, **options: bool) -> OutputFolder:
    return OutputFolder.open(path, hashes=hashes, about=ABOUT, **options)


def finished(path: Path) -> OutputFolder:
    folder = open_folder(path)
    folder.begin()
    for name in HASHES:
        room = folder.clear_stage(name)
        (room / "data.bin").write_text(name)
        product = path / f"{name}.gguf"
        product.write_text("product")
        folder.store(name, {"answer": name}, files=[product], seconds=1.0)
    folder.finish()
    return folder


def test_absent_and_empty_folders_start(tmp_path: Path) -> None:
    assert not open_folder(tmp_path / "new").finished
    (tmp_path / "empty").mkdir()
    folder = open_folder(tmp_path / "empty")
    assert not (tmp_path / "empty" / STATE).exists()  # opening writes nothing
    folder.begin()
    assert read_state(tmp_path / "empty")["status"] == "unfinished"


@pytest.mark.parametrize("force", [False, True])
def test_pitfall_25_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ClpEdgeError, match="not an output folder"):
        open_folder(tmp_path, force=force)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ClpEdgeError, match="not an output folder"):
        open_folder(tmp_path / "out")


def test_an_unfinished_run_resumes_and_redoes_what_changed(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.begin()
    folder.clear_stage("one")
    folder.store("one", {"answer": 1}, seconds=2.0)

    again = open_folder(tmp_path)
    assert again.result("one") == {"answer": 1}
    assert again.result("two") is None
    assert again.redone == []

    changed = open_folder(tmp_path, {"one": "other", "two": "b"})
    assert changed.redone == ["one"]
    assert changed.result("one") is None


def test_a_stage_whose_file_is_gone_is_not_done(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "two.gguf").unlink()
    folder = open_folder(tmp_path)
    assert folder.result("one") is not None
    assert folder.result("two") is None


def test_a_stage_that_was_begun_again_is_not_done(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    folder.clear_stage("one")
    assert open_folder(tmp_path).result("one") is None


def test_a_finished_run_answers_only_to_the_same_command(tmp_path: Path) -> None:
    finished(tmp_path)
    assert open_folder(tmp_path).finished
    with pytest.raises(ClpEdgeError, match=r"finished run of another command.*two"):
        open_folder(tmp_path, {"one": "a", "two": "other"})
    assert not open_folder(tmp_path, resume=False).finished


def test_no_resume_keeps_the_folder_and_forgets_the_stages(tmp_path: Path) -> None:
    finished(tmp_path)
    folder = open_folder(tmp_path, resume=False)
    folder.begin()
    assert folder.result("one") is None
    assert (tmp_path / "one.gguf").exists()


def test_force_deletes_only_what_is_listed(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("mine")
    folder = open_folder(tmp_path, {"one": "other", "two": "b"}, force=True)
    assert (tmp_path / "one.gguf").exists()  # nothing before begin()
    folder.begin()
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == [STATE, "mine/x", "notes.txt"]


def test_force_does_not_follow_a_list_out_of_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished(out)
    outside = tmp_path / "precious"
    outside.write_text("mine")
    state = json.loads((out / STATE).read_text())
    state["files"].append("../precious")
    (out / STATE).write_text(json.dumps(state))
    open_folder(out, force=True).begin()
    assert outside.exists()
