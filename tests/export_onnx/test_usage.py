"""The model card's snippets run as they are printed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from clp_edge.errors import PreflightError
from clp_edge.export import export, plan, resolve
from clp_edge.export.onnx.optimum import unusable
from clp_edge.export.onnx.usage import PROMPT, usage
from clp_edge.progress import silent
from clp_edge.runtimes import open_artifact
from tests.export.models import tiny_folder


def run(text: str, folder) -> str:
    """What the fenced block prints, run beside the folder."""
    code = text.removeprefix("```python\n").removesuffix("```\n")
    assert "```" not in code
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", ["onnx-int8", "onnx-optimum-fp32"])
def test_the_snippet_runs(tmp_path, target):
    if target.startswith("onnx-optimum"):
        if unusable() is not None:
            pytest.skip("make test-optimum runs it")
    elif importlib.util.find_spec("onnxruntime_genai") is None:
        pytest.skip("no onnxruntime_genai")
    folder, _, hf = tiny_folder(tmp_path / "hf", model_type="llama", blocks=2)
    name = f"tiny.{target}"
    out = tmp_path / name
    export(folder, resolve(target), out, metadata={}, threads=1, progress=silent)
    prompt = hf.encode(PROMPT)
    length = len(prompt) + 6
    with open_artifact(out, threads=1, context=64) as session:
        continued = session.generate(prompt, 6)
    printed = run(usage(name, target=target, length=length), tmp_path)
    assert AutoTokenizer.from_pretrained(folder).decode(continued)[:8] in printed


def test_elsewhere_optimum_says_in_one_line_what_to_install(tmp_path):
    if unusable() is None:
        pytest.skip("this is Optimum's own environment")
    folder, model, hf = tiny_folder(tmp_path / "hf", model_type="llama", blocks=2)
    (problem,) = plan(model.config, hf, resolve("onnx-optimum-fp32")).problems
    assert str(problem).startswith("optimum-onnx is not installed here; it has an environment")
    assert "'clp-edge[optimum]'" in problem.cure
    assert "\n" not in str(problem)
    with pytest.raises(PreflightError, match="optimum-onnx is not installed here"):
        export(
            folder,
            resolve("onnx-optimum-int8"),
            tmp_path / "out",
            metadata={},
            threads=1,
            progress=silent,
        )
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"optimum-onnx": "0.1.0", "transformers": "5.23.0"}, "below 4.58, here is 5.23.0"),
        ({"transformers": "4.57.6"}, "optimum-onnx is not installed here"),
        ({"optimum-onnx": "0.1.0", "transformers": "4.57.6"}, ""),
    ],
)
def test_pitfall_16_optimum_beside_a_newer_transformers(monkeypatch, versions, said):
    monkeypatch.setattr("clp_edge.export.onnx.optimum.version_of", versions.get)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    found = unusable()
    assert (found is None) == (not said)
    assert said in str(found or "")
