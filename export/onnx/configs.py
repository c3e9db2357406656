"""A config as the builder reads it: where transformers 5 writes a fact in another place.

Each row below was a wrong graph or a KeyError with onnxruntime-genai 0.18 and transformers 5; the
numbers stay the model's own, only their places change. Sliding windows are the ones to fear: a
window that the builder overlooks passes every test on short texts.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.export.onnx.targets import OPTIMUM

# What builder 0.18 scales as transformers does, beyond "default": each row is proved by a test past
# its first context (tests/export_onnx/test_rope.py), and what is missing was seen to be wrong or
# to end in an error. Llama's class drops "linear" and "yarn" without a word, and Gemma 3's scales
# its local blocks with the global factor.
_ROPE_KINDS = {
    "llama": {"llama3"},
    "mistral": {"linear", "yarn"},
    "phi3": {"longrope"},
    "qwen2": {"linear", "yarn"},
    "qwen3": {"linear", "yarn"},
}
# transformers gives every block of these the window, and says so nowhere in the config.
_ALL_BLOCKS_WINDOWED = ("mistral", "phi3")


def _rope(config: Any) -> dict[str, Any]:
    """rope_parameters (transformers 5) or rope_scaling (4.57), never None."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    return dict(found or {})


def _kind(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _original_length(config: Any, rope: dict[str, Any]) -> int:
    """The context of the first training, where LongRoPE changes its factors."""
    stated = rope.get("original_max_position_embeddings")
    return int(stated or config.original_max_position_embeddings)


def _longrope_gain(config: Any) -> float:
    """What transformers multiplies rotated q and k by."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return float(ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))[1])


def _yarn_fault(config: Any, rope: dict[str, Any]) -> str | None:
    """How the builder's YaRN differs from transformers' for this model, or None.

    It does not round the range of blended frequencies to whole numbers (`truncate`, on by default),
    has no defaults for its ends, and asserts that they lie inside the head.
    """
    if rope.get("truncate", True):
        return "rounds its range of frequencies (truncate), which the builder does not"
    fast, slow = rope.get("beta_fast"), rope.get("beta_slow")
    original = rope.get("original_max_position_embeddings")
    if not (rope.get("factor") and fast and slow and original):
        return "leaves its numbers to defaults that the builder has not"
    if rope.get("attention_factor") or bool(rope.get("mscale")) != bool(rope.get("mscale_all_dim")):
        return "states a factor of attention that the builder reads otherwise"
    heads = int(config.num_attention_heads)
    half = int(getattr(config, "head_dim", None) or config.hidden_size // heads) / 2
    base: Any = rope.get("rope_theta") or getattr(config, "rope_theta", 10_000.0)
    theta = math.log(float(base))
    first, last = (half * math.log(original / (n * 2 * math.pi)) / theta for n in (fast, slow))
    inside = 0 < first < last < half - 1
    return None if inside else "has a range of frequencies beyond the head"


def adapted(config: Any) -> Any:
    """A copy of the config with every fact where the builder looks for it."""
    changed = copy.deepcopy(config)
    rope = _rope(config)
    if isinstance(local := rope.get("sliding_attention"), dict):
        whole = dict(rope["full_attention"])
        changed.rope_parameters = whole
        changed.rope_theta = whole["rope_theta"]
        changed.rope_local_base_freq = local["rope_theta"]
    window = getattr(config, "sliding_window", None)
    if window and config.model_type in _ALL_BLOCKS_WINDOWED:
        changed.layer_types = ["sliding_attention"] * int(config.num_hidden_layers)
    if config.model_type == "phi3" and _kind(rope) != "longrope":
        # the builder takes a difference of the two for longrope, the config's default is 4096
        changed.original_max_position_embeddings = config.max_position_embeddings
    elif config.model_type == "phi3":
        # the builder asks for the old name of the kind, and knows no stated factor of attention
        gain = _longrope_gain(config)
        changed.rope_parameters = {
            **rope,
            "type": "longrope",
            "short_mscale": gain,
            "long_mscale": gain,
        }
        changed.original_max_position_embeddings = _original_length(config, rope)
    return changed


def problems(config: Any) -> list[ClpEdgeError]:
    """What the config asks for and the builder would write differently or not at all."""
    rope = _rope(config)
    parts = [rope[key] for key in ("full_attention", "sliding_attention") if key in rope]
    kinds = [_kind(part) for part in parts]
    known = {"default", *_ROPE_KINDS.get(config.model_type, set())}
    asked = {*(kinds or [_kind(rope)])}
    found: list[ClpEdgeError] = [
        UnsupportedModelError(
            f"onnxruntime-genai's builder does not write rope type {kind!r} for "
            f"{config.model_type} as transformers computes it",
            OPTIMUM,
        )
        for kind in sorted(asked - known)
    ]
    if "yarn" in asked & known and (fault := _yarn_fault(config, rope)):
        found.append(UnsupportedModelError(f"rope type 'yarn' of this model {fault}", OPTIMUM))
    if getattr(config, "quantization_config", None):
        found.append(
            UnsupportedModelError(
                "the checkpoint is quantized already", "give the unquantized base model"
            )
        )
    return found
