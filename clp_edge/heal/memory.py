"""What healing holds in memory: what leaves while it tunes, and a prediction before any work.

Once the dense passes are over, tuning runs the tail alone. The blocks before it, the segment, the
originals of the blocks that were copied, and an embedding that is not the head's too, leave the
device (`parked`): to host memory, from where they come back, or, where the model was on the CPU and
is not needed again, for good (the meta device holds shapes and no storage).

`predict` counts the same from the shapes of a model, built without memory.

>>> found = predict(llama_8b, Segment(13, 18), (12, 19, 20, 21), on_cuda)    # doctest: +SKIP
>>> round(found.collecting / 2**30, 1), round(found.tuning / 2**30, 1)    # doctest: +SKIP
(21.0, 20.3)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clp_edge.heal.graft import GRAFT, ROWS, TOKENS, extra
from clp_edge.heal.tail import Tail, tail_blocks
from clp_edge.models.anatomy import Anatomy
from clp_edge.segment import Segment

META = torch.device("meta")
BATCH = 8
"""sequences that `heal` runs at once where it takes no gradient"""


def away_from(device: torch.device, *, spent: bool) -> torch.device | None:
    """Where blocks that tuning does not run go from a device; None: they stay.

    Args: spent, whether nobody needs the model after healing: from the CPU there is no other place
        than away.
    """
    if device.type != "cpu":
        return torch.device("cpu")
    return META if spent else None


def idle_blocks(tail: Tail, reach: int) -> tuple[int, ...]:
    """Blocks of the dense model that neither the tail nor its teacher runs, in order.

    Args: reach, the block from which the teacher goes on to the head (`TailInputs.reach`).
    """
    runs = {i for i in tail.order if i not in tail.frozen}
    runs -= {i for i in tail.trained if i < reach}
    return tuple(i for i in range(len(tail.body)) if i not in runs)


@contextmanager
def parked(tail: Tail, reach: int, away: torch.device | None) -> Iterator[tuple[int, ...]]:
    """While open, the idle blocks of the dense model are away; gives their ids.

    From the meta device nothing comes back: the model is spent then, but for the originals of the
    copied blocks, which say what has changed.
    """
    if away is None:
        yield ()
        return
    body, home = tail.body, tail.device
    idle = idle_blocks(tail, reach)
    if away == META:
        gone = tuple(i for i in idle if i not in tail.trained)
        for index in gone:
            body.blocks[index].to(META)
        yield gone
        return
    for index in idle:
        body.blocks[index].to(away)
    hooks = [] if body.tied else _look_up_on(body.embedding, away, home)
    try:
        yield idle
    finally:
        for hook in hooks:
            hook.remove()
        body.embedding.to(home)
        for index in idle:
            body.blocks[index].to(home)


def _look_up_on(embedding: nn.Embedding, away: torch.device, home: torch.device) -> list[Any]:
    """The embedding lives on `away`, takes ids from anywhere and gives its rows on `home`."""

    def carry(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].to(away), *inputs[1:])

    def bring(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.to(home)

    embedding.to(away)
    return [
        embedding.register_forward_pre_hook(carry),
        embedding.register_forward_hook(bring, prepend=True),
    ]


@dataclass(frozen=True)
class Work:
    """What healing will work on."""

    weights: torch.dtype
    device: str
    fit_tokens: int
    held_tokens: int
    length: int = 128
    """of a sequence"""
    step_tokens: int = 512
    """run at once with a gradient"""
    autocast: torch.dtype | None = None
    spent: bool = False
    """as `heal` has it"""
    tunes: bool = True
    """whether a rung trains, or a closed form is the last"""
    grafts: bool = True
    """whether the graft is climbed, where it applies"""


@dataclass(frozen=True)
class HealMemory:
    """Predicted bytes on the device that computes, the model's included."""

    collecting: int
    """the dense passes, with the whole model"""
    tuning: int
    """the rungs, with the tail alone; 0 where none trains"""
    grafting: int = 0
    """the choice of neurons (heal/graft.py); 0 where there is none"""

    @property
    def peak(self) -> int:
        return max(self.collecting, self.tuning, self.grafting)


# Per token, what a block leaves for its backward: (hidden, intermediate) numbers, as counted on
# Llama and Qwen3 blocks by saved_tensors_hooks. A trained block keeps what its matrices read.
TRAINED_BLOCK = (12.5, 4.0)
FROZEN_BLOCK = (7.0, 3.0)
LIVE = (8.0, 4.0)
"""numbers per token that are alive inside a block that keeps nothing"""
LOGITS = {"cpu": 16 * 2**20, "cuda": 64 * 2**20}
"""numbers of one chunk of logits (kernels/head_kl.py), of which three copies are alive"""


def predict(body: Anatomy, segment: Segment, tuned: Sequence[int], work: Work) -> HealMemory:
    """What healing a cut will hold at its peak. `body` may be of the meta device."""
    total, size = len(body), work.weights.itemsize
    blocks = [sum(p.numel() for p in block.parameters()) for block in body.blocks]
    hidden = body.hidden_size
    inner = int(getattr(body.config, "intermediate_size", 0) or 4 * hidden)
    embedding = body.embedding.weight.numel()
    shared = bool(body.config.tie_word_embeddings)
    head = embedding if shared else body.head_module.weight.numel()
    mended = {*tuned, *segment.endpoints(total)}
    order = tail_blocks(segment, total, min(*mended, segment.first))
    casts = work.autocast is not None and work.weights == torch.float32
    light = 2 * sum(blocks[i] for i in order if i not in mended) if casts else 0
    copies = 4 * sum(blocks[i] for i in mended)
    trained = 4 * sum(blocks[i] for i in tuned)
    on_cpu = work.device == "cpu"

    def numbers(per_token: tuple[float, float]) -> float:
        return per_token[0] * hidden + per_token[1] * inner

    whole = size * (sum(blocks) + head + (0 if shared else embedding))
    fit, held = work.fit_tokens * hidden, work.held_tokens * hidden
    states = 2 * size * fit + (size + 4) * held
    gram = 0 if body.family.norm_after_mlp else inner * (inner + hidden)
    at_once = BATCH * work.length
    vocabulary = int(body.embedding.weight.shape[0])
    logits = 3 * 4 * min(LOGITS["cpu" if on_cpu else "cuda"], at_once * vocabulary)
    # One sum and one batch's part in float32 and float64; on a GPU only the part.
    sums = gram * (20 if on_cpu else 4)
    passing = size * at_once * numbers(LIVE)
    parts = 8 * at_once * inner if gram else 0
    collecting = whole + light + copies + states + size * fit + sums + passing + parts + logits
    grafts = work.grafts and GRAFT.refuses(body, segment) is None
    # What the graft keeps of the pass is in host memory, and once more while it is thinned out.
    kept_states = 2 * size * min(TOKENS, work.fit_tokens) * hidden
    collecting += kept_states if grafts and on_cpu else 0

    reach = max(*tuned, segment.last) + 1
    kept = sum(blocks[i] for i in order if not (casts and i not in mended))
    if not on_cpu:
        kept -= sum(blocks[i] for i in mended if i < reach)
    elif not work.spent:
        kept = sum(blocks)
    stays = size * (kept + head + (embedding if on_cpu and not shared else 0)) + light
    grafting = 0.0
    if grafts:
        leaving = 2 * size * segment.count * inner * hidden if on_cpu and work.spent else 0
        union = inner + extra(inner, segment.count * inner)
        rows = 4 * 2 * union * hidden
        # United: what is left of the gap, and a block's neurons; then the Gram sums and a batch.
        at_first = 4 * min(TOKENS, work.fit_tokens) * hidden + 4 * 2 * inner * hidden
        summing = rows + 4 * union * union + 3 * 4 * min(ROWS, work.fit_tokens) * union
        # Chosen: the inverse and one more of its size.
        choosing = rows + 20 * union * union + 3 * 8 * union * hidden
        held_here = kept_states + leaving if on_cpu else 0
        united = held_here + 4 * 2 * inner * hidden + max(at_first, summing)
        most = max(united, choosing) if on_cpu else united
        grafting = stays + copies + states + most + (8 * gram + copies if on_cpu else 0)
    if not work.tunes:
        return HealMemory(round(collecting), 0, round(grafting))
    # Two moments; in host memory, in the last third the mean, and the two states to go back to.
    training = copies + 2 * trained + (trained + 2 * copies if on_cpu else 0)
    # A step's gradients come while what the forward left for them goes; held-back text is run
    # beside the gradients, one block's weights cast at a time.
    half = 2 * max(blocks) if work.autocast is not None or size == 2 else 0
    casting = trained // 2 if half else 0
    frozen = sum(i not in tuned and i > min(tuned) for i in order)
    left = numbers(TRAINED_BLOCK) * len(tuned) + numbers(FROZEN_BLOCK) * frozen
    passed = work.step_tokens * (2.5 if half else 4) * left
    again = copies if on_cpu else 0  # a third state, while it is made
    step = max(casting + passed + logits, trained + max(half + passing + logits, again))
    teachers = 4 * fit + (2 * head if casts else 0)
    refit = 8 * gram if on_cpu else 0
    tuning = stays + training + step + states + teachers + refit
    return HealMemory(round(collecting), round(tuning), round(grafting))
