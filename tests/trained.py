"""Tiny models that have learnt a language of words, whose blocks therefore matter unequally."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.tiny import tiny_model

WORDS = 48


def sentences(count: int, length: int, *, seed: int) -> Tensor:
    """(count, length) ids of a language in which two words decide the next, four times in five."""
    rules = torch.randint(3, WORDS, (WORDS, 7), generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (count, length), generator=generator)
    for place in range(2, length):
        ruled = rules[ids[:, place - 1], ids[:, place - 2] % 7]
        free = torch.rand(count, generator=generator) < 0.2
        ids[:, place] = torch.where(free, ids[:, place], ruled)
    return ids


def trained(model_type: str, **changes: Any) -> Any:
    """A tiny model that has learnt the language."""
    model = tiny_model(
        model_type,
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=128,
        head_dim=16,
        **changes,
    )
    model.requires_grad_(True)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        ids = sentences(32, 32, seed=100 + step)
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 2.5  # of ln 48 = 3.9: it has learnt something to lose
    return model.requires_grad_(False)
