"""Rows of logits: log-sum-exp, probabilities, KL and its gradient, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clp_edge.kernels import dispatch, head_rows
from clp_edge.kernels.head_kl import Head, head_kl, teacher
from clp_edge.kernels.head_rows import (
    diverge_reference_,
    diverge_triton_,
    normalise_reference_,
    normalise_triton_,
)
from tests.interpreted import kernels_on

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of what is written back, by its largest value; the interpreter truncates (PITFALLS 28).
ROUNDED = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
WIDTHS = [1, 37, 4096, 5003]  # one, less than a block, a block, an odd tail
HEADS: list[dict[str, Any]] = [
    {"scale": 1.0, "softcap": None},
    {"scale": 0.125, "softcap": None},
    {"scale": 1.0, "softcap": 3.0},
    {"scale": 0.7, "softcap": 30.0},
]


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    return kernels_on(monkeypatch)


def rows(width: int, dtype: torch.dtype, device: str, count: int = 3) -> tuple[Tensor, Tensor]:
    """Scores of both models, 6 deviations wide."""
    generator = torch.Generator().manual_seed(width)
    dense = 6 * torch.randn(count, width, generator=generator)
    candidate = dense + torch.randn(count, width, generator=generator)
    return dense.to(device, dtype), candidate.to(device, dtype)


def logits_64(scores: Tensor, scale: float, softcap: float | None) -> Tensor:
    z = scores.double() * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def close(got: Tensor, exact: Tensor, tolerance: float) -> None:
    assert got.shape == exact.shape
    error = float((got.double() - exact).abs().max())
    scale = max(float(exact.abs().max()), 1e-30)
    assert error <= tolerance * scale, f"{error:.3g} of {scale:.3g}"


@pytest.mark.parametrize("run", [normalise_triton_, normalise_reference_])
@pytest.mark.parametrize("how", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_log_sum_exp_and_the_probabilities(width, dtype, how, run, device) -> None:
    _, scores = rows(width, dtype, device)
    z = logits_64(scores, **how)
    given = scores.clone()
    lse = run(given, **how, replace=True)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), torch.logsumexp(z, -1), rtol=2e-6, atol=4e-6)
    close(given, torch.softmax(z, -1), ROUNDED[dtype] * (4 if dtype == torch.float32 else 1))
    given = scores.clone()
    torch.testing.assert_close(run(given, **how, replace=False), lse, rtol=1e-6, atol=1e-6)
    if run is normalise_triton_:
        assert torch.equal(given, scores), "the number alone writes nothing"


@pytest.mark.parametrize("run", [diverge_triton_, diverge_reference_])
@pytest.mark.parametrize("how", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_divergence_and_its_gradient(width, dtype, how, run, device) -> None:
    dense, scores = rows(width, dtype, device)
    leaf = scores.double().requires_grad_()
    p = torch.log_softmax(logits_64(dense, **how), -1)
    kl = (p.exp() * (p - torch.log_softmax(logits_64(leaf, **how), -1))).sum(-1)
    kl.sum().backward()
    assert leaf.grad is not None
    given = scores.clone()
    got = run(dense.clone(), given, **how, replace=True)
    torch.testing.assert_close(got.double(), kl.detach(), rtol=1e-5, atol=1e-5)
    if width > 1:
        # An entry is a difference of probabilities of at most 1 each, times the scale.
        assert float((given.double() - leaf.grad).abs().max()) <= ROUNDED[dtype] * how["scale"]
        assert float(leaf.grad.abs().max()) > 20 * ROUNDED[torch.float32] * how["scale"]
    again = run(dense.clone(), scores.clone(), **how, replace=False)
    torch.testing.assert_close(again, got, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vocabulary_of_49152(dtype, device) -> None:
    """With a long tail: most of the mass is in numbers that one long sum would lose."""
    dense, scores = rows(49_152, dtype, device, count=2)
    for way in (dense.div_(3), scores.div_(3)):
        assert float(torch.softmax(way.double(), -1).max()) < 0.1
    kl = torch.nn.functional.kl_div(
        torch.log_softmax(scores.double(), -1),
        torch.log_softmax(dense.double(), -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    got = diverge_triton_(dense.clone(), scores.clone(), scale=1.0, softcap=None, replace=False)
    torch.testing.assert_close(got.double(), kl, rtol=0, atol=5e-6)
    lse = normalise_triton_(scores.clone(), scale=1.0, softcap=None, replace=False)
    exact = torch.logsumexp(scores.double(), -1)
    torch.testing.assert_close(lse.double(), exact, rtol=0, atol=5e-6)


@pytest.mark.parametrize("run", [normalise_triton_, normalise_reference_])
def test_far_apart_and_masked_logits(run, device) -> None:
    scores = torch.full((3, 300), -1e4, device=device)
    scores[0, 299] = 1e4
    scores[1, 7] = float("-inf")
    scores[2, 0] = float("nan")
    lse = run(scores, scale=1.0, softcap=None, replace=True)
    assert float(lse[0]) == 1e4
    assert float(lse[1]) == pytest.approx(-1e4 + torch.log(torch.tensor(299.0)).item(), abs=2e-3)
    assert bool(lse[2].isnan()), "a model that overflows must not look sound"
    assert scores[0, 299] == 1.0
    assert scores[1, 7] == 0.0


@pytest.mark.parametrize("run", [normalise_triton_, normalise_reference_])
def test_no_rows_and_bad_rows(run, device) -> None:
    how: dict[str, Any] = {"scale": 1.0, "softcap": None, "replace": True}
    assert run(torch.zeros(0, 5, device=device), **how).shape == (0,)
    for bad in (torch.zeros(5), torch.zeros(4, 6).T, torch.zeros(3, 0)):
        with pytest.raises(ValueError, match="scores"):
            run(bad.to(device), **how)
    diverge = diverge_triton_ if run is normalise_triton_ else diverge_reference_
    assert diverge(torch.zeros(0, 5), torch.zeros(0, 5), **how).shape == (0,)
    with pytest.raises(ValueError, match="rows of"):
        diverge(torch.zeros(2, 4), torch.zeros(2, 5), **how)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_kl_by_the_kernel_equals_head_kl_by_torch(dtype, softcap, device, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1031, 24, generator=generator).to(device, dtype)
    bias = torch.randn(1031, generator=generator).to(device, dtype)
    dense = torch.randn(9, 24, generator=generator).to(device, dtype)
    candidate = dense + 0.3 * torch.randn(9, 24, generator=generator).to(device, dtype)
    head = Head(weight, bias, 0.8, softcap)
    known = teacher(head, dense)
    ran: list[str] = []
    for name in ("normalise_triton_", "diverge_triton_"):
        real = getattr(head_rows, name)
        monkeypatch.setattr(
            dispatch,
            name,
            lambda *a, real=real, name=name, **k: (ran.append(name), real(*a, **k))[1],
        )
    found = []
    for way in ("triton", "torch"):
        monkeypatch.setenv(dispatch.VARIABLE, way)
        state = candidate.clone().requires_grad_()
        values = head_kl(head, known, state, chunk=4)
        values.sum().backward()
        assert state.grad is not None
        with torch.no_grad():
            found.append((values.detach(), state.grad.double(), head_kl(head, known, candidate)))
    assert ran == ["normalise_triton_" if softcap is None else "diverge_triton_"] * 4
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-5, atol=1e-5)
    error = (found[0][1] - found[1][1]).norm() / found[1][1].norm()
    # The interpreter truncates bf16 probabilities where torch rounds them.
    assert float(error) < (1e-5 if dtype == torch.float32 else 2e-2)
