"""What GGUF needs to know of each architecture, as rows of tables.

A family is a row: the keys it writes and where the config holds them, what llama.cpp's code takes
for granted (so what the config must say), and which tensors are stored in another order. Names
come from `gguf.get_tensor_name_map`, shapes from the transformers model itself (on the meta device,
so nothing is allocated). A new family is a row here and a row in the test.

q and k are permuted exactly where llama.cpp's rope type is NORM (PITFALLS 12): a head's rows
(2, d/2) become (d/2, 2).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFValueType, Keys

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.export.gguf.rope import head_dim, llama3_factors, read_rope, rope_problems

Value = Callable[[Any], Any]


@dataclass(frozen=True)
class Key:
    """One hyper-parameter: its GGUF key, its type, and the config attribute or how to derive it.

    A value of None is not written.
    """

    name: str
    kind: GGUFValueType
    source: str | Value

    def value(self, config: Any) -> Any:
        """The number to write."""
        return getattr(config, self.source) if isinstance(self.source, str) else self.source(config)


@dataclass(frozen=True)
class Family:
    """One transformers model type."""

    model_type: str
    architecture: str
    """llama.cpp's name for it."""
    keys: tuple[Key, ...]
    must_be: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """What llama.cpp's code takes for granted: config attribute -> the values it covers."""
    permuted: dict[str, str] = field(default_factory=dict)
    """Part of a tensor's name -> the config attribute with its number of heads."""
    rope_kinds: tuple[str, ...] = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: its names, its shape (as in torch) and the heads it is permuted by."""

    hf_name: str
    gguf_name: str
    shape: tuple[int, ...]
    heads: int | None = None

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=np.int64))


def context_length(config: Any) -> int:
    """llama.cpp's `llama` ignores a sliding window, so the context ends where it begins to matter
    (PITFALLS 15b)."""
    window = getattr(config, "sliding_window", None)
    longest = int(config.max_position_embeddings)
    return min(longest, int(window)) if window else longest


def _linear(config: Any) -> Any:
    rope = read_rope(config)
    return rope.numbers if rope.kind == "linear" else None


_U32, _F32, _STR = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING

_COMMON_KEYS = (
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
    Key(Keys.Rope.DIMENSION_COUNT, _U32, head_dim),
    Key(Keys.Rope.FREQ_BASE, _F32, lambda config: read_rope(config).theta),
    Key(Keys.Rope.SCALING_TYPE, _STR, lambda config: "linear" if _linear(config) else None),
    Key(
        Keys.Rope.SCALING_FACTOR,
        _F32,
        lambda config: float(_linear(config)["factor"]) if _linear(config) else None,
    ),
)
_NORM_ROPE = {
    ".self_attn.q_proj.": "num_attention_heads",
    ".self_attn.k_proj.": "num_key_value_heads",
}
_SILU = {"hidden_act": ("silu", "swish")}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "llama", _COMMON_KEYS, must_be=_SILU, permuted=_NORM_ROPE),
        Family("mistral", "llama", _COMMON_KEYS, must_be=_SILU, permuted=_NORM_ROPE),
    )
}


def family_of(config: Any) -> Family:
    """The row of this config; UnsupportedModelError where there is none."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"GGUF export does not know model type {config.model_type!r} yet",
            f"known are {', '.join(FAMILIES)}",
        )
    return family


def problems(config: Any) -> list[ClpEdgeError]:
    """Everything in the config that a GGUF file could not express."""
    try:
        family = family_of(config)
    except UnsupportedModelError as error:
        return [error]
    found: list[ClpEdgeError] = list(rope_problems(config, family.rope_kinds))
    for name, allowed in family.must_be.items():
        if (value := getattr(config, name)) not in allowed:
            found.append(
                UnsupportedModelError(
                    f"{name} is {value!r}, but llama.cpp's {family.architecture} computes "
                    f"{' or '.join(map(repr, allowed))}"
                )
            )
    if getattr(config, "quantization_config", None):
        found.append(
            UnsupportedModelError(
                "the checkpoint is quantized already", "give the unquantized base model"
            )
        )
    return found


def notes(config: Any) -> list[str]:
    """What the file will say differently from the config, in plain words."""
    if (length := context_length(config)) < config.max_position_embeddings:
        return [
            f"context length {length} instead of {config.max_position_embeddings}: llama.cpp "
            "ignores this model's sliding window"
        ]
    return []


def with_blocks(config: Any, blocks: int | None) -> Any:
    """The config as it would be with that many blocks; per-block lists cut to match."""
    if blocks is None or blocks == config.num_hidden_layers:
        return config
    changed = copy.deepcopy(config)
    before = config.num_hidden_layers
    if getattr(config, "layer_types", None) is not None:
        changed.layer_types = list(config.layer_types)[:blocks]
    for name, value in list(vars(changed).items()):
        if isinstance(value, list) and len(value) == before and name != "layer_types":
            setattr(changed, name, value[:blocks])
    changed.num_hidden_layers = blocks
    return changed


def tensors(config: Any) -> list[Tensor]:
    """Every tensor of the model in the order of the file, a tied head left out.

    Raises UnsupportedModelError listing the tensors that GGUF has no name for.
    """
    from transformers import AutoModelForCausalLM

    family = family_of(config)
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    finally:
        logger.setLevel(level)
    rows, nameless = [], []
    for hf_name, value in model.state_dict().items():
        if config.tie_word_embeddings and hf_name == "lm_head.weight":
            continue
        gguf_name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            nameless.append(hf_name)
            continue
        heads = next((h for part, h in family.permuted.items() if part in hf_name), None)
        rows.append(
            Tensor(
                hf_name,
                gguf_name,
                tuple(value.shape),
                int(getattr(config, heads)) if heads else None,
            )
        )
    if nameless:
        raise UnsupportedModelError(f"GGUF has no name for {_listed(nameless)}")
    return rows


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def computed_tensors(config: Any) -> dict[str, np.ndarray]:
    """Tensors that are in no checkpoint: Llama 3's rope factors."""
    if read_rope(config).kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(config)}
    return {}


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (2, d/2) to (d/2, 2): for llama.cpp's NORM rope (PITFALLS 12)."""
    rest = weight.shape[1:]
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *rest)
    return halves.transpose(1, 2).reshape(weight.shape)


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `permute`."""
    rest = weight.shape[1:]
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *rest)
    return pairs.transpose(1, 2).reshape(weight.shape)
