"""--dry-run and the run itself agree: each bad case is tried both ways, message and exit code.

The runs that are refused are refused before any work, so nothing here runs a stage or llama.cpp.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from clp_edge.cli import app
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.models.source import check_weights, load_config, load_model, locate
from clp_edge.pipeline import lock
from clp_edge.pipeline.folder import STATE
from clp_edge.pipeline.overlap import overlaps
from tests.conftest import save_tiny_llama, write_words
from tests.models.tiny_gguf import byte_level_tokenizer, tiny_llama, write_gguf

pytestmark = pytest.mark.llama  # preflight asks whether llama.cpp is there

FLAGS = ["--preset", "quick", "--target", "gguf-q8_0", "--drop-blocks", "1", "--heal", "refit"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    save_tiny_llama(folder / "tiny", blocks=4)
    write_words(folder / "words.txt", seed=0, paragraphs=500)
    write_words(folder / "other.txt", seed=1, paragraphs=200)
    return folder


@pytest.fixture
def place(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, holding a model and two texts."""
    shutil.copytree(store, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> tuple[int, str]:
    """(exit code, what was said of the error)."""
    result = CliRunner().invoke(app, ["compress", *arguments])
    assert "Traceback" not in result.output
    _, error, said = " ".join(result.output.split()).partition("error: ")
    return result.exit_code, error + said


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file's size and time of change."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    return {str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in files}


def finished_run(out: Path, **changes: Any) -> None:
    out.mkdir()
    state = {"status": "finished", "command": "clp-edge compress x", "stages": {}, "files": [STATE]}
    (out / STATE).write_text(json.dumps({**state, **changes}))


def edit_weights(folder: Path, change: str) -> None:
    weights = load_file(folder / "model.safetensors")
    if change == "lost":
        del weights["model.layers.1.mlp.up_proj.weight"]
    elif change == "extra":
        weights["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)
    else:
        weights["model.norm.weight"] = torch.zeros(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def own_output(place: Path) -> None:
    """o/self is a finished run, and its own healed model is to be compressed again."""
    finished_run(place / "o", files=[STATE, "hf/config.json", "hf/model.safetensors"])
    (place / "tiny").rename(place / "o" / "hf")


def linked_weights(place: Path) -> None:
    finished_run(place / "o", files=[STATE, "weights"])
    (place / "tiny" / "model.safetensors").rename(place / "o" / "weights")
    (place / "tiny" / "model.safetensors").symlink_to(place / "o" / "weights")


def linked_out(place: Path) -> None:
    own_output(place)
    (place / "link").symlink_to(place / "o")


def texts_in_out(place: Path) -> None:
    finished_run(place / "o", files=[STATE, "words.txt"])
    (place / "words.txt").rename(place / "o" / "words.txt")


def text_folder(place: Path) -> None:
    (place / "texts").mkdir()
    (place / "words.txt").rename(place / "texts" / "words.txt")


def foreign(place: Path) -> None:
    (place / "o").mkdir()
    (place / "o" / "thesis.tex").write_text("mine")


def config_edit(place: Path) -> None:
    path = place / "tiny" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 300}))


def leak(place: Path) -> None:
    both = [(place / name).read_text()[:40_000] for name in ("words.txt", "other.txt")]
    (place / "other.txt").write_text("".join(both))


def nothing(place: Path) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """How the working folder is spoilt, what is typed, the exit code, and what has to be said."""

    spoil: Callable[[Path], Any]
    code: int
    said: str
    typed: str = "tiny"
    force: bool = True


CASES = {
    "the model is in --out": Case(
        own_output, 2, "/o/hf) lies inside --out o, where a run deletes", "o/hf"
    ),
    "a weight file is a link into --out": Case(linked_weights, 2, "lies inside --out o,"),
    "--out is a link to what holds the model": Case(
        linked_out, 2, "lies inside --out link,", "o/hf --out link"
    ),
    "--out is the model": Case(nothing, 2, "lies inside --out tiny,", "tiny --out tiny"),
    "the calibration text is in --out": Case(
        texts_in_out,
        2,
        "the text of --calibration (o/words.txt) lies inside",
        "tiny --calibration o/words.txt",
    ),
    "the evaluation text is in --out": Case(
        texts_in_out,
        2,
        "the text of --eval-text (o/words.txt) lies inside",
        "tiny --calibration other.txt --eval-text o/words.txt",
    ),
    "--out is in the text folder": Case(
        text_folder, 2, "would read its own report", "tiny --calibration texts --out texts/o"
    ),
    "foreign --out": Case(foreign, 1, "o exists and is not an output folder of clp-edge"),
    "--out is a file": Case(
        lambda place: (place / "o").write_text("mine"), 1, "not an output folder of clp-edge"
    ),
    "finished run of another command": Case(
        lambda place: finished_run(place / "o"), 1, "finished run of another command", force=False
    ),
    "--no-resume on a finished run": Case(
        lambda place: finished_run(place / "o"),
        1,
        "--no-resume would replace the finished run in o",
        "tiny --no-resume",
        force=False,
    ),
    "evaluation text is the calibration text": Case(
        nothing,
        1,
        "words.txt is the calibration text itself",
        "tiny --calibration words.txt --eval-text words.txt",
    ),
    "evaluation text shares text": Case(leak, 1, "share text with the calibration text"),
    "calibration text too short": Case(
        lambda place: (place / "words.txt").write_text("few words\n"), 1, "words.txt is too short"
    ),
    "evaluation text too short": Case(
        lambda place: (place / "other.txt").write_text("few words\n"), 1, "other.txt is too short"
    ),
    "--eval-tokens without --eval-text": Case(
        nothing,
        2,
        "--eval-tokens 512 needs --eval-text",
        "tiny --calibration words.txt --eval-tokens 512",
    ),
    "a weight is missing": Case(
        lambda place: edit_weights(place / "tiny", "lost"),
        1,
        "lacks model.layers.1.mlp.up_proj.weight",
    ),
    "a weight is left over": Case(
        lambda place: edit_weights(place / "tiny", "extra"), 1, "has no place for: model.layers.9"
    ),
    "a weight has another shape": Case(
        lambda place: edit_weights(place / "tiny", "shape"),
        1,
        "another shape than its config says: model.norm",
    ),
    "the config says another shape": Case(
        config_edit, 1, "another shape than its config says: model.layers"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_refuses_what_the_run_refuses(place: Path, name: str) -> None:
    case = CASES[name]
    case.spoil(place)
    typed = [*case.typed.split(), *FLAGS, *(["--force"] if case.force else [])]
    if "--calibration" not in typed:
        typed += ["--calibration", "words.txt", "--eval-text", "other.txt"]
    if "--out" not in typed:
        typed += ["--out", "o"]
    before = snapshot(place)
    dry = command(*typed, "--dry-run")
    assert snapshot(place) == before
    run = command(*typed)
    assert run == dry
    assert dry[0] == case.code, dry
    assert case.said in dry[1]
    assert snapshot(place) == before


def test_a_dry_run_that_says_yes_writes_nothing(place: Path) -> None:
    before = snapshot(place)
    assert command(
        "tiny", "--calibration", "words.txt", "--eval-text", "other.txt", "--out", "o", *FLAGS,
        "--dry-run",
    ) == (0, "")  # fmt: skip
    assert snapshot(place) == before
    assert not (place / "o").exists()


def test_a_run_at_work_is_seen_by_both(place: Path) -> None:
    (place / "o").mkdir()
    held = lock.take(place / "o")
    arguments = ("tiny", "--calibration", "words.txt", "--out", "o", "--force", *FLAGS)
    try:
        dry = command(*arguments, "--dry-run")
        assert command(*arguments) == dry
    finally:
        held.release()
    assert dry[0] == 1
    assert f"process {os.getpid()}" in dry[1]
    assert command(*arguments, "--dry-run") == (0, "")


def test_sharded_weights_are_compared(place: Path) -> None:
    source = locate(str(place / "tiny"))
    check_weights(source, load_config(source))
    model = load_model(source)
    model.save_pretrained(place / "sharded", max_shard_size="1MB")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place / "tiny" / file, place / "sharded")
    sharded = locate(str(place / "sharded"))
    assert len(list((place / "sharded").glob("*.safetensors"))) > 1
    check_weights(sharded, load_config(sharded))
    config = load_config(sharded)
    config.num_hidden_layers = 5
    with pytest.raises(ClpEdgeError, match=r"lacks model\.layers\.4"):
        check_weights(sharded, config)


def test_a_gguf_file_is_compared_by_its_header(tmp_path: Path) -> None:
    source = locate(str(write_gguf(tmp_path / "m.gguf", tiny_llama(), byte_level_tokenizer())))
    config = load_config(source)
    check_weights(source, config)
    config.num_hidden_layers += 1
    with pytest.raises(ClpEdgeError, match=r"m\.gguf lacks blk\.\d+\.attn_k\.weight"):
        check_weights(source, config)


def test_a_model_with_a_tied_head_passes(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "tied", blocks=2, tie_word_embeddings=True)
    source = locate(str(tmp_path / "tied"))
    check_weights(source, load_config(source))


def test_the_output_may_lie_beside_or_below_the_model(place: Path) -> None:
    def found(out: str, **texts: str) -> list[UsageError]:
        texts = {"calibration": "words.txt", "evaluation": "other.txt", **texts}
        return list(overlaps(Path(out), model=place / "tiny", **texts))

    assert found("o") == []
    assert found("tiny/o") == []
    assert found("tiny2") == []
    assert found("o", calibration="hf:o") == []
    assert len(found(".")) == 3
    (place / "texts").mkdir()
    assert found("o", calibration="texts") == []
    (place / "texts" / "a.txt").symlink_to(place / "o" / "a.txt")
    (place / "o").mkdir()
    (place / "o" / "a.txt").write_text("text")
    assert len(found("o", calibration="texts")) == 1


def test_pitfall_15b_a_cut_that_gguf_cannot_express_is_refused_with_the_nearest(
    tmp_path: Path,
) -> None:
    """SmolLM3: which blocks have no rope is fixed in llama.cpp's code by the block's number."""
    from clp_edge.config import CompressConfig, CutConfig
    from clp_edge.errors import PreflightError
    from clp_edge.pipeline.preflight import preflight
    from tests.export.family_rows import ROWS, family_folder

    folder = tmp_path / "smollm3"
    family_folder(folder, ROWS["smollm3"])
    config = CompressConfig(model=str(folder), cut=CutConfig(blocks="1-2"), out=tmp_path / "out")
    with pytest.raises(PreflightError, match=r"without blocks 1-2: .*nearest.*--blocks \d+-\d+"):
        preflight(config)
