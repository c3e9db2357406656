"""--dry-run says the sizes of GGUF files to the byte, for compress and for export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clp_edge.cli import app
from clp_edge.config import CompressConfig, CutConfig, HealConfig
from clp_edge.models.source import locate
from clp_edge.pipeline import provenance
from clp_edge.pipeline.foretold import provenance_of
from tests.conftest import save_tiny_llama, write_words

pytestmark = pytest.mark.llama

TARGETS = ("--target", "gguf-q4", "--target", "gguf-iq4_nl")
COMPRESS = (
    *("compress", "tiny", "--preset", "quick", "--heal", "refit", *TARGETS, "--careful"),
    *("--calibration", "words.txt", "--eval-text", "other.txt"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foretold")
    save_tiny_llama(folder / "tiny", blocks=6)
    write_words(folder / "words.txt", seed=0, paragraphs=500)
    write_words(folder / "other.txt", seed=1, paragraphs=200)
    return folder


def says(place: Path, *arguments: str) -> dict:
    """What a command prints with --json."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def written(place: Path) -> dict[tuple[str, str], int]:
    """(target, variant) -> bytes of the files of a run with named blocks."""
    report = says(place, *COMPRESS, "--blocks", "2-3", "--out", "out")
    for made in report["artifacts"]:
        assert (place / "out" / made["path"]).stat().st_size == made["bytes"]
    return {(made["target"], made["variant"]): made["bytes"] for made in report["artifacts"]}


def test_compress_foretells_its_files_to_the_byte(place, written):
    plan = says(place, *COMPRESS, "--blocks", "2-3", "--out", "elsewhere", "--dry-run")
    assert not (place / "elsewhere").exists()
    assert len(written) == 4
    for row in plan["targets"]:
        assert row["dense_bytes"] == written[row["target"], "dense"]
        assert row["pruned_bytes"] == written[row["target"], "healed"]


def test_what_compress_writes_into_its_folder_is_foretold(place, written):
    found = provenance.read(place / "out" / "hf")
    config = CompressConfig(
        model=str(place / "tiny"),
        targets=("gguf-q4",),
        cut=CutConfig(blocks="2-3"),
        heal=HealConfig(rungs="refit"),
    )
    source = locate(str(place / "tiny"))
    foretold = provenance_of(config, source, "tiny-clp33", blocks=6, count=2)
    assert provenance.file_metadata(foretold) == provenance.file_metadata(found)


def test_blocks_that_are_still_to_be_found_move_no_more_than_the_padding(place):
    plain = [word for word in COMPRESS if word != "--careful"]
    found = says(place, *plain, "--drop-blocks", "2", "--out", "elsewhere", "--dry-run")
    named = says(place, *plain, "--blocks", "2-3", "--out", "elsewhere", "--dry-run")
    for row, exact in zip(found["targets"], named["targets"], strict=True):
        assert row["dense_bytes"] == exact["dense_bytes"]
        assert abs(row["pruned_bytes"] - exact["pruned_bytes"]) <= 32


def test_export_foretells_its_files_to_the_byte(place, written):
    export = ("export", "out", *TARGETS, "--out", "files")
    plan = says(place, *export, "--dry-run")
    assert not (place / "files").exists()
    made = says(place, *export)["artifacts"]
    assert len(made) == 2
    for row, artifact in zip(plan["targets"], made, strict=True):
        file = place / "files" / "gguf" / row["file"]
        assert row["target"] == artifact["target"]
        assert row["predicted_bytes"] == artifact["bytes"] == file.stat().st_size
        assert row["bits_per_weight"] == pytest.approx(artifact["bits_per_weight"], rel=1e-9)
        assert row["fallback_tensors"] == artifact["fallback_tensors"]


def test_export_of_a_folder_that_says_nothing_of_itself(place):
    export = ("export", "tiny", "--target", "gguf-q4_0", "--out", "plain")
    (row,) = says(place, *export, "--dry-run")["targets"]
    (artifact,) = says(place, *export)["artifacts"]
    assert row["predicted_bytes"] == artifact["bytes"]


def test_a_dry_run_of_export_refuses_what_the_export_refuses(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        arguments = ["export", "tiny", "--target", "gguf-iq2_xxs", "--out", "none"]
        found = [CliRunner().invoke(app, [*arguments, *more]) for more in ([], ["--dry-run"])]
    assert found[0].exit_code == found[1].exit_code == 2
    assert "needs an importance matrix" in found[1].stderr
    assert not (place / "none").exists()
