"""What a cut does to a config and to a list of blocks; `surgery` does it to a whole model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from clp_edge.errors import UsageError
from clp_edge.segment import check_count

_LEADING_COUNTS = ("max_window_layers",)
"""Config integers that mean "the first k blocks": they become the number of those that stay."""


def check_blocks(dropped: Iterable[int], total: int) -> tuple[int, ...]:
    """The ids to drop, sorted. Raises UsageError where `total` blocks cannot spare them."""
    ids = tuple(sorted(set(dropped)))
    if not ids:
        raise UsageError("no block to drop was named", "give --blocks FIRST-LAST")
    if ids[0] < 0 or ids[-1] >= total:
        raise UsageError(
            f"the model has blocks 0-{total - 1}, and {ids[-1] if ids[-1] >= total else ids[0]} "
            "is not one of them",
            "give block ids inside that range",
        )
    check_count(len(ids), total)
    return ids


def cut_config(config: Any, dropped: Iterable[int]) -> None:
    """Make a config speak of the remaining blocks, in place.

    Every list or tuple with one entry per block is sliced, whatever its name, so that each block
    that stays keeps its own kind.
    """
    total = int(config.num_hidden_layers)
    gone = set(check_blocks(dropped, total))
    for name, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == total and name != "architectures":
            kept = [entry for i, entry in enumerate(value) if i not in gone]
            setattr(config, name, type(value)(kept))
        elif name in _LEADING_COUNTS and isinstance(value, int):
            setattr(config, name, sum(1 for i in range(min(value, total)) if i not in gone))
    config.num_hidden_layers = total - len(gone)


def drop_blocks(model: Any, path: str, dropped: Iterable[int]) -> None:
    """Remove blocks from the list at `path` of a model, in place: modules, `layer_idx`, configs."""
    blocks = model.get_submodule(path)
    total = len(blocks)
    gone = set(check_blocks(dropped, total))
    for config in _configs(model):
        if getattr(config, "num_hidden_layers", None) == total:
            cut_config(config, gone)
    kept = [block for i, block in enumerate(blocks) if i not in gone]
    parent_path, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent_path), name, nn.ModuleList(kept))
    for index, block in enumerate(kept):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                vars(module)["layer_idx"] = index


def _configs(model: Any) -> list[Any]:
    """Every distinct config object that the model or one of its modules holds."""
    seen: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            seen.setdefault(id(config), config)
    return list(seen.values())
