"""The gated sum alone against its float64 reference: values, every gradient, edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clp_edge.kernels.gated_add import gated_add_reference, gated_add_triton
from tests.interpreted import kernels_on

SHAPES = [(5, 123), (1, 1), (3, 257), (3, 9001), (2, 3, 64)]
GATES = [0.0, 1e-6, 0.5, 1.0, -0.7]
# Relative to the largest value; the interpreter truncates to bf16 (PITFALLS 28).
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NAMES = ["x", "d_residual", "d_branch", "d_gate"]


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    return kernels_on(monkeypatch)


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """residual, branch and the upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).to(device, dtype) for _ in range(3)]


def run(function: Any, tensors: list[Tensor], gate: float) -> list[Tensor]:
    """x, then the gradients of residual, branch and gate."""
    residual, branch, dx = (tensor.detach() for tensor in tensors)
    wide = torch.float64 if residual.dtype == torch.float64 else torch.float32
    g = torch.tensor(gate, dtype=wide, device=residual.device, requires_grad=True)
    x = function(residual.requires_grad_(), branch.requires_grad_(), g)
    x.backward(dx)
    assert residual.grad is not None
    assert branch.grad is not None
    assert g.grad is not None
    return [x.detach(), residual.grad, branch.grad, g.grad]


def compare(got: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    for name, one, other in zip(NAMES, got, exact, strict=True):
        assert one.shape == other.shape
        error = float((one.double() - other.double()).abs().max())
        scale = max(float(other.abs().max()), exact[0].numel() ** 0.5 if name == "d_gate" else 1)
        assert error <= tolerance * scale, f"{name}: {error:.3g} of {scale:.3g}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_every_gradient(shape, dtype, device) -> None:
    tensors = draw(shape, dtype, device)
    exact = run(gated_add_reference, [tensor.double() for tensor in tensors], 0.5)
    compare(run(gated_add_triton, tensors, 0.5), exact, TOLERANCE[dtype])


@pytest.mark.parametrize("gate", GATES)
def test_every_gate(gate, device) -> None:
    tensors = draw((5, 123), torch.float32, device)
    exact = run(gated_add_reference, [tensor.double() for tensor in tensors], gate)
    got = run(gated_add_triton, tensors, gate)
    compare(got, exact, 3e-6)
    assert torch.equal(got[1], tensors[2]), "the stream's gradient passes through untouched"


def test_inputs_that_are_not_contiguous(device) -> None:
    residual, branch, dx = draw((6, 48), torch.float32, device)
    for tensors in (
        [residual[:, 5:37], branch[:, 1:33], dx[:, 2:34]],
        [residual.T, branch.T, dx.T],
        [residual[::2], branch[::2], dx[::2]],
    ):
        exact = run(gated_add_reference, [tensor.double() for tensor in tensors], 0.5)
        compare(run(gated_add_triton, tensors, 0.5), exact, 3e-6)


def test_an_expanded_upstream_gradient(device) -> None:
    residual, branch, _ = draw((4, 32), torch.float32, device)
    g = torch.tensor(0.5, device=device, requires_grad=True)
    gated_add_triton(residual, branch, g).sum().backward()
    assert g.grad is not None
    torch.testing.assert_close(g.grad, branch.sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_no_rows(shape, device) -> None:
    x, dr, db, dg = run(gated_add_triton, draw(shape, torch.float32, device), 0.5)
    assert x.shape == dr.shape == db.shape == shape
    assert float(dg) == 0.0


def test_two_runs_agree_to_the_bit(device) -> None:
    tensors = draw((7, 9001), torch.bfloat16, device)
    first, second = (run(gated_add_triton, tensors, 0.5) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_only_what_is_asked_for_is_formed(device) -> None:
    residual, branch, dx = draw((4, 64), torch.float32, device)
    g = torch.tensor(0.5, device=device, requires_grad=True)
    gated_add_triton(residual, branch, g).backward(dx)
    torch.testing.assert_close(g.grad, (dx * branch).sum(), rtol=1e-5, atol=1e-5)
    assert residual.grad is branch.grad is None
    b = branch.clone().requires_grad_()
    gated_add_triton(residual, b, 0.25).backward(dx)
    torch.testing.assert_close(b.grad, 0.25 * dx)
    assert not gated_add_triton(residual, branch, 0.5).requires_grad


def test_at_gate_one_it_is_the_sum(device) -> None:
    for dtype in (torch.float32, torch.float16):  # bf16 is truncated by the interpreter
        residual, branch, _ = draw((9, 130), dtype, device)
        assert torch.equal(gated_add_triton(residual, branch, 1.0), residual + branch)
        assert torch.equal(gated_add_reference(residual, branch, 1.0), residual + branch)


def test_the_gate_of_a_half_precision_model_is_not_rounded(device) -> None:
    ones = torch.ones(4, 64, dtype=torch.bfloat16, device=device)
    x = gated_add_triton(-ones, 256 * ones, 0.998)
    assert float(x[0, 0]) <= 254.5  # 255 with the gate rounded to 1


def test_gradcheck_of_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    r, b = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    g = torch.tensor(0.4, dtype=torch.float64)
    inputs = tuple(tensor.requires_grad_() for tensor in (r, b, g))
    assert torch.autograd.gradcheck(gated_add_reference, inputs)


@pytest.mark.parametrize("function", [gated_add_reference, gated_add_triton])
def test_what_does_not_fit_is_refused(function) -> None:
    with pytest.raises(ValueError, match="branch"):
        function(torch.zeros(2, 8), torch.zeros(2, 7), 1.0)
    with pytest.raises(ValueError, match="one gate"):
        function(torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(2))
