"""The part of the cut model that healing runs: from the first block that changes to the final norm.

The blocks that are mended are float32 copies, whatever the model computes in: an update of one
part in a thousand has no place in bfloat16. Under autocast the frozen blocks are copies too, whose
matrices are cast once instead of in every step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from clp_edge.models.anatomy import Anatomy, BlockArguments
from clp_edge.segment import Segment

State = dict[int, dict[str, Tensor]]
"""Tensors per block id of the dense model; names relative to the block."""


def tail_blocks(segment: Segment, total: int, entry: int | None = None) -> tuple[int, ...]:
    """Ids (dense) of the blocks from `entry` (the first endpoint) on, without the segment."""
    begin = max(segment.first - 1, 0) if entry is None else entry
    return tuple(i for i in range(begin, total) if i not in segment.blocks)


class Tail:
    """The cut model from the first block that changes; those that are mended may be changed."""

    def __init__(
        self,
        body: Anatomy,
        segment: Segment,
        tuned: Sequence[int] | None = None,
        *,
        casts: bool = True,
    ) -> None:
        """See the module.

        Args:
            tuned: ids (dense) of the blocks that tuning trains; the endpoints by default.
            casts: keep the frozen blocks' matrices in the dtype of autocast. They take room, and
                only many passes, as of a training, pay for them; the numbers are the same.
        """
        self.body = body
        self.segment = segment
        total = len(body)
        self.tuned = tuple(segment.endpoints(total) if tuned is None else tuned)
        mended = {*self.tuned, *segment.endpoints(total)}
        self.entry = min(*mended, segment.first)
        """the block of the dense model whose input the tail begins with"""
        self.order = tail_blocks(segment, total, self.entry)
        """ids (dense) of its blocks"""
        self.trained: dict[int, nn.Module] = {
            index: copy.deepcopy(body.blocks[index]).float() for index in sorted(mended)
        }
        """the copies that run in the place of the dense model's blocks"""
        weight = next(body.model.parameters())
        self.dtype, self.device = weight.dtype, weight.device
        self.frozen: dict[int, nn.Module] = {}
        if casts and body.autocast is not None and self.dtype == torch.float32:
            self.frozen = {
                index: _light(body.blocks[index], body.autocast)
                for index in self.order
                if index not in self.trained
            }

    def __call__(self, entry: Tensor, arguments: BlockArguments) -> Tensor:
        """The final norm's output, from the input of the first block: (batch, tokens, hidden)."""
        return self.body.normed(self.until(len(self.body), entry, arguments).to(self.dtype))

    def until(self, reach: int, entry: Tensor, arguments: BlockArguments) -> Tensor:
        """The hidden state that block `reach` would read, from the input of the first block."""
        instead = {**self.frozen, **self.trained}
        hidden = entry
        for index in self.order:
            if index < reach:
                # Each under its own autocast, which holds the weights it has cast until it ends.
                with self._precision():
                    hidden = self.body.run_blocks([index], hidden, arguments, instead=instead)
        return hidden

    def dense_end(self, reach: int, hidden: Tensor, arguments: BlockArguments) -> Tensor:
        """The dense model's final norm's output, from what its block `reach` reads."""
        order = range(reach, len(self.body))
        hidden = self.body.run_blocks(order, hidden, arguments, instead=self.frozen)
        return self.body.normed(hidden)

    def _precision(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return self.body.precision()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def state(self) -> State:
        """A copy of all that may be changed, in host memory."""
        return {
            index: {
                name: value.detach().to("cpu", copy=True)
                for name, value in module.state_dict().items()
            }
            for index, module in self.trained.items()
        }

    def restore(self, state: State) -> None:
        """Go back to an earlier `state()`."""
        for index, module in self.trained.items():
            module.load_state_dict(state[index])

    def changes(self) -> State:
        """A copy of the tensors that differ from the dense model's, in host memory."""
        changed: State = {}
        for index, tensors in self.state().items():
            dense = self.body.blocks[index].state_dict()
            different = {
                name: value
                for name, value in tensors.items()
                if not torch.equal(value, dense[name].to(value))
            }
            if different:
                changed[index] = different
        return changed


def _light(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose matrices are of the dtype that autocast would cast them to in every forward."""
    light = copy.deepcopy(block)
    for module in light.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
    return light.requires_grad_(False)
