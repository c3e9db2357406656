"""A config as the builder reads it: where transformers 5 writes a fact in another place.

Each row below was a wrong graph or a KeyError with onnxruntime-genai 0.18 and transformers 5; the
numbers stay the model's own, only their places change. Sliding windows are the ones to fear: a
window that the builder overlooks passes every test on short texts.
"""

from __future__ import annotations

import copy
from typing import Any

from clp_edge.errors import ClpEdgeError, UnsupportedModelError

# Beyond "default" and "linear", which the builder's common code knows.
_ROPE_KINDS = {"llama": {"llama3"}, "phi3": {"longrope"}, "qwen2": {"yarn"}, "qwen3": {"yarn"}}
# transformers gives every block of these the window, and says so nowhere in the config.
_ALL_BLOCKS_WINDOWED = ("mistral", "phi3")


def _rope(config: Any) -> dict[str, Any]:
    """rope_parameters (transformers 5) or rope_scaling (4.57), never None."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    return dict(found or {})


def _kind(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


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
    return changed


def problems(config: Any) -> list[ClpEdgeError]:
    """What the config asks for and the builder would write differently or not at all."""
    rope = _rope(config)
    parts = [rope[key] for key in ("full_attention", "sliding_attention") if key in rope]
    kinds = [_kind(part) for part in parts]
    known = {"default", "linear", *_ROPE_KINDS.get(config.model_type, set())}
    found: list[ClpEdgeError] = [
        UnsupportedModelError(
            f"onnxruntime-genai's builder does not write rope type {kind!r} for {config.model_type}"
        )
        for kind in sorted({*(kinds or [_kind(rope)])} - known)
    ]
    if getattr(config, "quantization_config", None):
        found.append(
            UnsupportedModelError(
                "the checkpoint is quantized already", "give the unquantized base model"
            )
        )
    return found
