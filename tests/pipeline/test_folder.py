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
    folder.release()

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
    folder.begin()
    folder.clear_stage("one")
    folder.release()
    assert open_folder(tmp_path).result("one") is None


def test_a_finished_run_answers_only_to_the_same_command(tmp_path: Path) -> None:
    finished(tmp_path)
    assert open_folder(tmp_path).finished
    with pytest.raises(ClpEdgeError, match=r"finished run of another command.*two"):
        open_folder(tmp_path, {"one": "a", "two": "other"})


def test_no_resume_replaces_a_finished_run_only_with_force(tmp_path: Path) -> None:
    finished(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ClpEdgeError, match=r"--no-resume would replace .* give --force as well"):
        open_folder(tmp_path, resume=False)
    assert sorted(tmp_path.rglob("*")) == before
    folder = open_folder(tmp_path, resume=False, force=True)
    folder.begin()
    assert folder.result("one") is None
    assert not (tmp_path / "one.gguf").exists()


def test_no_resume_forgets_an_unfinished_run_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.begin()
    folder.clear_stage("one")
    (tmp_path / "one.gguf").write_text("product")
    folder.store("one", {"answer": 1}, files=[tmp_path / "one.gguf"], seconds=1.0)
    (tmp_path / "stages" / "two").mkdir()
    (tmp_path / "stages" / "two" / "half").write_text("not yet listed")
    (tmp_path / "stages" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    folder.release()
    again = open_folder(tmp_path, resume=False)
    again.begin()
    assert again.result("one") is None
    again.finish()
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert left == [STATE, "empty", "stages", "stages/notes.txt"]


def test_force_deletes_only_what_is_listed(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("mine")
    folder = open_folder(tmp_path, {"one": "other", "two": "b"}, force=True)
    assert (tmp_path / "one.gguf").exists()  # nothing before begin()
    (tmp_path / "empty").mkdir()
    folder.begin()
    folder.release()
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert left == [STATE, "empty", "mine", "mine/x", "notes.txt"]


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


def test_force_deletes_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "one.gguf").rename(tmp_path / "kept.gguf")
    (tmp_path / "one.gguf").symlink_to("kept.gguf")
    with open_folder(tmp_path, force=True) as folder:
        folder.begin()
    assert (tmp_path / "kept.gguf").read_text() == "product"
    assert not (tmp_path / "one.gguf").is_symlink()


def test_a_finished_run_has_no_file_of_an_earlier_attempt(tmp_path: Path) -> None:
    """A first attempt at gguf-q4 is interrupted, the next one writes gguf-q8_0."""
    with open_folder(tmp_path, {"one": "a", "export": "q4", "dropped": "x"}) as folder:
        folder.begin()
        for name, file in (("one", "one.bin"), ("export", "gguf/m.Q4_K_M.gguf"), ("dropped", "d")):
            folder.clear_stage(name)
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(file)
            folder.store(name, {}, files=[tmp_path / file], seconds=1.0)
    (tmp_path / "gguf" / "own.gguf").write_text("the user's")
    with open_folder(tmp_path, {"one": "a", "export": "q8"}) as folder:
        folder.begin()
        assert folder.redone == ["export"]
        assert folder.result("one") == {}
        folder.clear_stage("export")
        (tmp_path / "gguf" / "m.Q8_0.gguf").write_text("new")
        folder.store("export", {}, files=[tmp_path / "gguf" / "m.Q8_0.gguf"], seconds=1.0)
        (tmp_path / "report.json").write_text("{}")
        folder.own([tmp_path / "report.json"])
        folder.finish()
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == [
        STATE, "gguf/m.Q8_0.gguf", "gguf/own.gguf", "one.bin", "report.json",
        "stages/export/result.json", "stages/one/result.json",
    ]  # fmt: skip
    state = read_state(tmp_path)
    assert state is not None
    assert sorted(state["files"]) == [name for name in left if name != "gguf/own.gguf"]
    assert open_folder(tmp_path, {"one": "a", "export": "q8"}).finished
