"""The grafting of the product (clp_edge/heal/graft.py) on a `Ground`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from clp_edge.heal.graft import GRAFT, Union, places, united
from clp_edge.heal.neurons import Neurons, gated_mlp
from tests.heal.ground import RIDGES, Chain, Ground, intermediate


@torch.no_grad()
def union(ground: Ground) -> Union:
    """Block s-1's neurons, refitted, and the most promising of the removed."""
    body, segment = ground.body, ground.segment
    own = segment.first - 1
    states = GRAFT.watch(body, segment)
    head = ground.chain(segment.blocks).until(own)
    with intermediate(body.blocks[own], body.family.down_projection) as inner:
        for part in ground.fit.batches():
            out = ground.run(head, ground.fit, part).flatten(0, 1)
            goal = ground.fit.states[segment.last + 1][part].flatten(0, 1)
            states.add(inner.pop().flatten(0, 1), out, goal)
    mlp = gated_mlp(ground.plain().changed[own], body.family)
    assert mlp is not None
    return united(states, mlp, own)


def width_of(ground: Ground, found: Union) -> int:
    """Of the MLP that is grafted."""
    return int((found.origin == ground.segment.first - 1).sum())


def grafted(ground: Ground, found: Union, chosen: Tensor) -> tuple[Chain, dict[str, Any]]:
    """The chain with these neurons in block s-1, with the lambda of least score."""
    own, width = ground.segment.first - 1, width_of(ground, found)
    stay, slots, taken = places(chosen, width)
    wide = len(chosen) > width
    order = chosen.clone()
    if not wide:
        order[stay], order[slots] = stay, taken
    best: tuple[float, Chain, float] | None = None
    for ridge in RIDGES:
        module: Any = ground.copy_of(ground.plain(), own)
        down = found.solve(order, ridge)
        if wide:
            widen(module, ground.body.family.mlp_norm, found.neurons.pick(order), down)
        else:
            mlp = gated_mlp(module, ground.body.family)
            assert mlp is not None
            mlp.graft(slots, found.neurons.pick(taken), down)
        chain = ground.chain(ground.segment.blocks).put(own, module)
        score = ground.score(chain)
        if best is None or score < best[0]:
            best = (score, chain, ridge)
    assert best is not None
    counts = Counter(found.origin[chosen].tolist())
    return best[1], {"ridge": best[2], "neurons": dict(sorted(counts.items()))}


@torch.no_grad()
def widen(block: Any, norm: str, neurons: Neurons, down: Tensor) -> None:
    """An MLP of other neurons, as many as there are, which no config holds; the norm's gain is in
    their rows."""
    block.get_submodule(norm).weight.fill_(1.0)
    for name, weight in (("gate_proj", neurons.gate), ("up_proj", neurons.up), ("down_proj", down)):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = nn.Parameter(weight.detach().clone().float(), requires_grad=False)
        setattr(block.mlp, name, linear)
