"""The kernels compile for a real card, here without one: 16-byte accesses, no spilled register.

The interpreter runs what the compiler may refuse. triton brings its own assembler, so a cubin for
an H100 can be made on any Linux machine; a child process does it, since this one's triton
interprets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clp_edge.kernels import head_rows, launch
from tests.interpreted import INSTALLED, SWITCH

# name -> (module, function, constants, bf16 rows that it loads and stores)
CASES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "forward": ("gated_residual", "_forward", {"HIDDEN": 4096, "HAS_BRANCH": True}, 5),
    "forward, Llama-2-13B": ("gated_residual", "_forward", {"HIDDEN": 5120, "HAS_BRANCH": True}, 5),
    "forward, long": ("gated_residual", "_forward_long", {"HIDDEN": 16640, "HAS_BRANCH": True}, 7),
    "backward": ("gated_residual", "_backward", {"HIDDEN": 4096}, 7),
    "backward, long": ("gated_residual", "_backward_long", {"HIDDEN": 16640}, 10),
    "backward, gain": ("gated_residual", "_backward_gain", {"ROWS": 64, "BLOCK": 1024}, 2),
    "sum": ("gated_add", "_forward", {"BLOCK": 4096}, 3),
    "sum, backward": ("gated_add", "_backward", {"BLOCK": 4096}, 3),
    "log-sum-exp": ("head_rows", "_normalise", {"CAPPED": False, "REPLACE": True}, 3),
    "log-sum-exp, capped": ("head_rows", "_normalise", {"CAPPED": True, "REPLACE": True}, 3),
    # The dense scores are float32: twice the accesses.
    "divergence": ("head_rows", "_diverge", {"CAPPED": True, "REPLACE": True}, 7),
    "silu": ("glu", "_forward", {"ACTIVATION": "silu", "BLOCK": 2048}, 3),
    "silu, backward": ("glu", "_backward", {"ACTIVATION": "silu", "BLOCK": 2048}, 5),
    "gelu, backward": ("glu", "_backward", {"ACTIVATION": "gelu", "BLOCK": 2048}, 5),
    "tanh, backward": ("glu", "_backward", {"ACTIVATION": "gelu_tanh", "BLOCK": 2048}, 5),
}
FLAGS = {"HAS_DIRECT": True, "WANT_RESIDUAL": True, "WANT_BRANCH": True, "WANT_GATE": True}

CHILD = """
import importlib, inspect, json, re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from clp_edge.kernels import head_rows, launch
FLOATS = {"gate_ptr", "rstd_ptr", "dg_ptr", "dw_ptr", "lse_ptr", "kl_ptr", "d_ptr"}
NUMBERS = {"eps", "scale", "softcap"}
found = {}
for name, (module, function, constants, warps) in json.load(sys.stdin).items():
    kernel = getattr(importlib.import_module("clp_edge.kernels." + module), function)
    names = list(inspect.signature(kernel).parameters)
    signature, aligned = {}, {}
    for place, one in enumerate(names):
        if one in constants:
            signature[one] = "constexpr"
        elif one.endswith("_ptr"):
            signature[one] = "*fp32" if one in FLOATS else "*bf16"
        else:
            signature[one] = "fp32" if one in NUMBERS else "i32"
        if one not in constants and one not in NUMBERS | {"rows"}:
            aligned[(place,)] = [["tt.divisibility", 16]]
    places = {(names.index(one),): value for one, value in constants.items()}
    source = ASTSource(launch.compiled(kernel), signature, places, aligned)
    made = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}
    )
    ptx = made.asm["ptx"]
    found[name] = {
        "wide": len(re.findall(r"(?:ld|st)\\.global\\S*\\.v4\\.b32", ptx)),
        "narrow": len(re.findall(r"(?:ld|st)\\.global\\S*\\.b16", ptx)),
        "stack": len(re.findall(r"(?:ld|st)\\.local", ptx)),
        "cubin": len(made.asm["cubin"]),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    if not INSTALLED:
        pytest.skip("no triton; pip install 'clp-edge[kernels]'")
    cases = {}
    for name, (module, function, given, _) in CASES.items():
        constants = dict(given)
        if module == "gated_residual" and function != "_backward_gain":
            block = min(launch.MAX_BLOCK, launch.power_of_two(constants["HIDDEN"]))
            constants |= {"BLOCK": block, "GEMMA": False}
            constants |= FLAGS if "backward" in function else {}
        if module == "head_rows":
            constants |= {"WIDTH": 128_256, "BLOCK": head_rows.BLOCK}
        if (module, function) == ("gated_add", "_backward"):
            constants |= {"WANT_BRANCH": True, "WANT_GATE": True}
        cases[name] = (module, function, constants, launch.warps(constants["BLOCK"]))
    environment = {k: v for k, v in os.environ.items() if k != SWITCH}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    child: Path = tmp_path_factory.mktemp("child") / "child.py"
    child.write_text(CHILD, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(child)],
        input=json.dumps(cases),
        env={**environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_an_h100_gets_wide_accesses(name, compiled) -> None:
    found = compiled[name]
    assert found["cubin"] > 0
    assert found["narrow"] == 0, "a row is read two bytes at a time"
    assert found["stack"] == 0
    # Each bf16 row is 16 elements a thread: two accesses of 16 bytes.
    assert found["wide"] >= 2 * CASES[name][3]
