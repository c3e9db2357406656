"""torch, transformers and triton are all that the kernels, the search and their bench need.

A machine with a GPU may have nothing else: `make test-gpu PYTHON=python3 VENV=` installs nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys

BLOCKED = (
    "msgspec",
    "gguf",
    "llama_cpp",
    "onnx",
    "onnxruntime",
    "datasets",
    "matplotlib",
    "psutil",
)
WITHOUT = f"""
import sys

class Less:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *more):
        return None if name.split(".")[0] in {BLOCKED!r} else self.finder.find_spec(name, *more)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Less, sys.meta_path)
"""


def without_the_rest(code: str, timeout: int = 180) -> subprocess.CompletedProcess[str]:
    """Run code in a child that finds none of the other packages."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT + code],
        env={
            "CUDA_VISIBLE_DEVICES": "",
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": ":".join(path for path in sys.path if path),
        },
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_the_blocking_works() -> None:
    done = without_the_rest("import msgspec")
    assert done.returncode == 1
    assert "No module named 'msgspec'" in done.stderr


def test_every_module_of_kernels_search_and_their_bench_imports() -> None:
    code = """
import importlib, pkgutil
import clp_edge.kernels, clp_edge.search
names = [package.__name__ + "." + found.name
         for package in (clp_edge.kernels, clp_edge.search)
         for found in pkgutil.iter_modules(package.__path__)]
assert "clp_edge.kernels.head_rows" in names and "clp_edge.search.gate" in names, names
healing = {"clp_edge.search.healed", "clp_edge.search.compare"}  # stand on heal and its records
for name in [*sorted(set(names) - healing), "clp_edge.bench.kernels"]:
    importlib.import_module(name)
assert "triton" not in sys.modules, "triton is imported on the first launch, not before"
"""
    done = without_the_rest(code)
    assert done.returncode == 0, done.stderr


def test_a_search_and_the_bench_run() -> None:
    code = """
import json, torch
from transformers import LlamaConfig, LlamaForCausalLM
from clp_edge.bench.kernels import KernelSettings, bench_kernels
from clp_edge.models.anatomy import dissect
from clp_edge.search import search
from clp_edge.search.gated import gated_final_hidden

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=6,
                     num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
model = LlamaForCausalLM(config).eval().requires_grad_(False)
found = search(dissect(model), torch.randint(64, (4, 16)), count=2, method="gate")
assert found.segment.count == 2
measured = bench_kernels(KernelSettings(cpu=True, rounds=1, repeats=1), gated_final_hidden)
print(json.dumps(measured.as_json()))
"""
    done = without_the_rest(code)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["kernels"]) == 7
