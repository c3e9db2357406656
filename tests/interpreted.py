"""Triton kernels in tests: on the GPU where there is one, in triton's interpreter otherwise.

triton decides at its own import whether its library functions are interpreted, so the switch must
be on then. It is on only during that import and inside a test that asks for it: the other tests,
and the child processes they start, see an unchanged environment.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SWITCH = "TRITON_INTERPRET"


def import_triton() -> None:
    """Import triton in the way these tests need it; skips where it is not installed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton; pip install 'clp-edge[kernels]'")
    if DEVICE == "cuda":
        import triton

        return
    imported_before = "triton" in sys.modules
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "1")
        import triton
        import triton.language

    plain = type(triton.language.sum).__name__ != "InterpretedFunction"
    if plain:
        pytest.fail(
            "triton was imported before the kernel tests, without its interpreter"
            if imported_before
            else "triton's library functions are not interpreted in this version"
        )


def kernels_on(monkeypatch: pytest.MonkeyPatch) -> str:
    """For one test: the kernels are chosen, and run on the device that is returned."""
    import_triton()
    if DEVICE == "cpu":
        monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setenv("CLP_EDGE_KERNELS", "triton")
    return DEVICE


assert os.environ.get(SWITCH) is None or DEVICE == "cpu", (
    f"{SWITCH} is set beside a GPU: the kernels would be interpreted"
)
