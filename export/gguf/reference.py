"""What torch says about a Hugging Face folder in float32: the truth that files are held against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clp_edge.export.reference_text import PROMPT
from clp_edge.export.torch_reference import (
    Comparison,
    compare_logits,
    exact_model,
    greedy,
    logits_of,
    rotations,
    text_ids,
)
from clp_edge.gguf_file.family_table import context_length, sliding_blocks
from clp_edge.gguf_file.rope import read_rope
from clp_edge.models.ends import end_ids

_PAST_WINDOW = 128
_LONGEST = 1280
"""Tokens: at a vocabulary of 262,144 their logits take 1.3 GB."""
_ROOM_TO_GENERATE = 64


@dataclass(frozen=True)
class Reference:
    """Torch's answers, float32."""

    ids: tuple[int, ...]
    """The text, with the model's own BOS rule."""
    logits: torch.Tensor
    """(tokens, vocabulary)"""
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    """Greedy, without the end token."""
    continuation_logits: torch.Tensor
    """(up to tokens + 1, vocabulary): what each token of the continuation was chosen from."""
    inverse_frequencies: dict[str, np.ndarray]
    """The rotation per position of each pair (rotated part / 2,), as transformers computes it:
    "full"; "local" for blocks with a window, where theirs differ; "short" and "long" instead of
    "full" where they depend on the context."""
    rotary_gain: float
    """What transformers multiplies rotated q and k by; 1 but for LongRoPE."""
    rounding: Comparison
    """What float16 weights and float16 inputs of every product alone do to these logits."""

    def gap(self, at: int, token: int) -> float:
        """By how many logits `token` lost to the token chosen at that place."""
        row = self.continuation_logits[at]
        return float(row.max() - row[token])


def reference_ids(config: Any, hf: Any) -> tuple[int, ...]:
    """About 256 tokens of text (512 with rope scaling), as many as the context holds.

    Longer than the sliding window where the blocks differ in it and that costs little. LongRoPE
    rotates otherwise past its original length, and llama.cpp decides that by the context it was
    opened with: the text stays below.
    """
    rope = read_rope(config)
    wanted = 256 if rope.kind == "default" else 512
    window = int(config.sliding_window) if any(sliding_blocks(config)) else 0
    if window + _PAST_WINDOW <= _LONGEST:
        wanted = max(wanted, window + _PAST_WINDOW)
    longest = context_length(config)
    if rope.kind == "longrope":
        longest = min(longest, rope.original_length - _ROOM_TO_GENERATE)
    return text_ids(hf, min(wanted, longest))


@torch.no_grad()
def make_reference(folder: Path, config: Any, hf: Any, *, new_tokens: int = 32) -> Reference:
    """Load the folder in float32, and ask. Needs 4 bytes of memory per parameter."""
    model = exact_model(folder)
    ids = reference_ids(config, hf)
    logits = logits_of(model, ids)
    prompt = tuple(hf.encode(PROMPT))[: max(1, context_length(config) - new_tokens)]
    ends = end_ids(hf, config, model.generation_config)
    continuation, chosen_from = greedy(model, prompt, ends, new_tokens)
    frequencies, gain = rotations(model)
    rounded = _rounded(model)(torch.tensor([ids]), use_cache=False).logits[0].float()
    return Reference(
        ids,
        logits,
        prompt,
        continuation,
        chosen_from,
        frequencies,
        gain,
        compare_logits(logits, rounded),
    )


def _rounded(model: Any) -> Any:
    """The same model (changed in place) with float16 weights and float16 inputs of each product.

    That is how llama.cpp multiplies F16 weights on a CPU. A model that amplifies this much is not
    proved wrong by a difference of that size, so `verify` widens its limits by it.
    """

    def round_input(module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0].half().float(), *arguments[1:])

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(module.weight.half())
            module.register_forward_pre_hook(round_input)
        elif isinstance(module, torch.nn.Embedding):
            module.weight.copy_(module.weight.half())
    return model
