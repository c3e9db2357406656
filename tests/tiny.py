"""Tiny random models of every family, initialised so that mistakes show.

A default initialisation hides them: attention is nearly uniform and the logits are flat, so a wrong
permutation or a block of the wrong kind passes. Here norm gains and biases are random, q and k are
scaled until attention is peaked, and the head until the next-token entropy is well below ln(V).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

HIDDEN = 256
VOCABULARY = 320

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

# What each family needs beyond the common shape; the sliding windows are short enough to matter.
FAMILY_ARGUMENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3},
    "qwen3": {"head_dim": 64},
    "gemma2": {"head_dim": 64, "sliding_window": 16, "query_pre_attn_scalar": 64},
    "gemma3_text": {"head_dim": 64, "sliding_window": 16, "query_pre_attn_scalar": 64},
    "phi3": {"sliding_window": 24},
    "smollm3": {},
    "stablelm": {"use_qkv_bias": True},
    "olmo2": {},
    "granite": {
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.0156,
    },
}


def tiny_config(model_type: str, *, blocks: int = 8, **changes: Any) -> Any:
    """A config of this family with `blocks` blocks of hidden size 256."""
    arguments = {**_SHAPE, **FAMILY_ARGUMENTS[model_type], **changes}
    return CONFIG_MAPPING[model_type](num_hidden_layers=blocks, **arguments)


def tiny_model(model_type: str, *, blocks: int = 8, seed: int = 0, **changes: Any) -> Any:
    """A random model of this family in float32, in evaluation mode, without gradients."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, blocks=blocks, **changes))
    return make_mistakes_show(model, seed=seed).eval().requires_grad_(False)


@torch.no_grad()
def make_mistakes_show(model: Any, *, seed: int = 0) -> Any:
    """Random gains and biases, peaked attention, a head that is sure of itself."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.add_(0.2 * noise)
        else:
            noise = torch.randn(parameter.shape, generator=generator)
            gain = 2.0 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 1.0
            parameter.copy_(gain * noise / parameter.shape[1] ** 0.5)
    embedding = model.get_input_embeddings().weight
    embedding.copy_(torch.randn(embedding.shape, generator=generator))
    if model.get_output_embeddings().weight is not embedding:
        scale = float(getattr(model.config, "logits_scaling", 1.0))
        model.get_output_embeddings().weight.mul_(3.0 * scale)
    return model


def random_ids(batch: int, tokens: int, *, seed: int = 0, vocabulary: int = VOCABULARY) -> Any:
    """(batch, tokens) int64 ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary, (batch, tokens), generator=generator)
