"""The one dense pass that every search method stands on: each block's input, and the teacher.

h_i is the input of block i, h_L the output of the last block before the final norm (pitfall 4:
transformers' `hidden_states[-1]` is after it). A window [s, s+n) is then judged from h_s by running
the blocks s+n ... L-1 alone.

The states are (L+1) x tokens x hidden numbers: 0.3 GB for 2,048 tokens of a 135M model in float32,
5.6 GB for 8,192 tokens of an 80-block model in bfloat16. Past a bound they are laid into files that
the system pages in and out; on a GPU they then stay in the machine's own memory.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clp_edge.errors import ClpEdgeError
from clp_edge.kernels.head_kl import Teacher, teacher
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.search.gated import free_bytes


@dataclass(frozen=True)
class BlockStates:
    """What a dense pass leaves: shapes (sequences, tokens, hidden), float of the model's dtype."""

    ids: Tensor
    """(sequences, tokens) int64"""
    hidden: list[Tensor]
    """L+1 tensors: h_0 ... h_L; read them with `at`, which brings them to the model's device"""
    dense: Teacher
    """of all tokens, in the order of `ids` flattened"""
    spilled: bool = False
    """whether the states lie in files"""
    _room: Any = field(default=None, repr=False, compare=False)
    """keeps the folder of those files for as long as they are read"""

    @property
    def sequences(self) -> int:
        return int(self.ids.shape[0])

    @property
    def tokens(self) -> int:
        """Tokens in a sequence."""
        return int(self.ids.shape[1])

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.ids.device

    def at(self, index: int, sequences: Any) -> Tensor:
        """h_index of these sequences (a slice or an index tensor), on the model's device."""
        return self.hidden[index][sequences].to(self.device)

    def rows(self, first: int, last: int) -> slice:
        """The flat token rows of the sequences first ... last-1."""
        return slice(first * self.tokens, last * self.tokens)


class _Room:
    """Where the states go: memory, or files in a temporary folder."""

    def __init__(self, like: Tensor, sequences: int, count: int, bound: int | None) -> None:
        self.shape = (sequences, *like.shape[1:])
        self.like = like
        size = count * sequences * like[0].numel() * like.element_size()
        if bound is None:
            free = free_bytes(like.device)
            bound = size if free is None else free // 2
        self.spilled = size > bound
        self.folder = (
            tempfile.TemporaryDirectory(prefix="clp-edge-states-") if self.spilled else None
        )

    def tensor(self, name: str) -> Tensor:
        if self.folder is None:
            return torch.empty(self.shape, dtype=self.like.dtype, device=self.like.device)
        numbers = 1
        for size in self.shape:
            numbers *= size
        file = Path(self.folder.name) / name
        flat = torch.from_file(str(file), shared=True, size=numbers, dtype=self.like.dtype)
        return flat.view(self.shape)


@torch.no_grad()
def collect_states(
    body: Anatomy,
    ids: Tensor,
    *,
    batch: int = 4,
    bound: int | None = None,
    progress: Progress = silent,
) -> BlockStates:
    """Run the dense model once over ids (sequences, tokens) and keep every block's input.

    Args: bound, bytes that the states may take in memory before they are laid into files; None:
        half of what is free.
    Raises ClpEdgeError where the model's outputs are not finite, or do not depend on the text.
    """
    total = len(body)
    kept: list[Tensor] = []
    teachers: list[Teacher] = []
    room: _Room | None = None
    for start in range(0, len(ids), batch):
        rows = slice(start, min(start + batch, len(ids)))
        hidden, arguments = body.prepare(ids[rows])
        if room is None:
            room = _Room(hidden, len(ids), total + 1, bound)
            kept = [room.tensor(f"{index}.states") for index in range(total + 1)]
        for index in range(total):
            kept[index][rows] = hidden
            hidden = body.run_block(index, hidden, arguments)
        kept[total][rows] = hidden
        teachers.append(teacher(body.head, body.normed(hidden).flatten(0, 1)))
        progress(rows.stop, len(ids), "dense pass")
    states = BlockStates(
        ids=ids,
        hidden=kept,
        dense=Teacher.cat(teachers),
        spilled=room is not None and room.spilled,
        _room=room,
    )
    check_alive(states)
    return states


def check_alive(states: BlockStates) -> None:
    """Refuse a model whose outputs are NaN, infinite, or the same for every token."""
    outcome = states.dense.expected
    if not bool(torch.isfinite(outcome).all() and torch.isfinite(states.dense.offset).all()):
        raise ClpEdgeError(
            "the model's logits are not finite on the calibration text",
            "check the checkpoint, or give --dtype float32",
        )
    if len(outcome) > 1 and bool((outcome - outcome[0]).abs().max() == 0):
        raise ClpEdgeError(
            "the model's logits are the same for every token: nothing can be searched in it",
            "check that the checkpoint holds trained weights",
        )
