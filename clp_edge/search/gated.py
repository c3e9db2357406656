"""The gated model's forward through the fused kernels: what the gate search runs again and again.

A pre-norm block adds a branch to the residual stream and norms the sum for the next branch. Those
steps, the gate's product included, are one kernel here (`kernels.gated_residual`), with the norm
that comes next, in this block or the next one:

    y = norm_1(r);  (r, y) = gated_residual(r, Attn(y), g, norm_2);
                    (r, y) = gated_residual(r, MLP(y), g, norm_1 of the next block that runs)

and after the last block the final norm. Gemma 2 and 3 norm each branch once more before its gate,
by the same kernel without a branch; OLMo 2 norms the branches alone and hands the stream itself on,
so the gated sum is all there is to fuse (`kernels.gated_add`). The attention is transformers' own
module; the MLP is its matrices around the fused activation. A block whose gate is exactly 0 is not
run at all, and its gate's gradient is 0 here: it is not known without running the block.

A model without a row here, or in training mode, runs as transformers has it, with the gates as
hooks: `path_of` says which way, and why. Both give the same numbers.

>>> path_of(body)                                                          # doctest: +SKIP
Path(fused=True, reason='pre-norm blocks')
>>> hidden = gated_final_hidden(body, h0, gates, arguments)                # doctest: +SKIP
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clp_edge.kernels.dispatch import gated_add, gated_residual, geglu, swiglu
from clp_edge.kernels.gated_residual import Casting
from clp_edge.models.anatomy import Anatomy, BlockArguments


class Path(NamedTuple):
    """Whether the fused kernels carry this model's residual stream, and why."""

    fused: bool
    reason: str


@dataclass(frozen=True)
class Layout:
    """Where a family's norms stand; paths are relative to a block, None where there is no norm."""

    reason: str = "pre-norm blocks"
    attention: str = "self_attn"
    mlp: str = "mlp"
    attention_norm: str | None = "input_layernorm"
    """norms the stream for the attention"""
    mlp_norm: str | None = "post_attention_layernorm"
    """norms the stream for the MLP"""
    attention_branch_norm: str | None = None
    """norms what the attention gives, before its gate"""
    mlp_branch_norm: str | None = None
    casting: Casting = "llama"
    """of the norms of the stream, and of the branches' too where the stream has norms"""


_SANDWICH = Layout(
    reason="a norm before and after each branch",
    mlp_norm="pre_feedforward_layernorm",
    attention_branch_norm="post_attention_layernorm",
    mlp_branch_norm="post_feedforward_layernorm",
    casting="gemma",
)
FUSED: dict[str, Layout] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "granite"), Layout()),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "olmo2": Layout(
        reason="no norm follows a sum, so the gated sum and the MLP's product alone are fused",
        attention_norm=None,
        mlp_norm=None,
        attention_branch_norm="post_attention_layernorm",
        mlp_branch_norm="post_feedforward_layernorm",
    ),
}


def path_of(body: Anatomy) -> Path:
    """Which way this model's gated forward goes."""
    name = body.family.model_type
    if name not in FUSED:
        return Path(False, f"{name} has no row in the table of fused families")
    if body.model.training:
        return Path(False, "the model is in training mode, and dropout is not fused")
    return Path(True, FUSED[name].reason)


def _eps(norm: Any) -> float:
    """transformers calls it variance_epsilon in the families of the table."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


def _activation(config: Any) -> str:
    """Gemma calls it hidden_activation, and may carry a hidden_act that its MLP does not use."""
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _product(activation: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The fused act(a)·b for a config's `hidden_act`, or None where it is another activation."""
    if activation in {"silu", "swish"}:
        return swiglu
    if activation in {"gelu_pytorch_tanh", "gelu_new"}:
        return geglu
    if activation == "gelu":
        return lambda gate, up: geglu(gate, up, tanh=False)
    return None


def run_mlp(mlp: Any, hidden: Tensor, activation: str) -> Tensor:
    """A gated MLP of transformers with the fused product; any other runs as it is."""
    product = _product(activation)
    if product is not None and hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj(hidden).chunk(2, dim=-1)
        return mlp.down_proj(product(gate, up))
    if product is not None and hasattr(mlp, "gate_proj") and hasattr(mlp, "up_proj"):
        return mlp.down_proj(product(mlp.gate_proj(hidden), mlp.up_proj(hidden)))
    return mlp(hidden)


def gated_final_hidden(
    body: Anatomy,
    hidden: Tensor,
    gates: Tensor | Sequence[float],
    arguments: BlockArguments,
    *,
    first: int = 0,
    recompute: int = 0,
) -> Tensor:
    """The gated model from block `first` up to and including the final norm.

    Args:
        hidden: (batch, tokens, hidden), the input of block `first`.
        gates: one per block of the whole model; in float32, whatever the model's dtype.
        arguments: of `body.prepare`, for this shape.
        recompute: so many of the blocks that run, from the first, keep only their inputs and are
            run again in backward (see `blocks_to_recompute`).
    """
    if len(gates) != len(body):
        raise ValueError(f"{len(gates)} gates for {len(body)} blocks")
    numbers = gates.tolist() if isinstance(gates, Tensor) else [float(gate) for gate in gates]
    running = [index for index in range(first, len(body)) if numbers[index] != 0.0]
    if not path_of(body).fused:

        def hooked(index: int, stream: Tensor) -> Tensor:
            # The hooks belong inside: backward runs this again when the loop is long over.
            with body.gated(gates):
                return body.run_block(index, stream, arguments)

        for count, index in enumerate(running):
            hidden = _again(count < recompute, hooked, index, hidden)
        return body.normed(hidden)

    row = FUSED[body.family.model_type]
    activation = _activation(body.config)
    if not isinstance(gates, Tensor):
        gates = torch.tensor(numbers, device=hidden.device)
    # unbind, not indexing: one backward node for all blocks.
    effective = (gates.to(hidden.device, torch.float32) * body.residual_multiplier).unbind()

    def norm(index: int, path: str | None) -> nn.Module | None:
        return None if path is None else body.submodule(index, path)

    def join(
        stream: Tensor, branch: Tensor | None, gate: Any, following: Any
    ) -> tuple[Tensor, Tensor]:
        """The new stream, and what the next branch reads."""
        if following is not None:
            gain, eps = following.weight, _eps(following)
            return gated_residual(stream, branch, gate, gain, eps=eps, casting=row.casting)
        if branch is not None:
            stream = gated_add(stream, branch, gate)
        return stream, stream

    def branch_normed(branch: Tensor, index: int, path: str | None) -> Tensor:
        own = norm(index, path)
        if own is None:
            return branch
        # OLMo 2's norm casts in a third way, which the kernel does not have.
        return own(branch) if row.mlp_norm is None else join(branch, None, 0.0, own)[1]

    def block(
        index: int, stream: Tensor, read: Tensor, gate: Tensor, following: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        attention = body.submodule(index, row.attention)
        branch = attention(hidden_states=read, **arguments[index])[0]
        branch = branch_normed(branch, index, row.attention_branch_norm)
        stream, read = join(stream, branch, gate, norm(index, row.mlp_norm))
        branch = run_mlp(body.submodule(index, row.mlp), read, activation)
        branch = branch_normed(branch, index, row.mlp_branch_norm)
        return join(stream, branch, gate, following)

    last = None if row.attention_norm is None else body.final_norm
    norms = [norm(index, row.attention_norm) for index in running] + [last]
    hidden, read = join(hidden, None, 0.0, norms[0])
    for count, index in enumerate(running):
        hidden, read = _again(
            count < recompute, block, index, hidden, read, effective[index], norms[count + 1]
        )
    return body.normed(hidden) if last is None else read


def _again(wanted: bool, function: Callable[..., Any], *args: Any) -> Any:
    """The function's value; where wanted, backward runs it again and nothing inside is kept."""
    if wanted and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return function(*args)


def kept_bytes(body: Anatomy, hidden: Tensor, arguments: BlockArguments, *, block: int = 0) -> int:
    """What one gated block keeps for backward at this shape, measured by running it once, bytes.

    Weights and the block's arguments are not counted; a storage that is kept twice counts once.
    """
    known = {p.untyped_storage().data_ptr() for p in body.model.parameters()}
    known |= {
        tensor.untyped_storage().data_ptr()
        for value in arguments[block].values()
        for tensor in (value if isinstance(value, tuple) else (value,))
        if isinstance(tensor, Tensor)
    }
    sizes: dict[int, int] = {}
    # Kept alive while counting: a freed storage's address may be given out again.
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    gates = torch.zeros(len(body), device=hidden.device)
    gates[block] = 0.5
    gates.requires_grad_()
    # The stream of a block inside the model needs a gradient.
    stream = hidden.detach().requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        gated_final_hidden(body, stream, gates, arguments, first=block)
    return sum(sizes.values())


def blocks_to_recompute(kept_per_block: int, blocks: int, budget_bytes: int, inputs: int) -> int:
    """How many of `blocks` must be run again in backward so that what is kept fits the budget.

    Args: inputs, what a recomputed block still keeps (its stream and normed input), bytes.

    >>> blocks_to_recompute(kept_per_block=100, blocks=10, budget_bytes=700, inputs=20)
    4
    """
    over = kept_per_block * blocks - budget_bytes
    if over <= 0:
        return 0
    return min(blocks, -(-over // max(1, kept_per_block - inputs)))


@dataclass(frozen=True)
class ActivationBudget:
    """What a step at one shape keeps for backward, and how much of it there is room for; bytes."""

    kept_per_block: int
    inputs: int
    """what a recomputed block still keeps: its stream and what it reads"""
    room: int

    def recompute(self, blocks: int) -> int:
        """How many of so many running blocks are run again in backward."""
        return blocks_to_recompute(self.kept_per_block, blocks, self.room, self.inputs)


def activation_budget(
    body: Anatomy, hidden: Tensor, arguments: BlockArguments, room: int | None = None
) -> ActivationBudget:
    """Measured by running one block of the middle; `room` by default half of what is free now.

    The other half is for the head's logits, the block that is being run again, and the allocator.
    """
    if room is None:
        free = free_bytes(hidden.device)
        room = sys.maxsize if free is None else free // 2
    kept = kept_bytes(body, hidden, arguments, block=len(body) // 2)
    return ActivationBudget(kept, 2 * hidden.numel() * hidden.element_size(), room)


def free_bytes(device: torch.device) -> int | None:
    """What torch could still take there, its own unused cache included; None where unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None
