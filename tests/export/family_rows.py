"""One row for each family of the GGUF table: what its tiny model needs, and what may go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.export.models import tiny_folder

WINDOW = 48
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Row:
    """A tiny model, as `tests.tiny` makes it with these changes, and its mutations."""

    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    query_key: float = 0.65
    """What q and k (or their norms' gains) are multiplied by: attention is peaked, not chaotic."""
    mutations: tuple[str, ...] = ()
    dropped: tuple[int, ...] = (2, 3)
    """A cut that breaks the rhythm of local and global blocks, where there is one."""


ROWS = {
    row.model_type: row
    for row in (
        Row("llama", mutations=("permutation", "rope base")),
        Row("mistral", mutations=("permutation", "rope base")),
        Row(
            "qwen2",
            {"use_sliding_window": False, "sliding_window": None},
            mutations=("bias", "rope base"),
        ),
        Row("qwen3", {"seed": 1}, query_key=1.3, mutations=("rope base", "query norm")),
        Row("phi3", {"sliding_window": None, "seed": 1}, mutations=("rope base", "halves")),
        Row(
            "gemma3_text",
            {
                "sliding_window": WINDOW,
                "query_pre_attn_scalar": 200,
                "layer_types": [_LOCAL, _LOCAL, _GLOBAL, _LOCAL, _LOCAL, _GLOBAL, _LOCAL, _LOCAL],
            },
            query_key=1.8,
            mutations=("norm", "rope base", "local rope base", "window", "attention scale"),
            dropped=(1, 2),
        ),
        Row(
            "gemma2",
            {"sliding_window": WINDOW, "query_pre_attn_scalar": 128, "tie_word_embeddings": True},
            query_key=0.8,
            mutations=("norm", "rope base", "window", "attention scale"),
            dropped=(2, 3, 4),
        ),
        Row(
            "granite",
            {
                "attention_bias": True,
                "attention_multiplier": 0.08,
                "residual_multiplier": 0.5,
                "embedding_multiplier": 1.5,
            },
            query_key=0.9,
            mutations=("permutation", "rope base", "attention scale", "bias"),
        ),
        Row("smollm3", mutations=("permutation", "rope base"), dropped=(1, 2, 3, 4)),
        Row("stablelm", mutations=("rope base", "rotated part", "bias", "norm bias")),
        Row("olmo2", query_key=1.3, mutations=("rope base", "query norm")),
    )
}


def family_folder(folder: Path, row: Row, *, blocks: int = 8, **changes: Any) -> tuple[Any, Any]:
    """Save the row's tiny model and a tokenizer to `folder`; (model, tokenizer)."""
    _, model, hf = tiny_folder(
        folder, model_type=row.model_type, blocks=blocks, **{**row.changes, **changes}
    )
    _settle(model, row.query_key)
    model.save_pretrained(folder)
    return model, hf


@torch.no_grad()
def _settle(model: Any, query_key: float) -> None:
    config = model.config
    offset = 1.0 if config.model_type.startswith("gemma") else 0.0
    normed = any(name.endswith("q_norm.weight") for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.copy_((parameter + offset) * query_key - offset)
        elif not normed and any(part in name for part in ("q_proj.", "k_proj.", "qkv_proj.")):
            values = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
            end = parameter.shape[0] - values if "qkv_proj" in name else None
            parameter[:end].mul_(query_key)
    head = model.get_output_embeddings().weight
    if config.tie_word_embeddings:  # a small embedding and a large last gain: not an echo
        gain = model.get_decoder().norm.weight
        head.mul_(0.2)
        gain.copy_((gain + offset) * 8.0 - offset)
    elif offset:  # Gemma multiplies it by sqrt(hidden): the blocks would hardly matter
        model.get_input_embeddings().weight.div_(config.hidden_size**0.5)
    head[:3].zero_()  # no generation ends early
