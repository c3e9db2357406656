"""Triton kernels in tests: on the GPU where there is one, in triton's interpreter otherwise.

triton decides at its own import whether its library functions are interpreted. So it is imported
here, while pytest still collects, before any test can import it in the plain way; the switch is on
during that import and inside a test that asks for it. The other tests, and the child processes
they start, see an unchanged environment.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SWITCH = "TRITON_INTERPRET"
INSTALLED = importlib.util.find_spec("triton") is not None


def _import_triton() -> bool:
    """Whether triton's library functions are interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv(SWITCH, "1")
        import triton.language

    return type(triton.language.sum).__name__ == "InterpretedFunction"


INTERPRETED = INSTALLED and _import_triton()


def kernels_on(monkeypatch: pytest.MonkeyPatch) -> str:
    """For one test: the Triton kernels are chosen; returns the device that they run on.

    Skips where triton is not installed.
    """
    if not INSTALLED:
        pytest.skip("no triton; pip install 'clp-edge[kernels]'")
    if (DEVICE == "cuda") == INTERPRETED:
        pytest.fail(
            f"{SWITCH} is set beside a GPU"
            if INTERPRETED
            else "something imported triton while pytest collected, without its interpreter"
        )
    if DEVICE == "cpu":
        monkeypatch.setenv(SWITCH, "1")
    else:
        assert SWITCH not in os.environ
    monkeypatch.setenv("CLP_EDGE_KERNELS", "triton")
    return DEVICE
