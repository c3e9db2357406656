"""KL from hidden states against float64 logits, its gradient against autograd, chunking."""

from __future__ import annotations

import pytest
import torch

from clp_edge.kernels.head_kl import Head, head_kl, teacher
from clp_edge.metrics import token_kl

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
