"""Where things are in each decoder family that transformers knows: data, not branches.

A row says which sub-modules hold the blocks, the norms and the head, which sub-module of a block
hands its output to the residual stream (that is where a gate sits), and how the logits leave the
head. Adding a family is a row here and a line in the tests; for a family without one `generic`
looks for it in the code and proves what it found.

>>> FAMILIES["granite"].residual_multiplier
'residual_multiplier'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clp_edge.errors import UnsupportedModelError


@dataclass(frozen=True)
class Family:
    """One row: paths are relative to the causal model, or to a block where they say so."""

    model_type: str
    """The `model_type` of the transformers config."""
    decoder: str = "model"
    """Everything but the head: ids in, hidden states after the final norm out."""
    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attention: str = "self_attn"
    """Block-relative: the attention module."""
    attention_branch: str = "self_attn"
    """Block-relative: the module whose output is added to the residual stream."""
    mlp_branch: str = "mlp"
    """Block-relative: the module whose output is added to the residual stream."""
    down_projection: str = "mlp.down_proj"
    """Block-relative: the last matrix of the MLP."""
    mlp_norm: str = ""
    """Block-relative: the RMS norm through which a gated MLP reads the residual stream that it adds
    to; empty where it is another kind of MLP or norm, or not known."""
    norm_after_mlp: bool = False
    """True where a norm stands between the last MLP matrix and the residual stream."""
    residual_multiplier: str | None = None
    """Config attribute that scales each branch before it is added (Granite)."""
    logit_divisor: str | None = None
    """Config attribute the logits are divided by (Granite)."""
    logit_multiplier: str | None = None
    """Config attribute the logits are multiplied by (Cohere)."""
    logit_softcap: str | None = None
    """Config attribute c of logits -> c·tanh(logits / c) (Gemma 2)."""
    no_refit: str = ""
    """Why the closed-form refit cannot mend this family; empty where it can."""
    found: bool = False
    """Whether the row was found by looking (`generic`) and is none of the table below."""

    @property
    def before_residual(self) -> str:
        """Block-relative: the last module with weights before the MLP's branch is added: what the
        closed-form refit changes."""
        return self.mlp_branch if self.norm_after_mlp else self.down_projection


def _sandwich(model_type: str) -> Family:
    """Gemma 2 and 3: a norm before and after each branch."""
    return Family(
        model_type,
        attention_branch="post_attention_layernorm",
        mlp_branch="post_feedforward_layernorm",
        norm_after_mlp=True,
        logit_softcap="final_logit_softcapping",
    )


_MLP_NORM = "post_attention_layernorm"

FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        Family("llama", mlp_norm=_MLP_NORM),
        Family("mistral", mlp_norm=_MLP_NORM),
        Family("qwen2", mlp_norm=_MLP_NORM),
        Family("qwen3", mlp_norm=_MLP_NORM),
        Family("phi3", mlp_norm=_MLP_NORM),
        Family("smollm3", mlp_norm=_MLP_NORM),
        Family("stablelm"),
        Family(
            "granite",
            mlp_norm=_MLP_NORM,
            residual_multiplier="residual_multiplier",
            logit_divisor="logits_scaling",
        ),
        Family(
            "olmo2",
            attention_branch="post_attention_layernorm",
            mlp_branch="post_feedforward_layernorm",
            norm_after_mlp=True,
        ),
        _sandwich("gemma2"),
        _sandwich("gemma3_text"),
    )
}

_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ATTENTION_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


def refusal(config: Any) -> UnsupportedModelError | None:
    """Why this config cannot be cut safely whatever its code does, or None."""
    model_type = str(getattr(config, "model_type", "unknown"))
    if getattr(config, "is_encoder_decoder", False):
        return UnsupportedModelError(
            f"{model_type!r} is an encoder-decoder model",
            "clp-edge cuts decoder-only language models",
        )
    if getattr(config, "text_config", None) is not None and model_type not in FAMILIES:
        text = getattr(config.text_config, "model_type", "unknown")
        return UnsupportedModelError(
            f"{model_type!r} is a multimodal model (its text part is {text!r})",
            "give a folder that holds the text model alone",
        )
    for name in _EXPERT_COUNTS:
        count = getattr(config, name, None)
        if isinstance(count, int) and count > 1:
            return UnsupportedModelError(
                f"{model_type!r} is a mixture of experts ({name} = {count}): what a block does "
                "differs from token to token, so its cut cannot be mended by the refit",
                "give a dense model",
            )
    kinds = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_TYPES
    if kinds or getattr(config, "layers_block_type", None) or getattr(config, "block_types", None):
        named = ", ".join(sorted(kinds)) or "recurrent blocks"
        return UnsupportedModelError(
            f"{model_type!r} is a hybrid model ({named} beside attention): its blocks are not of "
            "one kind and carry state that a cut would break",
            "give a model whose blocks are attention and MLP",
        )
    return None
