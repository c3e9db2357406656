"""One whole step of the gate search, eager and ours: time of its parts, and peak memory.

A model of the shape with random weights, as many blocks as memory allows; bfloat16 and SDPA on both
sides, every gate between 0 and 1, so that no block is skipped. Eager is transformers' own model
with the gates as hooks, and KL between full logits in float32; the dense model's logits are kept,
as that form must. Parts:

    blocks   the blocks and the final norm, forward, with the graph for backward
    head     KL and its gradient to the hidden state
    forward  both, as a step runs them (ours forms the head's gradient here already)
    step     forward and backward

>>> step_parts(built, gated_final_hidden)["step"].keys()                   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clp_edge.bench.kernel_contenders import Shape, compiled
from clp_edge.bench.kernel_rounds import Contender
from clp_edge.kernels.head_kl import Teacher, head_kl, teacher
from clp_edge.metrics import token_kl
from clp_edge.models.anatomy import Anatomy, BlockArguments, dissect

SEQUENCE = 2048
SHARE_OF_MEMORY = 0.6
"""of what is free, for the weights and what an eager step holds"""
GatedForward = Callable[..., Tensor]
"""`search.gated.gated_final_hidden`, handed in: this room stands below the search"""


@dataclass(frozen=True)
class Built:
    """A random model with the inputs of a step."""

    body: Anatomy
    hidden: Tensor
    """(batch, tokens, hidden), the input of block 0"""
    arguments: BlockArguments
    gates: Tensor
    dense_logits: Tensor
    dense: Teacher

    @property
    def tokens(self) -> int:
        return int(self.hidden.shape[0] * self.hidden.shape[1])


def blocks_that_fit(shape: Shape, tokens: int, free: int) -> int:
    """How many blocks of the shape an eager step has memory for, at least 1 and at most its own."""
    kv = shape.hidden * shape.key_value_heads // shape.heads
    matrices = 2 * shape.hidden + 2 * kv + 3 * shape.intermediate
    weights = 2 * shape.hidden * matrices
    # What autograd keeps of an eager block: 20 streams and 5 products of the MLP, half precision.
    kept = 2 * tokens * (20 * shape.hidden + 5 * shape.intermediate)
    # Dense and candidate logits, their float32 log-probabilities and gradients.
    ends = 4 * shape.vocabulary * shape.hidden + 24 * tokens * shape.vocabulary
    room = SHARE_OF_MEMORY * free - ends
    return int(max(1, min(shape.blocks, room // (weights + kept))))


@torch.no_grad()
def build(shape: Shape, *, tokens: int, blocks: int, device: torch.device) -> Built:
    """Random weights, random text, gates between 0.3 and 0.9."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    length = min(SEQUENCE, tokens)
    config = CONFIG_MAPPING[shape.model_type](
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        num_hidden_layers=blocks,
        max_position_embeddings=length,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
    model.requires_grad_(False)
    body = dissect(model)
    ids = torch.randint(shape.vocabulary, (tokens // length, length), device=device)
    hidden, arguments = body.prepare(ids)
    final = body.final_hidden(ids).flatten(0, 1)
    return Built(
        body,
        hidden,
        arguments,
        torch.linspace(0.3, 0.9, blocks, device=device),
        body.head.logits(final),
        teacher(body.head, final),
    )


def eager_blocks(built: Built, gates: Tensor) -> Tensor:
    """transformers' blocks with the gates as hooks, and the final norm."""
    body = built.body
    with body.gated(gates):
        hidden = body.run_blocks(range(len(body)), built.hidden, built.arguments)
    return body.normed(hidden)


def eager_head(built: Built, final: Tensor) -> Tensor:
    """The mean KL between full logits."""
    return token_kl(built.dense_logits, built.body.head.logits(final.flatten(0, 1))).mean()


def our_head(built: Built, final: Tensor) -> Tensor:
    """The mean KL from the hidden states."""
    return head_kl(built.body.head, built.dense, final.flatten(0, 1)).mean()


def step_parts(built: Built, ours: GatedForward) -> dict[str, dict[str, Contender]]:
    """The contenders of every part, by the part's name."""
    body, blocks = built.body, len(built.body)

    def our_blocks(gates: Tensor, recompute: int = 0) -> Tensor:
        return ours(body, built.hidden, gates, built.arguments, recompute=recompute)

    def gates() -> Tensor:
        return built.gates.detach().clone().requires_grad_()

    def plain(hidden: Tensor) -> Tensor:
        return body.normed(body.run_blocks(range(blocks), hidden, built.arguments))

    def stepped(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        def run(given: Tensor) -> tuple[Tensor, ...]:
            loss = forward(given)
            return (loss.detach(), *torch.autograd.grad(loss, given))

        return run

    def eager_forward(given: Tensor) -> Tensor:
        return eager_head(built, eager_blocks(built, given))

    def our_forward(given: Tensor) -> Tensor:
        return our_head(built, our_blocks(given))

    with torch.no_grad():
        final = eager_blocks(built, built.gates)

    def state() -> Tensor:
        return final.detach().clone().requires_grad_()

    parts: dict[str, dict[str, Contender]] = {
        "blocks": {
            "ours": Contender(lambda given: (our_blocks(given),), gates),
            "eager": Contender(lambda given: (eager_blocks(built, given),), gates),
        },
        "head": {
            "ours": Contender(stepped(lambda given: our_head(built, given)), state),
            "eager": Contender(stepped(lambda given: eager_head(built, given)), state),
        },
        "forward": {
            "ours": Contender(lambda given: (our_forward(given),), gates),
            "eager": Contender(lambda given: (eager_forward(given),), gates),
        },
        "step": {
            "ours": Contender(stepped(our_forward), gates),
            "ours, recomputed": Contender(
                stepped(lambda given: our_head(built, our_blocks(given, blocks))), gates
            ),
            "eager": Contender(stepped(eager_forward), gates),
        },
    }
    if built.hidden.is_cuda:
        fast = compiled(plain)

        def ungated(_: Any) -> tuple[Tensor]:
            with torch.no_grad():
                return (fast(built.hidden),)

        parts["blocks"]["plain, compiled"] = Contender(ungated)
    return parts
