"""Neuron grafting: block s-1's MLP takes the best neurons of its own and of the removed blocks'.

A neuron is a row of gate and up and a column of down. Grafted neurons read what block s-1's MLP
reads, a, through the norm of the block they come from (its gain goes into their rows). With x_j(a)
the neurons of the union and y = h_{s+n} - a what the MLP should now add, the error of a choice S is

    min over T   sum w ||y - T x_S||² + lambda ||T - P||²,     w = 1 / ||h_{s+n}||²,

P the own columns of down, zero for grafted ones. The choice is made backward, as in optimal brain
surgeon (Hassibi and Stork, 1992): from the union, drop those whose loss costs least,
||T_j||² / (G^-1)_jj with G = A + lambda I, a fifth of the excess at a time, solve again. Before
that the union is brought to size by what each neuron would win beside the plain refit, alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.heal.ground import RIDGES, Chain, Ground, intermediate

NORM = "post_attention_layernorm"
"""of the Llama kind: what the MLP reads through"""
RIDGE = 0.01
"""of the choice; the last solve goes through RIDGES"""


@dataclass(frozen=True)
class Neurons:
    """Rows of gate and up, norm gains within, of several blocks."""

    gate: Tensor
    """(neurons, hidden)"""
    up: Tensor
    origin: Tensor
    """(neurons,) the block that each comes from"""
    eps: float
    act: Any

    def __len__(self) -> int:
        return len(self.origin)

    def pick(self, index: Tensor) -> Neurons:
        """These neurons."""
        return Neurons(self.gate[index], self.up[index], self.origin[index], self.eps, self.act)

    def __call__(self, a: Tensor) -> Tensor:
        """x: (tokens, neurons) of a (tokens, hidden)."""
        z = a * (a.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        low = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        z = z.to(low)
        return (self.act(z @ self.gate.to(low).T) * (z @ self.up.to(low).T)).float()


def neurons_of(blocks: Sequence[Any], ids: Sequence[int]) -> Neurons:
    """All neurons of these blocks."""
    gates, ups, origin = [], [], []
    for index in ids:
        block = blocks[index]
        gain = block.get_submodule(NORM).weight
        gates.append(block.mlp.gate_proj.weight * gain)
        ups.append(block.mlp.up_proj.weight * gain)
        origin += [index] * len(gates[-1])
    first = blocks[ids[0]]
    return Neurons(
        torch.cat(gates).float(),
        torch.cat(ups).float(),
        torch.tensor(origin),
        float(first.get_submodule(NORM).variance_epsilon),
        first.mlp.act_fn,
    )


def folded(block: Any, neurons: Neurons, down: Tensor) -> nn.Module:
    """A copy of a block with an MLP of these neurons; its norm has gain one (the rows hold it)."""
    made: Any = copy.deepcopy(block).float()
    with torch.no_grad():
        made.get_submodule(NORM).weight.fill_(1.0)
    for name, weight in (("gate_proj", neurons.gate), ("up_proj", neurons.up), ("down_proj", down)):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = nn.Parameter(weight.detach().clone().float(), requires_grad=False)
        setattr(made.mlp, name, linear)
    return made


@dataclass
class Union:
    """The weighted normal equations of the neurons that may be taken."""

    neurons: Neurons
    gram: Tensor
    """(neurons, neurons) float64"""
    cross: Tensor
    """(hidden, neurons) float64"""
    prior: Tensor
    """P (hidden, neurons) float64"""

    def solve(self, chosen: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """T (hidden, chosen), and the diagonal of G^-1."""
        gram = self.gram[chosen][:, chosen].clone()
        size = ridge * gram.diagonal().mean()
        gram.diagonal().add_(size)
        factor = torch.linalg.cholesky(gram)
        right = (self.cross + size * self.prior)[:, chosen]
        return torch.cholesky_solve(right.T, factor).T, torch.cholesky_inverse(factor).diagonal()

    def backward(self, width: int) -> Tensor:
        """The indices that are left when the cheapest have gone, `width` of them."""
        chosen = torch.arange(len(self.neurons))
        while len(chosen) > width:
            weights, inverse = self.solve(chosen, RIDGE)
            cost = weights.square().sum(0) / inverse
            excess = len(chosen) - width
            drop = excess if excess < width // 20 else excess // 5 + 1
            keep = cost.argsort(descending=True)[: len(chosen) - drop]
            chosen = chosen[keep.sort().values]
        return chosen


def _streams(ground: Ground) -> Any:
    """Batches of a, h_{s+n}, and sqrt(w): flat over tokens."""
    segment = ground.segment
    at = ground.body.blocks[segment.first - 1]
    head = ground.chain(segment.blocks).until(segment.first - 1)
    with intermediate(at, NORM) as seen:
        for part in ground.fit.batches():
            ground.run(head, ground.fit, part)
            goal = ground.fit.states[segment.last + 1][part].flatten(0, 1).float()
            root = goal.square().sum(-1, keepdim=True).clamp_min(1e-30).rsqrt()
            yield seen.pop().flatten(0, 1).float(), goal, root


@torch.no_grad()
def union(ground: Ground, factor: float = 2.0) -> Union:
    """Block s-1's neurons and the most promising of the removed, `factor` times its width."""
    body, segment = ground.body, ground.segment
    own = segment.first - 1
    everyone = neurons_of(body.blocks, [own, *segment.blocks])
    width = int((everyone.origin == own).sum())
    others = everyone.pick(torch.arange(width, len(everyone)))
    plain: Any = ground.plain().changed[own]
    power = torch.zeros(len(others), dtype=torch.float64)
    pull = torch.zeros(body.hidden_size, len(others), dtype=torch.float64)
    for a, goal, root in _streams(ground):
        with body.precision():
            rest = root * (goal - a - plain.mlp(plain.get_submodule(NORM)(a)).float())
            x = root * others(a)
        power += x.square().sum(0).double()
        pull += (rest.T @ x).double()
    win = pull.square().sum(0) / power.clamp_min(1e-30)
    best = win.argsort(descending=True)[: int(factor * width)].sort().values
    chosen = everyone.pick(torch.cat([torch.arange(width), width + best]))
    gram = torch.zeros(len(chosen), len(chosen))
    cross = torch.zeros(body.hidden_size, len(chosen))
    for a, goal, root in _streams(ground):
        with body.precision():
            x = root * chosen(a)
        gram.addmm_(x.T, x)
        cross.addmm_((root * (goal - a)).T, x)
    prior = torch.zeros_like(cross)
    prior[:, :width] = body.blocks[own].mlp.down_proj.weight
    return Union(chosen, gram.double(), cross.double(), prior.double())


def grafted(ground: Ground, found: Union, chosen: Tensor) -> tuple[Chain, dict[str, Any]]:
    """The chain with these neurons in block s-1, and the lambda of least score."""
    own = ground.segment.first - 1
    block = ground.body.blocks[own]
    best: tuple[float, Chain, float] | None = None
    for ridge in RIDGES:
        down, _ = found.solve(chosen, ridge)
        module = folded(block, found.neurons.pick(chosen), down)
        chain = ground.chain(ground.segment.blocks).put(own, module)
        kl = ground.score(chain)
        if best is None or kl < best[0]:
            best = (kl, chain, ridge)
    assert best is not None
    counts = Counter(found.neurons.origin[chosen].tolist())
    return best[1], {"ridge": best[2], "neurons": dict(sorted(counts.items()))}
