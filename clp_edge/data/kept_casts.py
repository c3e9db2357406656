"""Autocast that casts each weight once, for a model that takes many small steps.

Under autocast torch casts a weight anew at every call, unless it is a leaf that requires gradients
(autocast_mode.cpp, `cached_cast`). Where a step has few rows, as in writing text, that is a quarter
of the time. So the weights of linear layers require them while this is open, where their copies are
few enough. The products, and so the text, are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

LARGEST_BYTES = 1 << 30
"""Copies of more than this are not kept: memory is what a large model is short of."""


@contextmanager
def casts_kept(model: Any) -> Iterator[bool]:
    """Whether the casts are kept: under autocast, without gradients, for a model that fits."""
    device = torch.device(model.device).type
    layers = (layer for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    weights = {layer.weight for layer in layers}
    kept = (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and not torch.is_grad_enabled()
        and 2 * sum(weight.numel() for weight in weights) <= LARGEST_BYTES
    )
    changed = [weight for weight in weights if kept and not weight.requires_grad]
    try:
        for weight in changed:
            weight.requires_grad_(True)
        yield kept
    finally:
        for weight in changed:
            weight.requires_grad_(False)
        if kept:
            torch.clear_autocast_cache()
