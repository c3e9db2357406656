"""The choice of kernels and its reason; what is forced and cannot be had is refused."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from clp_edge.errors import MissingDependencyError, UsageError
from clp_edge.kernels import dispatch
from tests.interpreted import DEVICE, INSTALLED, SWITCH, kernels_on

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.delenv(SWITCH, raising=False)
    dispatch._choose.cache_clear()


def test_the_cpu_takes_torch_and_says_why() -> None:
    assert dispatch.choose(CPU) == ("torch", "no CUDA device")
    if DEVICE == "cpu":
        assert dispatch.describe() == "torch reference (no CUDA device)"


@pytest.mark.gpu
def test_cuda_takes_triton_and_names_the_card() -> None:
    choice = dispatch.choose(torch.device("cuda"))
    assert choice == ("triton", torch.cuda.get_device_name())
    assert dispatch.describe().startswith("Triton (")


@pytest.mark.parametrize("value", ["torch", "TORCH", " torch "])
def test_torch_can_be_forced(value, monkeypatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, value)
    assert dispatch.choose(torch.device("cuda")).name == "torch"


def test_a_bad_value_is_refused(monkeypatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "cutlass")
    with pytest.raises(UsageError, match=r"'cutlass' is not known; set it to triton, torch"):
        dispatch.choose(CPU)


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch) -> None:
    if not INSTALLED:
        pytest.skip("no triton")
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with pytest.raises(UsageError, match="need a CUDA device; unset CLP_EDGE_KERNELS"):
        dispatch.choose(CPU)
    monkeypatch.setenv(SWITCH, "1")
    assert dispatch.choose(CPU) == ("triton", "CLP_EDGE_KERNELS=triton, interpreted on the CPU")


def test_triton_forced_but_not_installed(monkeypatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "triton" else real(name)
    )
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with pytest.raises(MissingDependencyError, match=r"pip install 'clp-edge\[kernels\]'"):
        dispatch.choose(CPU)
    monkeypatch.delenv(dispatch.VARIABLE)
    assert dispatch.choose(torch.device("cuda")) == ("torch", "triton is not installed")


def test_an_old_card_takes_torch(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla P40")
    choice = dispatch.choose(torch.device("cuda", 0))
    assert choice == ("torch", "Tesla P40 is older than Triton supports (sm_61)")


def test_no_compiler_takes_torch(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    choice = dispatch.choose(torch.device("cuda", 0))
    assert choice == ("torch", "triton needs a C compiler and there is none")


def test_the_package_imports_and_runs_without_triton() -> None:
    """triton is looked for when a kernel is launched, and at no other time."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from clp_edge.kernels import dispatch\n"
        "r = torch.randn(2, 8); w = torch.ones(8)\n"
        "x, y = dispatch.gated_residual(r, r, 0.5, w, eps=1e-6)\n"
        "assert torch.allclose(x, 1.5 * r) and dispatch.swiglu(r, r).shape == r.shape\n"
    )
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": ":".join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["gated_residual", "gated_add", "swiglu", "geglu"])
def test_operations_go_where_the_choice_says(name, monkeypatch) -> None:
    """The kernels' own autograd functions run where Triton is chosen, and only there."""
    device = kernels_on(monkeypatch)

    def node(dtype: torch.dtype) -> str:
        r = torch.randn(2, 8, dtype=dtype, device=device, requires_grad=True)
        if name == "gated_residual":
            weight = torch.ones(8, dtype=dtype, device=device)
            result = dispatch.gated_residual(r, r, 0.5, weight, eps=1e-6)[1]
        elif name == "gated_add":
            result = dispatch.gated_add(r, r, 0.5)
        else:
            result = getattr(dispatch, name)(r, r)
        names, nodes = set(), [result.grad_fn]
        while nodes:
            at = nodes.pop()
            names.add(type(at).__name__)
            nodes += [after for after, _ in at.next_functions if after is not None]
        return " ".join(names)

    own = {"gated_residual": "_GatedResidual", "gated_add": "_GatedAdd"}.get(name, "_Glu")
    own += "Backward"
    assert own in node(torch.float32)
    assert own not in node(torch.float64), "the kernels do not compute in float64"
    monkeypatch.setenv(dispatch.VARIABLE, "torch")
    assert own not in node(torch.float32)
