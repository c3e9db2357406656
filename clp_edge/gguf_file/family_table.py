"""The table: one row for each model type that can become a GGUF file.

A row says which keys are written and where the config holds their values, what llama.cpp's code
for that architecture takes for granted (so what the config must say), and which tensors are stored
changed. A new family is a row here and a row in tests/export/family_rows.py.

What llama.cpp does was read in its source, src/models/ARCH.cpp of the release that is installed:
- q and k are permuted exactly where its rope type is NORM (PITFALLS 12);
- `gemma2` and `gemma3` apply the sliding window, by a per-block array; every other row's code
  ignores it, so the context ends where the window begins to matter (PITFALLS 15a, 15b);
- those two also choose the attention scale by the number of blocks; what it should be instead is
  folded into q, or into the norm of q;
- `smollm3` leaves the rotation out in every fourth block, and no key changes that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType, Keys

from clp_edge.gguf_file.rope import attention_gain, head_dim, read_rope, rope_dimensions

Value = Callable[[Any], Any]


@dataclass(frozen=True)
class Key:
    """One hyper-parameter: its GGUF key, its type, and the config attribute or how to derive it.

    A value of None is not written.
    """

    name: str
    kind: GGUFValueType
    source: str | Value
    sub_kind: GGUFValueType | None = None
    """The type of an array's elements."""

    def value(self, config: Any) -> Any:
        """The number, or the list, to write."""
        return getattr(config, self.source) if isinstance(self.source, str) else self.source(config)


@dataclass(frozen=True)
class Change:
    """Tensors whose name contains `part` are stored as permute((values + added) * scale)."""

    part: str
    heads: str | None = None
    """The config attribute with the number of heads whose rows are permuted."""
    added: float = 0.0
    scale: Value | None = None


@dataclass(frozen=True)
class Fact:
    """What must hold of a config for llama.cpp to compute the same, in words for the error."""

    says: str
    holds: Callable[[Any], bool]
    cure: str = ""


@dataclass(frozen=True)
class Family:
    """One transformers model type."""

    model_type: str
    architecture: str
    """llama.cpp's name for it."""
    keys: tuple[Key, ...]
    changes: tuple[Change, ...] = ()
    must_be: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """What llama.cpp's code takes for granted: config attribute, the values it covers."""
    facts: tuple[Fact, ...] = ()
    """The same, where it takes more than one attribute to say it."""
    rope_kinds: tuple[str, ...] = ("default", "linear")
    partial_rope: bool = False
    """Whether a head may be rotated in part."""
    windows: bool = False
    """Whether llama.cpp applies the sliding window, block by block."""


def sliding_blocks(config: Any) -> list[bool]:
    """For each block whether it attends to a window only."""
    count = int(config.num_hidden_layers)
    if not getattr(config, "sliding_window", None):
        return [False] * count
    kinds = getattr(config, "layer_types", None)
    return [True] * count if kinds is None else [kind == "sliding_attention" for kind in kinds]


def context_length(config: Any) -> int:
    """How long a text may be. Where llama.cpp ignores the sliding window, the context ends where
    it begins to matter."""
    # ALiBi has no limit of its own, and MPT and Bloom name what they were trained at or nothing
    longest = int(
        getattr(config, "max_position_embeddings", None)
        or getattr(config, "max_seq_len", None)
        or 2048
    )
    family = FAMILIES.get(config.model_type)
    if (family is not None and family.windows) or not any(sliding_blocks(config)):
        return longest
    return min(longest, int(config.sliding_window))


def _linear(config: Any) -> float | None:
    rope = read_rope(config)
    return float(rope.numbers["factor"]) if rope.kind == "linear" else None


def _longrope(value: Value) -> Value:
    return lambda config: value(config) if read_rope(config).kind == "longrope" else None


def _query_scale(unlike_others: int) -> Value:
    """What q is multiplied by so that llama.cpp's attention scale becomes the model's.

    llama.cpp takes 1 / sqrt(head_dim), but at `unlike_others` blocks 1 / sqrt(hidden // heads).
    """

    def scale(config: Any) -> float:
        large = int(config.num_hidden_layers) == unlike_others
        taken = config.hidden_size // config.num_attention_heads if large else head_dim(config)
        return float((taken / config.query_pre_attn_scalar) ** 0.5)

    return scale


def _smollm3_rhythm(config: Any) -> bool:
    pattern = [int(bool(kind)) for kind in config.no_rope_layers]
    return pattern == [int((i + 1) % 4 != 0) for i in range(int(config.num_hidden_layers))]


_U32, _F32, _STR = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING
_ARRAY, _BOOL = GGUFValueType.ARRAY, GGUFValueType.BOOL

_COMMON = (
    Key(Keys.LLM.BLOCK_COUNT, _U32, "num_hidden_layers"),
    Key(Keys.LLM.CONTEXT_LENGTH, _U32, context_length),
    Key(Keys.LLM.EMBEDDING_LENGTH, _U32, "hidden_size"),
    Key(Keys.LLM.FEED_FORWARD_LENGTH, _U32, "intermediate_size"),
    Key(Keys.LLM.VOCAB_SIZE, _U32, "vocab_size"),
    Key(Keys.Attention.HEAD_COUNT, _U32, "num_attention_heads"),
    Key(Keys.Attention.HEAD_COUNT_KV, _U32, "num_key_value_heads"),
    Key(Keys.Attention.LAYERNORM_RMS_EPS, _F32, "rms_norm_eps"),
    Key(Keys.Attention.KEY_LENGTH, _U32, head_dim),
    Key(Keys.Attention.VALUE_LENGTH, _U32, head_dim),
    Key(Keys.Rope.DIMENSION_COUNT, _U32, rope_dimensions),
    Key(Keys.Rope.FREQ_BASE, _F32, lambda config: read_rope(config).theta),
    Key(Keys.Rope.SCALING_TYPE, _STR, lambda config: "linear" if _linear(config) else None),
    Key(Keys.Rope.SCALING_FACTOR, _F32, _linear),
)
_LAYER_NORM = tuple(
    Key(Keys.Attention.LAYERNORM_EPS, _F32, "layer_norm_eps")
    if key.name == Keys.Attention.LAYERNORM_RMS_EPS
    else key
    for key in _COMMON
)
_LONGROPE = (
    Key(Keys.Rope.SCALING_ATTN_FACTOR, _F32, _longrope(attention_gain)),
    Key(
        Keys.Rope.SCALING_ORIG_CTX_LEN,
        _U32,
        _longrope(lambda config: int(read_rope(config).original_length)),
    ),
)
_WINDOWS = (
    Key(Keys.Attention.SLIDING_WINDOW, _U32, "sliding_window"),
    Key(Keys.Attention.SLIDING_WINDOW_PATTERN, _ARRAY, sliding_blocks, _BOOL),
)
_GRANITE_SCALES = (
    Key(Keys.LLM.LOGIT_SCALE, _F32, "logits_scaling"),
    Key(Keys.LLM.RESIDUAL_SCALE, _F32, "residual_multiplier"),
    Key(Keys.LLM.EMBEDDING_SCALE, _F32, "embedding_multiplier"),
    Key(Keys.Attention.SCALE, _F32, "attention_multiplier"),
)

_NORM_ROPE = (
    Change(".self_attn.q_proj.", heads="num_attention_heads"),
    Change(".self_attn.k_proj.", heads="num_key_value_heads"),
)
_GEMMA_NORMS = Change("norm.weight", added=1.0)

_SILU = (("hidden_act", ("silu", "swish")),)
_NO_ATTENTION_BIAS = (("attention_bias", (False, None)),)
_GEMMA = (
    ("hidden_activation", ("gelu_pytorch_tanh",)),
    *_NO_ATTENTION_BIAS,
    ("use_bidirectional_attention", (False, None)),
)
_SQUARE = Fact(
    "attention heads times head_dim is the hidden size",
    lambda config: head_dim(config) * config.num_attention_heads == config.hidden_size,
)
_SLIDES = Fact(
    "at least one block has a sliding window",  # its cache aborts without one
    lambda config: any(sliding_blocks(config)),
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            "llama",
            _COMMON,
            changes=_NORM_ROPE,
            must_be=_SILU,
            rope_kinds=("default", "linear", "llama3"),
        ),
        Family(
            "mistral",
            "llama",
            _COMMON,
            changes=_NORM_ROPE,
            must_be=_SILU,
            rope_kinds=("default", "linear", "llama3"),
        ),
        Family("qwen2", "qwen2", _COMMON, must_be=_SILU, facts=(_SQUARE,)),
        Family("qwen3", "qwen3", _COMMON, must_be=(*_SILU, *_NO_ATTENTION_BIAS)),
        Family(
            "phi3",
            "phi3",
            (*_COMMON, *_LONGROPE),
            must_be=_SILU,
            facts=(_SQUARE,),
            rope_kinds=("default", "longrope"),
            partial_rope=True,
        ),
        Family(
            "gemma3_text",
            "gemma3",
            (
                *_COMMON,
                *_WINDOWS,
                Key(Keys.Rope.FREQ_BASE_SWA, _F32, lambda c: read_rope(c, local=True).theta),
                Key(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, _F32, "final_logit_softcapping"),
            ),
            changes=(_GEMMA_NORMS, Change(".self_attn.q_norm.", scale=_query_scale(62))),
            must_be=(*_GEMMA, ("attn_logit_softcapping", (None,))),
            facts=(_SLIDES,),
            windows=True,
        ),
        Family(
            "gemma2",
            "gemma2",
            (
                *_COMMON,
                *_WINDOWS,
                Key(Keys.LLM.ATTN_LOGIT_SOFTCAPPING, _F32, "attn_logit_softcapping"),
                Key(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, _F32, "final_logit_softcapping"),
            ),
            changes=(_GEMMA_NORMS, Change(".self_attn.q_proj.", scale=_query_scale(46))),
            must_be=(*_GEMMA, ("tie_word_embeddings", (True,))),
            facts=(
                _SLIDES,
                Fact(
                    "attention and final logits are soft-capped",
                    lambda c: bool(c.attn_logit_softcapping and c.final_logit_softcapping),
                ),
            ),
            windows=True,
        ),
        Family(
            "granite",
            "granite",
            (*_COMMON, *_GRANITE_SCALES),
            changes=_NORM_ROPE,
            must_be=_SILU,
            rope_kinds=("default", "linear", "llama3"),
        ),
        Family(
            "smollm3",
            "smollm3",
            _COMMON,
            changes=_NORM_ROPE,
            must_be=(
                *_SILU,
                *_NO_ATTENTION_BIAS,
                ("mlp_bias", (False, None)),
                ("use_sliding_window", (False, None)),
            ),
            facts=(
                Fact(
                    "every fourth block, and no other, has no rotary embedding",
                    _smollm3_rhythm,
                    "cut 4, 8, ... blocks so that each one that stays keeps its kind",
                ),
            ),
        ),
        Family(
            "olmo2",
            "olmo2",
            _COMMON,
            must_be=(*_SILU, *_NO_ATTENTION_BIAS, ("tie_word_embeddings", (False,))),
            facts=(_SQUARE,),
        ),
        Family(
            "stablelm",
            "stablelm",
            (
                *_LAYER_NORM,
                Key(Keys.LLM.USE_PARALLEL_RESIDUAL, _BOOL, "use_parallel_residual"),
            ),
            must_be=(
                *_SILU,
                ("use_parallel_residual", (False,)),
                ("qk_layernorm", (False,)),
                ("tie_word_embeddings", (False,)),
            ),
            facts=(_SQUARE,),
            rope_kinds=("default",),
            partial_rope=True,
        ),
    )
}
