"""Where the blocks, norms, head and embeddings of a model are, and how to run them one by one.

A block runs through transformers' own forward, with the very arguments (masks, rotary tables)
that transformers would give it: `Anatomy.prepare` records them once per shape. So whatever is
computed here block by block equals the whole model's forward.

Gates: a block with gate g computes h' = h + g·Attn(norm(h)), h'' = h' + g·MLP(norm(h')). The gate
scales the output of the module named by the family's `attention_branch` and `mlp_branch`; g = 1 is
the model itself, g = 0 drops the block exactly.

>>> from transformers import LlamaConfig, LlamaForCausalLM
>>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32}
>>> config = LlamaConfig(**sizes, num_hidden_layers=3, num_attention_heads=2)
>>> model = LlamaForCausalLM(config).eval()
>>> body, ids = dissect(model), torch.tensor([[1, 5, 9]])
>>> with torch.no_grad():
...     hidden, arguments = body.prepare(ids)
...     for i in range(len(body)):
...         hidden = body.run_block(i, hidden, arguments)
...     torch.equal(body.logits(body.normed(hidden)), model(ids).logits)
True
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clp_edge.kernels.head_kl import Head
from clp_edge.models.families import FAMILIES, Family, refusal
from clp_edge.models.generic import find_family

BlockArguments = list[dict[str, Any]]


class _Recorded(Exception):
    """Raised after the last block: all that `prepare` wanted is known."""


def _hidden(output: Any) -> Tensor:
    """A block returns its hidden state, or (in some families and versions) a tuple led by it."""
    return output[0] if isinstance(output, tuple) else output


@dataclass
class Anatomy:
    """A causal language model taken apart; shapes are (batch, tokens, hidden) throughout."""

    model: Any
    family: Family
    decoder: nn.Module
    blocks: nn.ModuleList
    embedding: nn.Embedding
    final_norm: nn.Module
    head_module: nn.Linear
    autocast: torch.dtype | None = None
    """what the blocks' products are computed in where it is not the weights' dtype; norms, the
    residual stream and the head stay in the weights' own (models/precision.py)"""
    _arguments: dict[tuple[int, int], BlockArguments] = field(default_factory=dict, repr=False)
    _tuples: list[bool] = field(default_factory=list, repr=False)
    """whether blocks return a tuple in this family and version; empty until one has run"""

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def tied(self) -> bool:
        """Whether the head shares the embedding's memory."""
        return self.head_module.weight.data_ptr() == self.embedding.weight.data_ptr()

    @property
    def residual_multiplier(self) -> float:
        """What each branch is multiplied by before it is added: 1 but for Granite."""
        name = self.family.residual_multiplier
        return float(getattr(self.config, name)) if name else 1.0

    @property
    def head(self) -> Head:
        """The head as tensors: weight (vocabulary, hidden), bias, logit scale and soft cap."""
        divisor = self.family.logit_divisor
        multiplier = self.family.logit_multiplier
        multiplied = float(getattr(self.config, multiplier)) if multiplier else 1.0
        softcap = self.family.logit_softcap
        cap = getattr(self.config, softcap, None) if softcap else None
        return Head(
            weight=self.head_module.weight,
            bias=self.head_module.bias,
            scale=multiplied / (float(getattr(self.config, divisor)) if divisor else 1.0),
            softcap=float(cap) if cap else None,
        )

    def submodule(self, block: int, path: str) -> nn.Module:
        """The sub-module of one block at a path of the family's row."""
        return self.blocks[block].get_submodule(path)

    @torch.no_grad()
    def prepare(self, ids: Tensor) -> tuple[Tensor, BlockArguments]:
        """The input of block 0 (batch, tokens, hidden), and every block's keyword arguments.

        Sequences are of equal length without padding, so the arguments depend on the shape alone
        and are recorded once per shape. ids: (batch, tokens) int64.
        """
        recorded: BlockArguments = [{} for _ in self.blocks]
        first: list[Tensor] = []
        originals = [block.forward for block in self.blocks]
        names = [list(inspect.signature(forward).parameters) for forward in originals]
        known = self._arguments.get((ids.shape[0], ids.shape[1]))
        kind = self._tuples

        def recorder(index: int) -> Any:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                # GPT-2's blocks get theirs by position
                kwargs = {**dict(zip(names[index][1:], args, strict=False)), **kwargs}
                if index == 0:
                    first.append(hidden_states)
                    if known is not None:
                        raise _Recorded
                    # Once the first block really runs, to learn whether it returns a tuple. Later
                    # its weights may be elsewhere (heal/memory.py).
                    if not kind:
                        output = originals[0](hidden_states, **kwargs)
                        kind.append(isinstance(output, tuple))
                recorded[index] = kwargs
                if index == len(originals) - 1:
                    raise _Recorded
                return (hidden_states,) if kind[0] else hidden_states

            return forward

        try:
            for index, block in enumerate(self.blocks):
                block.forward = recorder(index)
            self.decoder(input_ids=ids, use_cache=False)
        except _Recorded:
            pass
        finally:
            for block in self.blocks:
                del block.forward
        if known is None:
            known = self._arguments[(ids.shape[0], ids.shape[1])] = recorded
        return first[0], known

    def run_block(self, index: int, hidden: Tensor, arguments: BlockArguments) -> Tensor:
        """Block `index` of this model on hidden (batch, tokens, hidden)."""
        with self.precision():
            return _hidden(self.blocks[index](hidden, **arguments[index]))

    def precision(self) -> AbstractContextManager[object]:
        """The autocast that blocks run under, if any."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.head_module.weight.device.type, dtype=self.autocast)

    def run_blocks(
        self,
        indices: Sequence[int],
        hidden: Tensor,
        arguments: BlockArguments,
        *,
        instead: Mapping[int, nn.Module] | None = None,
    ) -> Tensor:
        """These blocks, one after the other; `instead` holds modules for the places of some."""
        for index in indices:
            block = instead.get(index) if instead else None
            if block is None:
                hidden = self.run_block(index, hidden, arguments)
            else:
                with self.precision():
                    hidden = _hidden(block(hidden, **arguments[index]))
        return hidden

    def normed(self, hidden: Tensor) -> Tensor:
        """The final norm."""
        return self.final_norm(hidden)

    def final_hidden(self, ids: Tensor) -> Tensor:
        """The whole model up to and including the final norm."""
        return self.decoder(input_ids=ids, use_cache=False).last_hidden_state

    def logits(self, final_hidden: Tensor) -> Tensor:
        """(..., vocabulary) float32 logits from hidden states after the final norm.

        float32 in half precision too: between two models' bfloat16 logits the KL of 0.0067 that a
        mild change of the demo model brings comes out 0.0005 higher (kernels/head_kl.py).
        """
        return self.head.scores(final_hidden)

    @contextmanager
    def gated(self, gates: Tensor | Sequence[float]) -> Iterator[None]:
        """While open, block i runs with gate g_i on both branches (L values, gradients kept)."""
        if len(gates) != len(self.blocks):
            raise ValueError(f"{len(gates)} gates for {len(self.blocks)} blocks")
        handles = []

        def scale(index: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
                gate = gates[index]
                if isinstance(output, tuple):
                    return (output[0] * gate, *output[1:])
                return output * gate

            return hook

        try:
            for index in range(len(self.blocks)):
                for path in (self.family.attention_branch, self.family.mlp_branch):
                    module = self.submodule(index, path)
                    handles.append(module.register_forward_hook(scale(index)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def family_of(config: Any) -> Family:
    """The row of this config, from the table or found by looking.

    Raises UnsupportedModelError with the reason where there is none.
    """
    problem = refusal(config)
    if problem is not None:
        raise problem
    row = FAMILIES.get(config.model_type)
    return find_family(config, take_apart) if row is None else row


def dissect(model: Any) -> Anatomy:
    """Take a causal language model of transformers apart.

    Raises UnsupportedModelError where its family is not known or cannot be cut safely.
    """
    return take_apart(model, family_of(model.config))


def take_apart(model: Any, family: Family) -> Anatomy:
    """The same with a row at hand."""
    return Anatomy(
        model=model,
        family=family,
        decoder=model.get_submodule(family.decoder),
        blocks=model.get_submodule(family.blocks),
        embedding=model.get_submodule(family.embedding),
        final_norm=model.get_submodule(family.final_norm),
        head_module=model.get_submodule(family.head),
    )


def parameter_count(model: Any) -> int:
    """Parameters, a tied head counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
