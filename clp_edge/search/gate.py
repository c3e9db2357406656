"""The concave gate, after CLP (arXiv 2510.23652): find the segment by gradient descent on KL.

The paper's formula is not public; this is our formulation. For a window of n blocks that starts at
a real s, block i gets

    m_i = sigmoid((i - s + 1/2)/tau) · sigmoid((s + n - 1/2 - i)/tau),   g_i = 1 - clip(c·m_i, 0, 1)

with c found by bisection so that sum(1 - g_i) = n for every s and tau: without it the gate is paid
to sit at the ends and never closes. s is the only trained number; the model is frozen, so backward
needs the activations' gradients alone. tau anneals geometrically.

A single descent ends in the nearest local minimum (measured: two of three starts end in windows 4
to 10 times worse than the best). So there are several: seeds from a one-pass score and an even
grid, cut by half after each round on their own loss. The end decides: the windows around the
survivors are judged by exact KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clp_edge.kernels.head_kl import head_kl, token_rows
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.search.cost import Cost
from clp_edge.search.gated import ActivationBudget, activation_budget, gated_final_hidden
from clp_edge.search.method import Problem, Proposal, Trace
from clp_edge.search.states import BlockStates
from clp_edge.segment import Segment

OPEN = 1e-3
"""A block whose gate is nearer to 1 than this runs as it is."""

FLOAT16_SCALE = 1024.0
"""What the loss is multiplied by in float16, whose gradients would fall below its smallest number
(6e-8); Adam, with one number to train, does not see it."""


def gate_values(start: Tensor, count: int, blocks: int, temperature: float) -> Tensor:
    """g (blocks,), differentiable in `start`, with sum(1 - g) = count."""
    index = torch.arange(blocks, dtype=start.dtype, device=start.device)
    mass = torch.sigmoid((index - start + 0.5) / temperature) * torch.sigmoid(
        (start + count - 0.5 - index) / temperature
    )
    return 1.0 - torch.clamp(_budget(mass.detach(), count) * mass, 0.0, 1.0)


def _budget(mass: Tensor, count: int) -> Tensor:
    """The factor c with sum(clip(c·m, 0, 1)) = count, by bisection on log c."""
    low = torch.zeros((), dtype=mass.dtype, device=mass.device)
    high = torch.full_like(low, 60.0)
    low = low - 60.0
    for _ in range(80):
        middle = (low + high) / 2
        if torch.clamp(middle.exp() * mass, 0.0, 1.0).sum() < count:
            low = middle
        else:
            high = middle
    return high.exp()


@dataclass(frozen=True)
class GateSettings:
    """How the gate descends; the defaults work on the demo model, others were not compared yet."""

    rounds: int = 3
    """halvings of the starts"""
    steps: int = 4
    """steps of every start in a round"""
    tokens: int = 512
    """tokens of one step"""
    spacing: int = 4
    """blocks between two starts of the even grid"""
    learning_rate: float = 0.4
    """of Adam on s, in blocks"""
    first_temperature: float = 2.0
    last_temperature: float = 0.3
    judged: int = 5
    """windows that the exact judge may see"""
    activation_bytes: int | None = None
    """what a step may keep for backward, the rest is run again; None: half of what is free"""


@dataclass
class Descent:
    """One start: where it has been, and its loss in the last round."""

    origin: float
    start: Tensor
    optimizer: torch.optim.Optimizer
    path: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def recent(self) -> float:
        tail = self.losses[-3:]
        return sum(tail) / len(tail)


def seeds(states: BlockStates, count: int, starts: range, spacing: int) -> list[float]:
    """Where to start: the two windows whose ends are most alike in direction, and an even grid."""
    flat = [hidden.flatten(0, 1).float() for hidden in states.hidden]
    likeness = [
        float(torch.cosine_similarity(flat[s], flat[s + count], dim=-1).mean()) for s in starts
    ]
    order = sorted(range(len(starts)), key=lambda k: -likeness[k])
    chosen = [float(starts[k]) for k in order[:1]]
    chosen += [float(starts[k]) for k in order if abs(starts[k] - chosen[0]) > spacing][:1]
    grid = [float(s) for s in starts][spacing // 2 :: spacing] or [float(starts[0])]
    return chosen + [s for s in grid if all(abs(s - other) >= 1.0 for other in chosen)]


def descend(problem: Problem, settings: GateSettings, *, progress: Progress = silent) -> Trace:
    """Run the gate from several starts, and take those that may be chosen around where they end."""
    body, states, cost = problem.body, problem.states, problem.cost
    count, starts, allowed = problem.count, problem.starts, problem.allowed
    generator = torch.Generator().manual_seed(problem.seed)
    batch = max(1, min(settings.tokens // states.tokens, states.sequences))
    device = states.hidden[0].device
    descents = []
    for origin in seeds(states, count, starts, settings.spacing):
        start = torch.tensor(origin, requires_grad=True, device=device)
        descents.append(
            Descent(origin, start, torch.optim.Adam([start], lr=settings.learning_rate))
        )
    everyone = list(descents)
    work = sum(max(1, len(descents) >> k) for k in range(settings.rounds)) * settings.steps
    done, spent = 0, 0.0
    _, arguments = body.prepare(states.ids[:batch])
    room = activation_budget(body, states.hidden[0][:batch], arguments, settings.activation_bytes)
    span = max(1, settings.rounds * settings.steps - 1)
    share = batch * states.tokens / (states.sequences * states.tokens)
    for turn in range(settings.rounds):
        picks = [
            torch.randperm(states.sequences, generator=generator)[:batch]
            for _ in range(settings.steps)
        ]
        for descent in descents:
            for step, pick in enumerate(picks):
                at = (turn * settings.steps + step) / span
                temperature = (
                    settings.first_temperature
                    * (settings.last_temperature / settings.first_temperature) ** at
                )
                spent += share * _step(
                    body, states, descent, count, starts, temperature, pick, cost, room
                )
                done += 1
                progress(
                    min(done, work), work, f"gate from {descent.origin:g}, tau {temperature:.1f}"
                )
        descents.sort(key=lambda descent: descent.recent)
        if turn < settings.rounds - 1:
            descents = descents[: max(2, len(descents) // 2)]
    own = _nearest(descents[0], count, starts, allowed)
    return Trace(
        choice=own,
        candidates=_around(
            descents, own, everyone[0].origin, count, starts, allowed, settings.judged
        ),
        paths=tuple(tuple(descent.path) for descent in everyone),
        losses=tuple(tuple(descent.losses) for descent in everyone),
        forward_equivalents=spent,
    )


def _step(
    body: Anatomy,
    states: BlockStates,
    descent: Descent,
    count: int,
    starts: range,
    temperature: float,
    pick: Tensor,
    cost: Cost,
    room: ActivationBudget,
) -> float:
    """One step of one start; returns its forward equivalents per token of the step."""
    total = len(body)
    gates = gate_values(descent.start, count, total, temperature)
    closing = (1.0 - gates.detach() > OPEN).nonzero()
    first = int(closing[0])
    _, arguments = body.prepare(states.ids[pick])
    hidden = states.hidden[first][pick]
    recompute = room.recompute(total - first)
    # The gates stay float32: in bfloat16 a gate just below 1 has no value but 1.
    final = gated_final_hidden(body, hidden, gates, arguments, first=first, recompute=recompute)
    dense = states.dense.select(token_rows(pick, states.tokens).to(hidden.device))
    loss = head_kl(body.head, dense, final.flatten(0, 1)).mean()
    descent.optimizer.zero_grad()
    (loss * FLOAT16_SCALE if hidden.dtype == torch.float16 else loss).backward()
    descent.optimizer.step()
    with torch.no_grad():
        descent.start.clamp_(float(starts[0]), float(starts[-1]))
    descent.path.append(float(descent.start.detach()))
    descent.losses.append(float(loss.detach()))
    return 2.0 * cost.tail(first) + recompute * cost.block / cost.forward


def _nearest(
    descent: Descent, count: int, starts: range, allowed: Callable[[Segment], bool]
) -> Segment:
    at = float(descent.start.detach())
    possible = [Segment.from_start(s, count) for s in starts]
    return min((p for p in possible if allowed(p)), key=lambda segment: abs(segment.first - at))


def _around(
    descents: Sequence[Descent],
    own: Segment,
    best_seed: float,
    count: int,
    starts: range,
    allowed: Callable[[Segment], bool],
    limit: int,
) -> tuple[Segment, ...]:
    """The gate's choice, the best seed, a rival, the neighbours, then the other survivors."""
    middles = [_nearest(descent, count, starts, allowed).first for descent in descents]
    wanted = [own.first, round(best_seed), *middles[1:2], own.first + 1, own.first - 1]
    wanted += [middle + offset for middle in middles[1:] for offset in (0, 1, -1)]
    possible = [Segment.from_start(s, count) for s in wanted if s in starts]
    return tuple(dict.fromkeys(segment for segment in possible if allowed(segment)))[:limit]


class Gate:
    """The concave gate as a method."""

    def __init__(self, settings: GateSettings | None = None) -> None:
        self.settings = settings or GateSettings()

    def predict(self, problem: Problem) -> float:
        """The dense pass, the steps over a third of the model on average, and the judge."""
        settings, cost, states = self.settings, problem.cost, problem.states
        runs = len(problem.starts) // settings.spacing + 2
        steps = settings.steps * sum(max(2, runs >> k) for k in range(settings.rounds))
        share = max(states.tokens, settings.tokens) / (states.sequences * states.tokens)
        return (
            1.0
            + steps * share * 2.0 * cost.tail(cost.blocks // 3)
            + settings.judged * cost.tail(cost.blocks // 2)
        )

    def propose(self, problem: Problem, progress: Progress) -> Proposal:
        """The windows around where the descents end."""
        trace = descend(problem, self.settings, progress=progress)
        return Proposal(trace.candidates, trace.forward_equivalents, trace)


GATE = Gate()
