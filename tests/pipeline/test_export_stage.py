"""The export stage leaves no intermediate behind, whether it went well or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from clp_edge.cli import app
from clp_edge.errors import VerificationError
from clp_edge.export.gguf import exporter
from tests.conftest import save_tiny_llama

pytestmark = pytest.mark.llama


@pytest.mark.parametrize("fails", [False, True])
def test_no_f16_file_stays_in_the_stage_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    save_tiny_llama(tmp_path / "tiny", blocks=4)
    monkeypatch.chdir(tmp_path)
    real, seen = exporter.quantize, []

    def watched(source, destination, target, **how):
        seen.append(source)
        assert source.is_file()
        lines = real(source, destination, target, **how)
        if fails:
            raise VerificationError("the file is damaged", "try again")
        return lines

    monkeypatch.setattr(exporter, "quantize", watched)
    done = CliRunner().invoke(app, ["export", "tiny", "--target", "gguf-q4_0", "--out", "out"])
    assert done.exit_code == (3 if fails else 0), done.output
    assert seen
    assert seen[0].resolve().is_relative_to(tmp_path / "out")
    assert list((tmp_path / "out").rglob("*F16*")) == []
    assert list((tmp_path / "out").rglob("*.safetensors")) == []
    left = [path.name for path in (tmp_path / "out" / "gguf").iterdir()]
    # what failed keeps the name that says so; see PITFALLS 25
    assert ("tiny.Q4_0.gguf" in left) != fails
    assert ("tiny.Q4_0.gguf.partial" in left) == fails
