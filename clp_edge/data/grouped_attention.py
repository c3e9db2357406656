"""Attention of one new token in which the heads that share keys are rows of one product.

Under grouped-query attention torch's kernel for CPUs takes the query heads one by one, each with
the keys and values that it shares with its group. A step that adds one token to each sequence has a
single row a head, so that is most of what writing text costs. As rows of one head the group reads
its keys and values once (as flash-decoding kernels do it, and transformers where there is a mask):
the same sums, in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA = "sdpa"
MORE = ("position_bias", "softcap", "s_aux", "cache")
"""what attention may be asked for besides; such a call is left to transformers"""

Attention = Callable[..., tuple[Tensor, Tensor | None]]


@contextmanager
def groups_as_rows() -> Iterator[None]:
    """While open, models whose attention is transformers' "sdpa" take their steps on a CPU so."""
    usual: Attention = ALL_ATTENTION_FUNCTIONS[SDPA]

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **how: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if not _is_step(query, key, attention_mask, how):
            return usual(module, query, key, value, attention_mask, **how)
        return one_token(query, key, value, how.get("scaling")), None

    ALL_ATTENTION_FUNCTIONS[SDPA] = attention
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[SDPA]
        if ALL_ATTENTION_FUNCTIONS[SDPA] is not usual:  # somebody else's, in front of the library's
            ALL_ATTENTION_FUNCTIONS[SDPA] = usual


def _is_step(query: Tensor, key: Tensor, mask: Tensor | None, how: dict[str, Any]) -> bool:
    """Whether every query head has one row and sees all keys of a group that it shares."""
    grouped = query.shape[1] > key.shape[1]
    plain = mask is None and not how.get("dropout") and all(how.get(one) is None for one in MORE)
    return grouped and plain and query.shape[2] == 1 and query.device.type == "cpu"


def one_token(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """softmax(q kᵀ · scale) v for one new token.

    Args:
        query: (batch, heads, 1, size); heads a multiple of the groups, neighbours share a group.
        key, value: (batch, groups, tokens, size).
        scale: None: 1/sqrt(size).
    Returns: (batch, 1, heads, value's size), as transformers' attention functions have it.
    """
    batch, heads, _, size = query.shape
    rows = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
    mixed = functional.scaled_dot_product_attention(rows, key, value, scale=scale)
    return mixed.reshape(batch, 1, heads, value.shape[-1])
