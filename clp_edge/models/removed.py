"""Which run of blocks a cut model lacks, found by equal tensors.

Block j of the cut model is block j of the teacher before the cut and block j + n behind it. Blocks
are compared by a digest of their tensors, rounded as the cut's are, read one block at a time: the
two may be stored in different precisions, and neither has to fit in memory.

>>> missing_runs(["a", "b", "c", "d"], ["a", "d"])
[Segment(first=1, last=2)]
>>> missing_runs(["a", "a", "b"], ["a", "b"])
[Segment(first=0, last=0), Segment(first=1, last=1)]
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import safe_open

from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.models import hf_folder
from clp_edge.models.anatomy import dissect, family_of
from clp_edge.models.source import Source, load_config, load_model, stored_dtype
from clp_edge.segment import Segment


def missing_runs(teacher: Sequence[str], cut: Sequence[str]) -> list[Segment]:
    """Every run of blocks without which the teacher's digests are the cut model's."""
    count = len(teacher) - len(cut)
    if count < 1:
        return []
    return [
        Segment.from_start(first, count)
        for first in range(len(cut) + 1)
        if [*teacher[:first], *teacher[first + count :]] == list(cut)
    ]


def block_digests(source: Source, rounded: torch.dtype = torch.float32) -> list[str]:
    """A digest of each block's tensors: names, shapes and values, as `rounded` holds them."""
    config = load_config(source)
    family = family_of(config)
    total = int(config.num_hidden_layers)
    if source.is_gguf:
        body = dissect(load_model(source, dtype=torch.float32, device="cpu"))
        return [_digest(sorted(block.state_dict().items()), rounded) for block in body.blocks]
    places: dict[int, list[tuple[str, Any, str]]] = {index: [] for index in range(total)}
    for path in hf_folder.weight_files(source.path):
        file = safe_open(path, framework="pt", device="cpu")
        for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            # a checkpoint of the bare decoder leaves its name out
            for prefix in (family.blocks, family.blocks.partition(".")[2]):
                if prefix and key.startswith(f"{prefix}."):
                    index, _, name = key[len(prefix) + 1 :].partition(".")
                    if index.isdigit() and int(index) in places:
                        places[int(index)].append((name, file, key))
                    break
    empty = [str(index) for index, rows in places.items() if not rows]
    if empty:
        raise ClpEdgeError(
            f"{source.path} holds no tensors of block {', '.join(empty)}",
            "save the model as safetensors",
        )
    return [
        _digest(
            [(name, file.get_tensor(key)) for name, file, key in sorted(rows, key=_first)], rounded
        )
        for rows in places.values()
    ]


def _first(row: tuple[str, Any, str]) -> str:
    return row[0]


def _digest(tensors: Sequence[tuple[str, torch.Tensor]], rounded: torch.dtype) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors:
        if name.endswith("rotary_emb.inv_freq"):
            continue
        found.update(f"{name}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().to(rounded).float().contiguous().numpy().tobytes())
    return found.hexdigest()


def removed_segment(teacher: Source, cut: Source, *, said: Segment | None = None) -> Segment:
    """The run of blocks that `cut` lacks of `teacher`.

    Args: said, the blocks that the user or the folder names; they must be among those found.
    Raises UsageError where the two models do not belong together, where no run fits (other blocks
        were changed too), or where several fit and none was named.
    """
    first, second = load_config(teacher), load_config(cut)
    for name in ("model_type", "vocab_size", "hidden_size", "intermediate_size"):
        ours, theirs = getattr(first, name, None), getattr(second, name, None)
        if ours != theirs:
            raise UsageError(
                f"{cut.path} has {name} {theirs} and its teacher {teacher.spec or teacher.name} "
                f"has {ours}",
                "give the model that it was cut from with --teacher",
            )
    count = int(first.num_hidden_layers) - int(second.num_hidden_layers)
    if count < 1:
        raise UsageError(
            f"{cut.path} has {second.num_hidden_layers} blocks and its teacher "
            f"{first.num_hidden_layers}: nothing was cut",
            "give the folder of a model that lacks blocks of its teacher",
        )
    # What a GGUF file holds is saved in float16: the teacher too is looked at as the cut holds it.
    stored = stored_dtype(cut)
    found = missing_runs(block_digests(teacher, stored), block_digests(cut, stored))
    listed = ", ".join(str(segment) for segment in found)
    if said is not None:
        if said in found:
            return said
        raise UsageError(
            f"{cut.path} is not the teacher without blocks {said}",
            f"what it lacks is {listed}" if found else "its other blocks differ from the teacher's",
        )
    if not found:
        raise UsageError(
            f"no run of {count} blocks makes {cut.path} out of its teacher: the blocks that stayed "
            "differ from the teacher's",
            "give the very model that it was cut from, cut but not yet tuned",
        )
    if len(found) > 1:
        raise UsageError(
            f"several runs of blocks fit, since some blocks are equal: {listed}",
            "say which with --blocks",
        )
    return found[0]
