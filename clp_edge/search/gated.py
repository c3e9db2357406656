"""The gated model's forward through the fused kernels: what the gate search runs again and again.

A pre-norm block adds a branch to the residual stream and norms the sum for the next branch. Those
steps, the gate's product included, are one kernel here (`kernels.gated_residual`), with the norm
that comes next, in this block or the next one:

    y = norm_1(r);  (r, y) = gated_residual(r, Attn(y), g, norm_2);
                    (r, y) = gated_residual(r, MLP(y), g, norm_1 of the next block that runs)

and after the last block the final norm. The attention is transformers' own module; the MLP is its
matrices around the fused activation. A block whose gate is exactly 0 is not run at all, and its
gate's gradient is 0 here: it is not known without running the block.

Families whose norms stand elsewhere run as transformers has them, with the gates as hooks:
`path_of` says which, and why. Both paths give the same numbers.

>>> path_of(body)                                                          # doctest: +SKIP
Path(fused=True, reason='pre-norm blocks')
>>> hidden = gated_final_hidden(body, h0, gates, arguments)                # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clp_edge.kernels.dispatch import gated_residual, geglu, swiglu
from clp_edge.kernels.gated_residual import Casting
from clp_edge.models.anatomy import Anatomy, BlockArguments


class Path(NamedTuple):
    """Whether the fused kernels carry this model's residual stream, and why."""

    fused: bool
    reason: str


@dataclass(frozen=True)
class PreNorm:
    """A family that takes the fused path; paths are relative to a block."""

    attention: str = "self_attn"
    attention_norm: str = "input_layernorm"
    mlp: str = "mlp"
    mlp_norm: str = "post_attention_layernorm"
    casting: Casting = "llama"
    """All of these norm in float32 and round before the gain."""


FUSED: dict[str, PreNorm] = {
    name: PreNorm() for name in ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "granite")
}
_SANDWICH = (
    "a norm of its own stands between each branch and the stream, so what is gated is a norm's "
    "output and the sum is not what the kernel reads"
)
NOT_FUSED: dict[str, str] = {
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "olmo2": "branches are normed after they run and read the stream itself: no norm follows a sum",
}


def path_of(body: Anatomy) -> Path:
    """Which way this model's gated forward goes."""
    name = body.family.model_type
    if name not in FUSED:
        return Path(False, NOT_FUSED.get(name, f"{name} has no row in the table of fused families"))
    if body.model.training:
        return Path(False, "the model is in training mode, and dropout is not fused")
    return Path(True, "pre-norm blocks")


def _eps(norm: Any) -> float:
    """transformers calls it variance_epsilon in the families of the table."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


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
    activation = str(body.config.hidden_act)
    if not isinstance(gates, Tensor):
        gates = torch.tensor(numbers, device=hidden.device)
    # unbind, not indexing: one backward node for all blocks.
    effective = (gates.to(hidden.device, torch.float32) * body.residual_multiplier).unbind()
    norms = [body.submodule(index, row.attention_norm) for index in running] + [body.final_norm]

    def join(stream: Tensor, branch: Tensor | None, gate: Any, norm: Any) -> tuple[Tensor, Tensor]:
        return gated_residual(
            stream, branch, gate, norm.weight, eps=_eps(norm), casting=row.casting
        )

    def block(
        index: int, stream: Tensor, normed: Tensor, gate: Tensor, following: nn.Module
    ) -> tuple[Tensor, Tensor]:
        attention = body.submodule(index, row.attention)
        branch = attention(hidden_states=normed, **arguments[index])[0]
        stream, normed = join(stream, branch, gate, body.submodule(index, row.mlp_norm))
        branch = run_mlp(body.submodule(index, row.mlp), normed, activation)
        return join(stream, branch, gate, following)

    hidden, normed = join(hidden, None, 0.0, norms[0])
    for count, index in enumerate(running):
        hidden, normed = _again(
            count < recompute, block, index, hidden, normed, effective[index], norms[count + 1]
        )
    return normed


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
