"""KL from hidden states against float64 logits, its gradient against autograd, chunking."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clp_edge.kernels.head_kl import Head, Teacher, head_kl, head_nll, teacher
from clp_edge.metrics import token_kl, token_nll

CASES = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.125},
    "bias and scale": {"bias": True, "scale": 0.5},
    "soft cap": {"softcap": 3.0},
    "soft cap and scale": {"softcap": 2.0, "scale": 0.7},
}


def make(
    case: dict, dtype: torch.dtype, tokens: int = 13
) -> tuple[Head, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(101, 24, generator=generator, dtype=torch.float64)
    bias = torch.randn(101, generator=generator, dtype=torch.float64) if case.get("bias") else None
    dense = torch.randn(tokens, 24, generator=generator, dtype=torch.float64)
    candidate = dense + 0.3 * torch.randn(tokens, 24, generator=generator, dtype=torch.float64)
    head = Head(
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        case.get("scale", 1.0),
        case.get("softcap"),
    )
    return head, dense.to(dtype), candidate.to(dtype)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [1, 5, 13, 64])
def test_equals_kl_of_the_logits(name: str, chunk: int) -> None:
    head, dense, candidate = make(CASES[name], torch.float32)
    exact_head, exact_dense, exact_candidate = make(CASES[name], torch.float64)
    expected = token_kl(exact_head.logits(exact_dense), exact_head.logits(exact_candidate))
    got = head_kl(head, teacher(head, dense, chunk=chunk), candidate, chunk=chunk)
    torch.testing.assert_close(got, expected.float(), rtol=2e-4, atol=2e-5)
    same = head_kl(head, teacher(head, dense), dense)
    assert same.abs().max() < 2e-5


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_autograd_through_the_logits(name: str) -> None:
    head, dense, candidate = make(CASES[name], torch.float32)
    weights = torch.linspace(-1.0, 2.0, len(dense))
    candidate.requires_grad_()
    (head_kl(head, teacher(head, dense), candidate, chunk=4) * weights).sum().backward()

    exact_head, exact_dense, exact_candidate = make(CASES[name], torch.float64)
    exact_candidate.requires_grad_()
    log_dense = torch.log_softmax(exact_head.logits(exact_dense), -1)
    log_candidate = torch.log_softmax(exact_head.logits(exact_candidate), -1)
    kl = (log_dense.exp() * (log_dense - log_candidate)).sum(-1)
    (kl * weights.double()).sum().backward()
    torch.testing.assert_close(candidate.grad, exact_candidate.grad.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_likelihood_comes_without_another_pass(name: str) -> None:
    head, dense, candidate = make(CASES[name], torch.float32)
    exact, exact_dense, exact_candidate = make(CASES[name], torch.float64)
    targets = torch.arange(len(dense)) * 7 % 101
    kept = teacher(head, dense)
    kl = head_kl(head, kept, candidate)
    for hidden, of, known in ((candidate, exact_candidate, kl), (dense, exact_dense, None)):
        got = head_nll(head, kept, hidden, targets, kl=known)
        expected = -torch.log_softmax(exact.logits(of), -1)[torch.arange(len(targets)), targets]
        torch.testing.assert_close(got, expected.float(), rtol=2e-4, atol=5e-5)
        torch.testing.assert_close(
            got, token_nll(head.logits(hidden), targets), rtol=2e-4, atol=5e-5
        )


def test_no_tokens_and_wrong_lengths() -> None:
    head, dense, candidate = make({}, torch.float32)
    empty = head_kl(head, teacher(head, dense[:0]), candidate[:0])
    assert empty.shape == (0,)
    with pytest.raises(ValueError, match="13 candidate tokens"):
        head_kl(head, teacher(head, dense[:5]), candidate)


def test_the_teacher_can_be_indexed_by_token() -> None:
    head, dense, candidate = make({}, torch.float32)
    whole = teacher(head, dense)
    index = torch.tensor([7, 2, 2])
    torch.testing.assert_close(
        head_kl(head, whole.select(index), candidate[index]),
        head_kl(head, whole, candidate)[index],
    )


VOCABULARY = 49_152


def make_wide(dtype: torch.dtype, *, softcap: float | None = None) -> tuple[Head, Any, Any]:
    """A head as wide as the demo model's with a long tail of small probabilities."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.35 * torch.randn(VOCABULARY, 64, generator=generator)
    dense = torch.randn(48, 64, generator=generator)
    candidate = dense + 0.3 * torch.randn(48, 64, generator=generator)
    return Head(weight.to(dtype), softcap=softcap), dense.to(dtype), candidate.to(dtype)


def exact_kl(head: Head, dense: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """In float64, from the very values that the head and the states have."""
    wide = Head(head.weight.double(), head.bias, head.scale, head.softcap)
    return token_kl_64(wide.logits(dense.double()), wide.logits(candidate.double()))


def token_kl_64(dense: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    p, q = torch.log_softmax(dense, -1), torch.log_softmax(candidate, -1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_long_tail_of_small_probabilities_is_not_lost(
    dtype: torch.dtype, softcap: float | None
) -> None:
    """einsum over 49,152 float32 entries lost 1.65e-3 nats; half precision may not round either."""
    head, dense, candidate = make_wide(dtype, softcap=softcap)
    expected = exact_kl(head, dense, candidate)
    assert 0.1 < expected.mean() < 3.0
    error = head_kl(head, teacher(head, dense), candidate).double() - expected
    assert error.mean().abs() < 1e-5
    assert error.abs().max() < 1e-4
    assert head_kl(head, teacher(head, dense), dense).mean().abs() < 1e-5


@pytest.mark.parametrize("wanted", [False, True])
def test_kl_of_wide_logits_is_not_biased_with_and_without_a_gradient(wanted: bool) -> None:
    head, dense, candidate = make_wide(torch.float32)
    dense_logits, logits = head.logits(dense), head.logits(candidate)
    expected = token_kl_64(dense_logits.double(), logits.double())
    error = token_kl(dense_logits, logits.requires_grad_(wanted)).detach().double() - expected
    assert error.mean().abs() < 5e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_in_half_precision(dtype: torch.dtype) -> None:
    """Against float64 from the same rounded values; mean over tokens, as a training step has it."""
    head, dense, candidate = make_wide(dtype)
    candidate.requires_grad_()
    scale = 1024.0  # what keeps float16 gradients above its smallest number
    (head_kl(head, teacher(head, dense), candidate).mean() * scale).backward()
    exact = candidate.detach().double().requires_grad_()
    exact_kl(head, dense, exact).mean().backward()
    error = candidate.grad.double() / scale - exact.grad
    assert error.norm() < 0.02 * exact.grad.norm()


def test_parts_of_a_teacher_in_a_row_are_the_whole() -> None:
    head, dense, candidate = make({}, torch.float32)
    parts = Teacher.cat([teacher(head, dense[:5]), teacher(head, dense[5:])])
    torch.testing.assert_close(
        head_kl(head, parts, candidate), head_kl(head, teacher(head, dense), candidate)
    )
