"""Fused SwiGLU and GeGLU against their float64 references: values, both gradients, edges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clp_edge.kernels.glu import geglu_reference, geglu_triton, swiglu_reference, swiglu_triton
from tests.interpreted import kernels_on

SHAPES = [(5, 123), (1, 1), (3, 257), (7, 2049), (2, 3, 64)]
# Relative to the largest value; the interpreter truncates to bf16, twice (PITFALLS 28).
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], dict[str, bool]]] = {
    "swiglu": (swiglu_triton, swiglu_reference, {}),
    "geglu tanh": (geglu_triton, geglu_reference, {"tanh": True}),
    "geglu erf": (geglu_triton, geglu_reference, {"tanh": False}),
}


# numpy says so when exp overflows to infinity, which the logistic function turns into 0.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    return kernels_on(monkeypatch)


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """gate, up and the upstream gradient; the gate reaches both tails."""
    generator = torch.Generator().manual_seed(0)
    scale = (3.0, 1.0, 1.0)
    return [(s * torch.randn(*shape, generator=generator)).to(device, dtype) for s in scale]


def run(function: Callable[..., Tensor], tensors: list[Tensor], options: dict) -> list[Tensor]:
    """y, d_gate, d_up."""
    gate, up, dy = (tensor.detach() for tensor in tensors)
    y = function(gate.requires_grad_(), up.requires_grad_(), **options)
    y.backward(dy)
    assert gate.grad is not None
    assert up.grad is not None
    return [y.detach(), gate.grad, up.grad]


def compare(got: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    for name, one, other in zip(("y", "d_gate", "d_up"), got, exact, strict=True):
        assert one.shape == other.shape
        error = float((one.double() - other.double()).abs().max())
        scale = max(1.0, float(other.abs().max()))
        assert error <= tolerance * scale, f"{name}: {error:.3g} of {scale:.3g}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, dtype, form, device) -> None:
    fused, reference, options = FORMS[form]
    tensors = draw(shape, dtype, device)
    exact = run(reference, [tensor.double() for tensor in tensors], options)
    compare(run(fused, tensors, options), exact, TOLERANCE[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_far_tails_stay_finite(form, device) -> None:
    fused, reference, options = FORMS[form]
    gate = torch.tensor([[-1e4, -200.0, -90.0, -1e-6, 0.0, 90.0, 200.0, 1e4]], device=device)
    tensors = [gate, torch.ones_like(gate), torch.ones_like(gate)]
    got = run(fused, tensors, options)
    assert all(bool(tensor.isfinite().all()) for tensor in got)
    exact = run(reference, [tensor.double() for tensor in tensors], options)
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_halves_of_one_product(form, device) -> None:
    """Phi-3 projects to both halves at once: views with a row stride, and no copy of them."""
    fused, reference, options = FORMS[form]
    packed = draw((6, 80), torch.float32, device)[0]
    dy = draw((6, 40), torch.float32, device)[2]
    grads = []
    for function, source in ((fused, packed.clone()), (reference, packed.double())):
        gate, up = source.requires_grad_().chunk(2, dim=-1)
        function(gate, up, **options).backward(dy.to(source.dtype))
        grads.append(source.grad)
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-5, atol=1e-5)


def test_transposed_inputs(device) -> None:
    tensors = [tensor.T for tensor in draw((6, 48), torch.float32, device)]
    exact = run(swiglu_reference, [tensor.double() for tensor in tensors], {})
    compare(run(swiglu_triton, tensors, {}), exact, 3e-6)


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_no_rows(shape, device) -> None:
    y, d_gate, d_up = run(swiglu_triton, draw(shape, torch.float32, device), {})
    assert y.shape == d_gate.shape == d_up.shape == shape


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_the_references(form) -> None:
    _, reference, options = FORMS[form]
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    inputs = tuple(tensor.requires_grad_() for tensor in pair)
    assert torch.autograd.gradcheck(lambda a, b: reference(a, b, **options), inputs)


@pytest.mark.parametrize("function", [swiglu_triton, swiglu_reference, geglu_triton])
def test_halves_that_do_not_fit_are_refused(function) -> None:
    with pytest.raises(ValueError, match="gate"):
        function(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="bfloat16"):
        function(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bfloat16))
