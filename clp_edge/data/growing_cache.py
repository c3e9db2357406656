"""A key/value cache that grows by steps of many tokens.

transformers' default cache concatenates a token at a time, so it copies the whole cache at every
step of every block. This one copies it once in `STEP` tokens. Nothing else changes: the model sees
views of the same shape and content.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

STEP = 64
"""Tokens that room is made for at a time."""


class GrowingLayer(DynamicLayer):
    """One block's keys and values: (batch, heads, tokens, head size), views into larger buffers."""

    keys: Tensor | None
    values: Tensor | None
    _buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put the new states behind those held; returns all of them."""
        held = self.get_seq_length()
        total = held + key_states.shape[-2]
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True
        if self._buffers is None or total > self._buffers[0].shape[-2]:
            self._buffers = (
                _wider(self.keys, key_states, held, total),
                _wider(self.values, value_states, held, total),
            )
        keys, values = self._buffers
        keys[..., held:total, :] = key_states
        values[..., held:total, :] = value_states
        self.keys, self.values = keys[..., :total, :], values[..., :total, :]
        return self.keys, self.values


def growing_cache(config: Any) -> Cache:
    """An empty cache for the model of this config; blocks with a window keep transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(one) is DynamicLayer else one for one in cache.layers]
    return cache


def _wider(old: Tensor | None, like: Tensor, held: int, total: int) -> Tensor:
    """A buffer with room for `total` tokens, rounded up, that begins with the old content."""
    room = -(-total // STEP) * STEP
    fresh = torch.empty(
        (*like.shape[:-2], room, like.shape[-1]), dtype=like.dtype, device=like.device
    )
    if old is not None and held:
        fresh[..., :held, :] = old
    return fresh
