"""Files of every runtime stand in one table; what is missing here is a row that says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clp_edge.bench.runner import BenchItem, BenchSettings, run_bench
from clp_edge.runtimes.session import RUNTIMES

pytestmark = pytest.mark.llama


def bench(folder: Path, paths: dict[str, Path]) -> dict:
    result = run_bench(
        [BenchItem(name, path, "dense", name) for name, path in paths.items()],
        BenchSettings(8, 4, rounds=2, threads=1, time_budget_s=120.0),
        measure_bandwidth=lambda threads: None,
        root=folder,
    )
    return {run.artifact: run for run in result.runs}


def test_torch_stands_beside_llama_cpp(
    tmp_path: Path,
    tiny_gguf: Path,
    tiny_llama_folder: Path,
) -> None:
    runs = bench(tmp_path, {"gguf": tiny_gguf, "folder": tiny_llama_folder})
    assert [run.runtime for run in runs.values()] == ["llama.cpp", "torch"]
    for run in runs.values():
        assert run.status == "ok", run.reason
        assert run.load_ms > 0
        assert [len(tokens) for tokens in run.token_ms] == [4, 4]
        assert sum(run.token_ms[0]) == pytest.approx(4e3 / run.decode_tps[0], rel=0.2)
    assert runs["folder"].gpu_layers is None  # a matter of llama.cpp alone
    assert runs["gguf"].gpu_layers is not None
    assert runs["gguf"].backend_reason


def test_a_runtime_that_is_not_installed_is_a_row_with_the_cure(
    tmp_path: Path,
    tiny_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for package in ("onnxruntime", "onnxruntime_genai"):
        (hidden / f"{package}.py").write_text(f"raise ImportError('no {package} here')")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    genai, plain = tmp_path / "genai", tmp_path / "optimum"
    for folder, config in ((genai, "genai_config.json"), (plain, "config.json")):
        folder.mkdir()
        (folder / config).write_text("{}")
        (folder / "model.onnx").write_bytes(b"")
    runs = bench(tmp_path, {"genai": genai, "optimum": plain, "gguf": tiny_gguf})
    for name, package in (("genai", "onnxruntime-genai"), ("optimum", "onnxruntime")):
        assert runs[name].status == "failed"
        assert f"{package} is not installed" in runs[name].reason
        assert "pip install" in runs[name].reason
    assert runs["gguf"].status == "ok"


def test_every_runtime_is_a_row_of_the_registry(tmp_path: Path) -> None:
    assert [row.name for row in RUNTIMES] == [
        "llama.cpp",
        "onnxruntime-genai",
        "onnxruntime",
        "torch",
    ]
    assert [row.name for row in RUNTIMES if row.offloads] == ["llama.cpp"]
    assert [row.name for row in RUNTIMES if row.device] == ["torch"]
    shutil.rmtree(tmp_path)
    assert not any(row.opens(tmp_path) for row in RUNTIMES)
