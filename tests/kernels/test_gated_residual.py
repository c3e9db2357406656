"""The fused gated residual step against its float64 reference: values, every gradient, edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clp_edge.kernels import launch
from clp_edge.kernels.gated_residual import gated_residual_reference, gated_residual_triton
from tests.interpreted import kernels_on

EPS = 1e-5
SHAPES = [(5, 123), (1, 1), (3, 257), (7, 2049), (2, 3, 64)]
GATES = [0.0, 1e-6, 0.5, 1.0, -0.7]
# Relative to the largest value of the row; the interpreter truncates to bf16 (PITFALLS 28).
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    return kernels_on(monkeypatch)


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """residual, branch, gain and the two upstream gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    gain = 1.0 + 0.3 * normal(shape[-1])
    return [normal(*shape), normal(*shape), gain, normal(*shape), normal(*shape)]


def run(function: Any, tensors: list[Tensor], gate: float, casting: str, **more: Any) -> list:
    """x, y, then the gradients of residual, branch, gain and gate."""
    residual, branch, gain, dx, dy = (tensor.detach() for tensor in tensors)
    wide = torch.float64 if residual.dtype == torch.float64 else torch.float32
    g = torch.tensor(gate, dtype=wide, device=residual.device, requires_grad=True)
    inputs = [tensor.requires_grad_() for tensor in (residual, branch, gain)]
    x, y = function(*inputs[:2], g, inputs[2], eps=EPS, casting=casting, **more)
    torch.autograd.backward([x, y], [dx, dy])
    return [x.detach(), y.detach(), *(tensor.grad for tensor in inputs), g.grad]


def close(got: Tensor, exact: Tensor, tolerance: float, terms: int = 1) -> None:
    """Within `tolerance` of the largest exact value, for a sum of `terms` of that size each."""
    assert got.shape == exact.shape
    if exact.numel() == 0:
        return
    error = (got.double().cpu() - exact.double().cpu()).abs().max()
    scale = max(float(exact.abs().max()), terms**0.5)
    assert float(error) <= tolerance * scale, f"{float(error):.3g} of {scale:.3g}"


NAMES = ["x", "y", "d_residual", "d_branch", "d_gain", "d_gate"]


def compare(got: list, exact: list, dtype: torch.dtype) -> None:
    for name, one, other in zip(NAMES, got, exact, strict=True):
        terms = exact[0].numel() if name == "d_gate" else 1
        try:
            close(one, other, TOLERANCE[dtype], terms)
        except AssertionError as failure:
            raise AssertionError(f"{name}: {failure}") from None


@pytest.mark.parametrize("casting", ["llama", "gemma"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_every_gradient(shape, dtype, casting, device) -> None:
    tensors = draw(shape, dtype, device)
    exact = run(gated_residual_reference, [t.double() for t in tensors], 0.5, casting)
    compare(run(gated_residual_triton, tensors, 0.5, casting), exact, dtype)


@pytest.mark.parametrize("gate", GATES)
def test_every_gate(gate, device) -> None:
    tensors = draw((5, 123), torch.float32, device)
    exact = run(gated_residual_reference, [t.double() for t in tensors], gate, "llama")
    compare(run(gated_residual_triton, tensors, gate, "llama"), exact, torch.float32)


@pytest.mark.parametrize("casting", ["llama", "gemma"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_longer_than_a_block(dtype, casting, device) -> None:
    tensors = draw((2, 16_640), dtype, device)
    exact = run(gated_residual_reference, [t.double() for t in tensors], -0.7, casting)
    compare(run(gated_residual_triton, tensors, -0.7, casting), exact, dtype)
    small = run(gated_residual_triton, tensors, -0.7, casting, max_block=1024)
    compare(small, exact, dtype)


def test_the_long_walk_equals_the_short_one(device) -> None:
    tensors = draw((3, 257), torch.float32, device)
    whole = run(gated_residual_triton, tensors, 0.3, "llama")
    walked = run(gated_residual_triton, tensors, 0.3, "llama", max_block=64)
    compare(walked, whole, torch.float32)


@pytest.mark.parametrize("way", ["column slice", "transposed", "row stride"])
def test_inputs_that_are_not_contiguous(way, device) -> None:
    residual, branch, gain, dx, dy = draw((6, 48), torch.float32, device)
    if way == "column slice":
        tensors = [residual[:, 5:37], branch[:, 1:33], gain[3:35], dx[:, 2:34], dy[:, 9:41]]
    elif way == "transposed":
        gain = draw((48, 6), torch.float32, device)[2]
        tensors = [residual.T, branch.T, gain, dx.T, dy.T]
    else:
        tensors = [residual[::2], branch[::2], gain, dx[::2], dy[::2]]
    assert not tensors[0].is_contiguous()
    exact = run(gated_residual_reference, [t.double() for t in tensors], 0.5, "llama")
    compare(run(gated_residual_triton, tensors, 0.5, "llama"), exact, torch.float32)


def test_an_expanded_upstream_gradient(device) -> None:
    residual, branch, gain, *_ = draw((4, 32), torch.float32, device)
    g = torch.tensor(0.5, device=device, requires_grad=True)
    x, y = gated_residual_triton(residual, branch, g, gain, eps=EPS)
    (x.sum() + y.sum()).backward()
    h = torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)
    wide = [tensor.double() for tensor in (residual, branch, gain)]
    x, y = gated_residual_reference(wide[0], wide[1], h, wide[2], eps=EPS)
    (x.sum() + y.sum()).backward()
    close(g.grad, h.grad, 3e-6, residual.numel())


@pytest.mark.parametrize("used", ["x", "y"])
def test_only_one_output_is_used(used, device) -> None:
    residual, branch, gain, dx, _ = draw((4, 32), torch.float32, device)
    grads = []
    for function, wide in ((gated_residual_triton, False), (gated_residual_reference, True)):
        inputs = [t.double() if wide else t.clone() for t in (residual, branch, gain)]
        inputs = [t.requires_grad_() for t in inputs]
        g = torch.tensor(0.5, dtype=inputs[0].dtype, device=device, requires_grad=True)
        x, y = function(inputs[0], inputs[1], g, inputs[2], eps=EPS)
        (x if used == "x" else y).backward(dx.to(inputs[0].dtype))
        grads.append([inputs[0].grad, inputs[1].grad, g.grad])
    for got, exact in zip(*grads, strict=True):
        close(got, exact, 3e-6, residual.numel())


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_no_rows(shape, device) -> None:
    tensors = draw(shape, torch.float32, device)
    x, y, dr, db, dw, dg = run(gated_residual_triton, tensors, 0.5, "llama")
    assert x.shape == y.shape == dr.shape == db.shape == shape
    assert float(dg) == 0.0
    assert dw.shape == (64,)
    assert not dw.any()


@pytest.mark.parametrize("casting", ["llama", "gemma"])
def test_without_a_branch_only_the_norm_runs(casting, device) -> None:
    residual, _, gain, dx, dy = draw((5, 123), torch.float32, device)
    results = []
    for function, wide in ((gated_residual_triton, False), (gated_residual_reference, True)):
        r, w, up, down = (t.double() if wide else t.clone() for t in (residual, gain, dx, dy))
        r.requires_grad_()
        x, y = function(r, None, 0.0, w, eps=EPS, casting=casting)
        torch.autograd.backward([x, y], [up, down])
        results.append([x.detach(), y.detach(), r.grad])
    assert torch.equal(results[0][0], residual)
    for got, exact in zip(*results, strict=True):
        close(got, exact, 3e-6)


def test_a_number_as_the_gate(device) -> None:
    residual, branch, gain, *_ = draw((3, 40), torch.float32, device)
    tensor = gated_residual_triton(residual, branch, torch.tensor(0.25), gain, eps=EPS)
    number = gated_residual_triton(residual, branch, 0.25, gain, eps=EPS)
    assert all(torch.equal(one, other) for one, other in zip(tensor, number, strict=True))


def test_the_gate_of_a_half_precision_model_is_not_rounded(device) -> None:
    """bf16 knows no 0.998: a gate rounded to the model's dtype would be 1 there."""
    ones = torch.ones(4, 64, dtype=torch.bfloat16, device=device)
    gain = torch.ones(64, dtype=torch.bfloat16, device=device)
    x, _ = gated_residual_triton(-ones, 256 * ones, 0.998, gain, eps=EPS)
    assert float(x[0, 0]) <= 254.5  # 255 with the gate rounded to 1


@pytest.mark.parametrize("shape", [(7, 2049), (3, 257)])
def test_two_runs_agree_to_the_bit(shape, device) -> None:
    tensors = draw(shape, torch.bfloat16, device)
    first = run(gated_residual_triton, tensors, 0.5, "llama")
    second = run(gated_residual_triton, tensors, 0.5, "llama")
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_only_what_is_asked_for_is_formed(device) -> None:
    residual, branch, gain, dx, dy = draw((4, 64), torch.float32, device)
    g = torch.tensor(0.5, device=device, requires_grad=True)
    x, y = gated_residual_triton(residual, branch, g, gain, eps=EPS)
    torch.autograd.backward([x, y], [dx, dy])
    assert g.grad is not None
    assert residual.grad is branch.grad is gain.grad is None
    assert not gated_residual_triton(residual, branch, 0.5, gain, eps=EPS)[1].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("casting", ["llama", "gemma"])
def test_at_gate_one_it_is_transformers(casting, dtype, device) -> None:
    """The residual addition, then the family's own norm module: within one ulp of the dtype."""
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    residual, branch, gain, *_ = draw((9, 130), dtype, device)
    norm = (LlamaRMSNorm if casting == "llama" else GemmaRMSNorm)(130, eps=EPS)
    norm = norm.to(device, dtype)
    with torch.no_grad():
        norm.weight.copy_(gain)
        if dtype == torch.bfloat16 and device == "cpu":
            # The interpreter's sum is truncated, not rounded: compare the norm of the same sum.
            branch = torch.zeros_like(branch)
        x, y = gated_residual_triton(residual, branch, 1.0, gain, eps=EPS, casting=casting)
        expected = norm(residual + branch)
    assert torch.equal(x, residual + branch)
    ulp = torch.finfo(dtype).eps * expected.double().abs()
    allowed = 1.0
    if dtype == torch.float32:
        allowed = 3.0  # the sum of squares in another order
    elif casting == "llama" and dtype == torch.bfloat16 and device == "cpu":
        allowed = 2.0  # two truncations (before and after the gain) where torch rounds
    assert bool(((y.double() - expected.double()).abs() <= allowed * ulp + 1e-30).all())


@pytest.mark.parametrize("casting", ["llama", "gemma"])
@pytest.mark.parametrize("branch", [True, False])
def test_gradcheck_of_the_reference(casting, branch) -> None:
    generator = torch.Generator().manual_seed(0)
    r, b = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    w = torch.randn(5, generator=generator, dtype=torch.float64)
    g = torch.tensor(0.4, dtype=torch.float64)
    if branch:
        inputs = tuple(t.requires_grad_() for t in (r, b, g, w))
        assert torch.autograd.gradcheck(
            lambda *a: gated_residual_reference(*a, eps=EPS, casting=casting), inputs
        )
    else:
        assert torch.autograd.gradcheck(
            lambda r, w: gated_residual_reference(r, None, 0.0, w, eps=EPS, casting=casting),
            (r.requires_grad_(), w.requires_grad_()),
        )


@pytest.mark.parametrize("function", [gated_residual_reference, gated_residual_triton])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branch": torch.zeros(2, 7)}, "branch"),
        ({"weight": torch.zeros(7)}, "gain"),
        ({"gate": torch.zeros(2)}, "one gate"),
        ({"casting": "qwen"}, "casting"),
    ],
)
def test_what_does_not_fit_is_refused(function, changes, message) -> None:
    good = {
        "residual": torch.zeros(2, 8),
        "branch": torch.zeros(2, 8),
        "gate": 1.0,
        "weight": torch.ones(8),
        "eps": EPS,
    }
    with pytest.raises(ValueError, match=message):
        function(**{**good, **changes})


def test_sixteen_elements_go_to_a_thread() -> None:
    """Two 16-byte loads in half precision, and never more warps than the hardware has."""
    expected = {1: 1, 576: 2, 2048: 4, 4096: 8, 5120: 16, 8192: 16, 16_384: 32}
    assert {h: launch.warps(launch.power_of_two(h)) for h in expected} == expected
