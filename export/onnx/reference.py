"""What torch says about a Hugging Face folder in float32, on a text longer than its windows.

A sliding window that an exporter overlooks changes nothing on a text that fits in it, so the text
here is longer than the window where the context and the time allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clp_edge.export.reference_text import PROMPT
from clp_edge.export.torch_reference import exact_model, greedy, logits_of, text_ids
from clp_edge.models.ends import end_ids

_TOKENS = 256
_LONGEST = 768
STEPS = 32
"""How many of the text's tokens are given one by one."""


@dataclass(frozen=True)
class Reference:
    """Torch's answers, float32, and the model that gave them."""

    model: Any
    ids: tuple[int, ...]
    """The text, with the model's own BOS rule."""
    logits: torch.Tensor
    """(tokens, vocabulary)"""
    step_logits: torch.Tensor
    """(up to STEPS, vocabulary): the text's first tokens alone. LongRoPE rotates a text beyond its
    first context otherwise, the tokens before it included."""
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    """Greedy, without the end token."""
    continuation_logits: torch.Tensor
    """(up to tokens + 1, vocabulary): what each token of the continuation was chosen from."""
    ends: frozenset[int]


def reference_ids(config: Any, hf: Any) -> tuple[int, ...]:
    """256 tokens of text, or half as many again as a short sliding window holds."""
    window = getattr(config, "sliding_window", None) or 0
    wanted = max(_TOKENS, window * 3 // 2) if window * 3 // 2 <= _LONGEST else _TOKENS
    return text_ids(hf, min(wanted, int(config.max_position_embeddings)))


def make_reference(folder: Path, config: Any, hf: Any, *, new_tokens: int = 24) -> Reference:
    """Load the folder in float32, and ask. Needs 4 bytes of memory per parameter."""
    model = exact_model(folder)
    ids = reference_ids(config, hf)
    logits, first = logits_of(model, ids), logits_of(model, ids[:STEPS])
    room = int(config.max_position_embeddings) - new_tokens
    prompt = tuple(hf.encode(PROMPT))[: max(1, room)]
    ends = end_ids(hf, config, model.generation_config)
    continuation, chosen_from = greedy(model, prompt, ends, new_tokens)
    return Reference(model, ids, logits, first, prompt, continuation, chosen_from, ends)
