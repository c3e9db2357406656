"""Neuron grafting: the block before the cut takes the best neurons of its own and of the removed.

The refit may only mix what block s-1's MLP computes anyway. At the same width it can compute other
things: neurons of the removed blocks, which now read what this MLP reads, a, through the norm of
the block they come from (heal/neurons.py). With x_j(a) the neurons of a union and y = h_{s+n} - a
what the MLP should now add, a choice S of them is as good as

    min over T   sum_t w_t ||y_t - r·T x_S,t||² + lambda ||T - P||²,   w_t = 1 / ||h_{s+n,t}||²,

P the columns of down as the refit left them, and zero for the others. The union is the own neurons
and those of the removed that would win most beside them, each alone. It is thinned out as in
optimal brain surgeon (Hassibi and Stork, 1992): with G = r²·A + lambda I the loss of neuron j costs
||T_j||² / (G^-1)_jj; the cheapest go, a fifth of the excess at a time, and T and G^-1 are brought
up to date by a block of the inverse. Shapes and names stay, so every format holds the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clp_edge.heal.neurons import GatedMlp, Neurons, gated_mlp
from clp_edge.heal.ranks import Ranks
from clp_edge.heal.ridge import choose_ridge
from clp_edge.heal.rung import Job, Mended, Rung
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress
from clp_edge.segment import Segment

TOKENS = 65_536
"""At most so many are kept of the dense pass, spread over it: twice their hidden states."""
EXTRA = 2.0
"""The removed blocks' neurons in the union, as a share of the width."""
EXTRA_AT_MOST = 4096
"""The same as a number: the union's Gram is inverted."""
RIDGE = 0.003
"""lambda of the choice, relative to the mean diagonal; the last solve looks for its own."""
ROWS = 2048
"""tokens at once"""
HOST = torch.device("cpu")


@dataclass
class GraftStates:
    """What grafting keeps of the dense pass, and the neurons that leave with their blocks."""

    body: Anatomy
    down: nn.Module
    """block s-1's"""
    removed: dict[int, GatedMlp]
    tokens: int = 0
    stride: int = 1
    """every so manieth token is kept"""
    _skip: int = 0
    _reads: list[Tensor] = field(default_factory=list, repr=False)
    _goals: list[Tensor] = field(default_factory=list, repr=False)

    def add(self, inner: Tensor, at_cut: Tensor, target: Tensor) -> None:
        """One batch, flat: m (tokens, intermediate), h_s and h_{s+n} (tokens, hidden)."""
        rows = slice(self._skip, None, self.stride)
        self._skip = (self._skip - len(at_cut)) % self.stride
        with self.body.precision():
            added = self.body.residual_multiplier * self.down(inner[rows])
        self._reads.append((at_cut[rows] - added).to(at_cut.dtype).to(HOST))
        self._goals.append(target[rows].to(HOST))
        self.tokens += len(self._reads[-1])
        if self.tokens > TOKENS:
            self._thin_out()

    def _thin_out(self) -> None:
        while self.tokens > TOKENS:
            self._reads = [torch.cat(self._reads)[::2].clone()]
            self._goals = [torch.cat(self._goals)[::2].clone()]
            self.tokens, self.stride = len(self._reads[0]), 2 * self.stride

    def add_up(self, ranks: Ranks) -> None:
        """Hold what all processes have kept, in the text's order."""
        counts = [int(n) for n in ranks.whole(torch.tensor([self.tokens])).tolist()]
        self._reads = [ranks.rows(torch.cat(self._reads), counts)]
        self._goals = [ranks.rows(torch.cat(self._goals), counts)]
        self.tokens = sum(counts)
        self._thin_out()

    def parts(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of a, h_{s+n} (tokens, hidden) and the roots of w (tokens, 1), float32."""
        for reads, goals in zip(self._reads, self._goals, strict=True):
            for some, wanted in zip(reads.split(ROWS), goals.split(ROWS), strict=True):
                goal = wanted.to(device).float()
                root = goal.square().sum(-1, keepdim=True).clamp_min(1e-30).rsqrt()
                yield some.to(device).float(), goal, root

    def release(self) -> None:
        """Let go of states and neurons."""
        self._reads, self._goals, self.removed = [], [], {}


@dataclass
class Union:
    """The neurons that may stand in block s-1, its own first, and their normal equations."""

    neurons: Neurons
    origin: Tensor
    """(neurons,) block ids"""
    gram: Tensor
    """r²·A: (neurons, neurons) float32, as it was summed, in host memory; solved in float64"""
    cross: Tensor
    """r·sum w y xᵀ: (hidden, neurons) float64"""
    prior: Tensor
    """P: (hidden, neurons) float64"""

    def _ridged(self, index: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """The Cholesky factor of G for these neurons, and lambda, relative to the mean diagonal."""
        gram = self.gram[index[:, None], index].double()
        size = ridge * gram.diagonal().mean()
        gram.diagonal().add_(size)
        return torch.linalg.cholesky(gram), size

    def solve(self, chosen: Tensor, ridge: float) -> Tensor:
        """T (hidden, chosen)."""
        factor, size = self._ridged(chosen, ridge)
        right = (self.cross + size * self.prior)[:, chosen]
        return torch.cholesky_solve(right.T, factor).T

    def choose(self, width: int, ridge: float = RIDGE) -> Tensor:
        """The `width` neurons that are left when the cheapest have gone: sorted indices."""
        left = torch.arange(len(self.gram))
        factor, size = self._ridged(left, ridge)
        inverse = torch.cholesky_inverse(factor)
        del factor  # each of these is 2.7 GB for an 8B model
        weights = (self.cross + size * self.prior) @ inverse
        while len(left) > width:
            excess = len(left) - width
            count = excess if excess < 16 else excess // 5
            cost = weights.square().sum(0) / inverse.diagonal()
            order = cost.argsort(stable=True)
            gone, stay = order[:count], order[count:].sort().values
            # [G^-1 without D] = H_SS - H_SD H_DD^-1 H_DS, and T follows.
            across = inverse[gone[:, None], stay]
            corner = torch.linalg.cholesky(inverse[gone[:, None], gone])
            solved = torch.cholesky_solve(across, corner)
            weights = weights[:, stay] - weights[:, gone] @ solved
            inverse = inverse[stay[:, None], stay]
            inverse.addmm_(across.T, solved, alpha=-1.0)
            left = left[stay]
        return left


class Graft(Rung):
    """The neurons of block s-1, chosen anew."""

    name = "graft"
    noun = "graft"

    def refuses(self, body: Anatomy, segment: Segment) -> str | None:
        if segment.first == 0:
            return "the cut begins at block 0, and there is no block before it"
        if body.family.norm_after_mlp:
            return "a norm stands between the MLP and the residual stream in this family"
        if gated_mlp(body.blocks[segment.first - 1], body.family) is None:
            return "the MLP of this family is not known as a gated one behind a plain RMS norm"
        return None

    def watch(self, body: Anatomy, segment: Segment) -> GraftStates:
        removed = {}
        for index in segment.blocks:
            mlp = gated_mlp(body.blocks[index], body.family)
            assert mlp is not None
            removed[index] = mlp.held_by(HOST)
        down = body.submodule(segment.first - 1, body.family.down_projection)
        return GraftStates(body, down, removed)

    @torch.no_grad()
    def mend(self, job: Job, progress: Progress) -> Mended:
        """Facts: neurons by block that they come from, and ridge and by_ridge as the refit has
        them; where no neuron of the removed blocks is wanted, KL stays what it is."""
        states = job.watchers[self.name]
        assert isinstance(states, GraftStates)
        tail = job.tail
        mlp = gated_mlp(tail.trained[tail.segment.first - 1], tail.body.family)
        assert mlp is not None
        progress(0, 2, "graft: neurons of the removed blocks")
        union = united(states, mlp, tail.segment.first - 1)
        states.release()
        progress(1, 2, "graft: the choice")
        if not bool(torch.isfinite(union.gram).all() and torch.isfinite(union.cross).all()):
            return Mended(None)
        chosen = union.choose(mlp.width)
        job.ranks.level([chosen])  # a sum in another order may turn a choice
        counts = Counter(union.origin[chosen].tolist())
        facts = {"neurons": {str(block): counts[block] for block in sorted(counts)}}
        own, slots, taken = places(chosen, mlp.width)
        if len(taken) == 0:
            return Mended(job.judged, facts)
        order = torch.empty(mlp.width, dtype=torch.long)
        order[own], order[slots] = own, taken
        mlp.graft(
            slots.to(mlp.gate.device),
            union.neurons.pick(taken.to(union.neurons.gate.device)),
            union.prior[:, order].to(mlp.down),
        )
        found = choose_ridge(
            job,
            mlp.down,
            lambda ridge: union.solve(order, ridge).to(mlp.down),
            noun=self.noun,
            progress=progress,
        )
        return Mended(found.judged, {**facts, **found.facts})


GRAFT = Graft()


def places(chosen: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The own neurons that stay where they are, the places of those that go, and who comes."""
    own = chosen[chosen < width]
    free = torch.ones(width, dtype=torch.bool)
    free[own] = False
    return own, free.nonzero().flatten(), chosen[chosen >= width]


def extra(width: int, there: int) -> int:
    """How many of the removed blocks' neurons come into the union."""
    return min(int(EXTRA * width), EXTRA_AT_MOST, there)


def united(states: GraftStates, mlp: GatedMlp, block: int) -> Union:
    """The own neurons of `block` and the most promising of the removed ones."""
    device = mlp.down.device
    dtype = states.body.autocast or states.body.head_module.weight.dtype
    r = states.body.residual_multiplier
    own = mlp.neurons()
    mine = mlp.down.float()
    offset = 0.0 if mlp.down_bias is None else r * mlp.down_bias.float()
    # What the own neurons leave, first; then, block by block, what each other would win of it.
    rests = [
        root * (goal - a - offset - r * (own(mlp.normed(a), dtype) @ mine.T))
        for a, goal, root in states.parts(device)
    ]
    wins = []
    for removed in states.removed.values():
        there = removed.held_by(device).neurons()
        power = torch.zeros(len(there), device=device)
        pull = torch.zeros(len(mine), len(there), device=device)
        for (a, _, root), rest in zip(states.parts(device), rests, strict=True):
            x = root * there(mlp.normed(a), dtype)
            power += x.square().sum(0)
            pull.addmm_(rest.T, x)
        wins.append((pull.square().sum(0) / power.clamp_min(1e-30)).to(HOST))
        del there
    del rests
    win = torch.cat(wins)
    best = torch.zeros(len(win), dtype=torch.bool)
    best[win.topk(extra(mlp.width, len(win))).indices] = True
    # Block by block again: all of their rows in float32 would be as large as the blocks.
    parts, origin = [own], [torch.full((mlp.width,), block)]
    wanted = best.split([len(one) for one in wins])
    for (index, removed), some in zip(states.removed.items(), wanted, strict=True):
        parts.append(removed.neurons().pick(some.nonzero().flatten()).to(device))
        origin.append(torch.full((len(parts[-1]),), index))
    union = Neurons.cat(parts)
    del parts
    gram = torch.zeros(len(union), len(union), device=device)
    cross = torch.zeros(len(mine), len(union), device=device)
    for a, goal, root in states.parts(device):
        x = root * union(mlp.normed(a), dtype)
        gram.addmm_(x.T, x, alpha=r * r)
        cross.addmm_((root * (goal - a - offset)).T, x, alpha=r)
    prior = torch.zeros_like(cross)
    prior[:, : mlp.width] = mine
    sums = gram.to(HOST), cross.to(HOST).double(), prior.to(HOST).double()
    return Union(union, torch.cat(origin), *sums)
