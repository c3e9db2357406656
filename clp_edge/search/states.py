"""The one dense pass that every search method stands on: each block's input, and the teacher.

h_i is the input of block i, h_L the output of the last block before the final norm (pitfall 4:
transformers' `hidden_states[-1]` is after it). A window [s, s+n) is then judged from h_s by running
the blocks s+n ... L-1 alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clp_edge.errors import ClpEdgeError
from clp_edge.kernels.head_kl import Teacher, teacher
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent


@dataclass(frozen=True)
class BlockStates:
    """What a dense pass leaves: shapes (sequences, tokens, hidden), float of the model's dtype."""

    ids: Tensor
    """(sequences, tokens) int64"""
    hidden: list[Tensor]
    """L+1 tensors: h_0 ... h_L"""
    dense: Teacher
    """of all tokens, in the order of `ids` flattened"""

    @property
    def sequences(self) -> int:
        return int(self.ids.shape[0])

    @property
    def tokens(self) -> int:
        """Tokens in a sequence."""
        return int(self.ids.shape[1])

    def rows(self, first: int, last: int) -> slice:
        """The flat token rows of the sequences first ... last-1."""
        return slice(first * self.tokens, last * self.tokens)


@torch.no_grad()
def collect_states(
    body: Anatomy, ids: Tensor, *, batch: int = 4, progress: Progress = silent
) -> BlockStates:
    """Run the dense model once over ids (sequences, tokens) and keep every block's input.

    Raises ClpEdgeError where the model's outputs are not finite, or do not depend on the text.
    """
    total = len(body)
    kept: list[list[Tensor]] = [[] for _ in range(total + 1)]
    teachers: list[Teacher] = []
    for start in range(0, len(ids), batch):
        hidden, arguments = body.prepare(ids[start : start + batch])
        for index in range(total):
            kept[index].append(hidden)
            hidden = body.run_block(index, hidden, arguments)
        kept[total].append(hidden)
        teachers.append(teacher(body.head, body.normed(hidden).flatten(0, 1)))
        progress(min(start + batch, len(ids)), len(ids), "dense pass")
    states = BlockStates(
        ids=ids,
        hidden=[torch.cat(parts) for parts in kept],
        dense=Teacher.cat(teachers),
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
