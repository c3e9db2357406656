"""Remove blocks for good: the result is an ordinary transformers model, in memory and on disk.

What a cut must not leave behind (each has a test that names it):
- a stale `layer_idx` in any sub-module: the cache then reads another block's keys (pitfall 1);
- a per-layer list in the config that is still as long as before: `from_pretrained` raises, or a
  block silently changes its kind, local or global, rope or none (pitfall 2);
- a count such as `max_window_layers` that still speaks of the old block ids.

>>> from transformers import LlamaConfig, LlamaForCausalLM
>>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32}
>>> config = LlamaConfig(**sizes, num_hidden_layers=3, num_attention_heads=2)
>>> model = LlamaForCausalLM(config).eval()
>>> remove_blocks(model, [1])
>>> model.config.num_hidden_layers, [m.self_attn.layer_idx for m in model.model.layers]
(2, [0, 1])
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clp_edge.models.anatomy import dissect
from clp_edge.models.cutting import check_blocks, cut_config, drop_blocks

__all__ = ["check_blocks", "cut_config", "remove_blocks"]


def remove_blocks(model: Any, dropped: Iterable[int]) -> None:
    """Remove blocks from a model in place: modules, `layer_idx`, and the config's lists.

    Args: dropped, ids of the model as it is now, in any order.
    Raises: UsageError for ids that are not there or where fewer than two blocks would stay;
        UnsupportedModelError for a family that cannot be cut.
    """
    drop_blocks(model, dissect(model).family.blocks, dropped)
