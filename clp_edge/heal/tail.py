"""The part of the cut model that healing runs: from the first endpoint to the final norm.

The blocks that are mended are float32 copies, whatever the model computes in: an update of one
part in a thousand has no place in bfloat16.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from clp_edge.heal.collect import tail_blocks
from clp_edge.models.anatomy import Anatomy, BlockArguments
from clp_edge.segment import Segment

State = dict[int, dict[str, Tensor]]
"""Tensors per block id of the dense model; names relative to the block."""


class Tail:
    """The cut model from the first endpoint on; the endpoints may be changed."""

    def __init__(self, body: Anatomy, segment: Segment) -> None:
        self.body = body
        self.segment = segment
        self.order = tail_blocks(segment, len(body))
        """ids (dense) of its blocks"""
        self.trained: dict[int, nn.Module] = {
            index: copy.deepcopy(body.blocks[index]).float()
            for index in segment.endpoints(len(body))
        }
        """the copies that run in the place of the dense model's blocks"""
        weight = next(body.model.parameters())
        self.dtype, self.device = weight.dtype, weight.device

    def __call__(self, entry: Tensor, arguments: BlockArguments) -> Tensor:
        """The final norm's output, from the input of the first block: (batch, tokens, hidden)."""
        with self._precision():
            hidden = self.body.run_blocks(self.order, entry, arguments, instead=self.trained)
            return self.body.normed(hidden.to(self.dtype))

    def _precision(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def state(self) -> State:
        """A copy of all that may be changed."""
        return {
            index: {name: value.detach().clone() for name, value in module.state_dict().items()}
            for index, module in self.trained.items()
        }

    def restore(self, state: State) -> None:
        """Go back to an earlier `state()`."""
        for index, module in self.trained.items():
            module.load_state_dict(state[index])

    def changes(self) -> State:
        """A copy of the tensors that differ from the dense model's."""
        changed: State = {}
        for index, tensors in self.state().items():
            dense = self.body.blocks[index].state_dict()
            different = {
                name: value
                for name, value in tensors.items()
                if not torch.equal(value, dense[name].to(value.dtype))
            }
            if different:
                changed[index] = different
        return changed
