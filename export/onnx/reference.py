"""What torch says about a Hugging Face folder in float32, on a text longer than its windows.

A sliding window that an exporter overlooks changes nothing on a text that fits in it, so the text
here is longer than the window where the context and the time allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clp_edge.errors import ClpEdgeError
from clp_edge.export.reference_text import PROMPT, TEXT
from clp_edge.models.ends import end_ids
from clp_edge.models.quiet import quiet

_TOKENS = 256
_LONGEST = 768


@dataclass(frozen=True)
class Reference:
    """Torch's answers, float32, and the model that gave them."""

    model: Any
    ids: tuple[int, ...]
    """The text, with the model's own BOS rule."""
    logits: torch.Tensor
    """(tokens, vocabulary)"""
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
    wanted = min(wanted, int(config.max_position_embeddings))
    ids = hf.encode(TEXT)
    more = hf.encode(TEXT, add_special_tokens=False)
    while len(ids) < wanted:
        ids = ids + more
    return tuple(ids[:wanted])


@torch.no_grad()
def make_reference(folder: Path, config: Any, hf: Any, *, new_tokens: int = 24) -> Reference:
    """Load the folder in float32, and ask. Needs 4 bytes of memory per parameter."""
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
        ).eval()
    ids = reference_ids(config, hf)
    logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    if not bool(torch.isfinite(logits).all()):
        raise ClpEdgeError("the model's own logits hold NaN or Inf", "the model is damaged")
    room = int(config.max_position_embeddings) - new_tokens
    prompt = tuple(hf.encode(PROMPT))[: max(1, room)]
    ends = end_ids(hf, config, model.generation_config)
    out = model(torch.tensor([prompt]), use_cache=True)
    chosen_from, continuation = [], []
    for _ in range(new_tokens):
        chosen_from.append(out.logits[0, -1].float())
        token = int(chosen_from[-1].argmax())
        if token in ends:
            break
        continuation.append(token)
        out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
    return Reference(
        model, ids, logits, prompt, tuple(continuation), torch.stack(chosen_from), ends
    )
