"""The forecast of a search says what the search then counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from clp_edge.cli import app
from clp_edge.config import CompressConfig
from clp_edge.pipeline import verbs
from clp_edge.pipeline.forecast import forecast_search
from clp_edge.pipeline.preflight import preflight
from tests.conftest import save_tiny_llama, write_words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    save_tiny_llama(folder / "tiny", blocks=8)
    write_words(folder / "words.txt", seed=0, paragraphs=500)
    return folder


@pytest.mark.parametrize(("method", "criterion"), [("exact", "raw"), ("halving", "healed")])
def test_the_passes_are_those_that_the_search_counts(
    method: str, criterion: str, place: Path
) -> None:
    config = CompressConfig.of(
        str(place / "tiny"), targets=(), preset="quick", drop_blocks=2, search=method,
        criterion=criterion, calibration=str(place / "words.txt"), out=place / method,
    )  # fmt: skip
    plan = preflight(config, suffix="search")
    said = forecast_search(config, plan, rate=1e9)
    counted = verbs.search(config, plan=plan).document.search.forward_equivalents
    assert counted is not None
    # attention is not in the forecast; the refitted windows' tails are judged again
    slack = 0.1 if criterion == "raw" else 0.5
    assert said.passes == pytest.approx(counted, rel=slack)
    assert said.tokens == 512
    assert said.state_bytes == 9 * 512 * 256 * 4
    assert said.seconds == pytest.approx(said.flops / 1e9)


def test_a_dry_run_prints_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    command = "compress tiny --drop-blocks 2 --preset quick --calibration words.txt --dry-run"
    done = CliRunner().invoke(app, [*command.split(), "--target", "gguf-q8_0", "--out", "dry"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.replace("│", " ").split())
    assert "forward passes of them" in said
    assert "MiB of block states" in said
    assert not (place / "dry").exists()
