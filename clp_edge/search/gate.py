"""The concave gate, after CLP (arXiv 2510.23652): find the segment by gradient descent on KL.

The paper's formula is not public; this is our formulation. For a window of n blocks that starts at
a real s, block i gets

    m_i = sigmoid((i - s + 1/2)/tau) · sigmoid((s + n - 1/2 - i)/tau),   g_i = 1 - clip(c·m_i, 0, 1)

with c found by bisection so that sum(1 - g_i) = n for every s and tau: without it the gate is paid
to sit at the ends and never closes. s is the only trained number; the model is frozen, so backward
needs the activations' gradients alone. tau anneals geometrically.

A single descent ends in the nearest local minimum (measured: two of three starts end in windows 4
to 10 times worse than the best), and a slope leads over two or three blocks, not over ten. So there
are many short descents: an even grid of starts and the windows that a one-pass score likes. The
soft gate moves a start; what decides between starts is the gate in its hard form, g exactly 0 or 1,
on the same few sequences for all (common random numbers), so the worse half leaves after each
round, and a clear leader ends the search early. The exact judge sees the last few windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from clp_edge.kernels.head_kl import head_kl, token_rows
from clp_edge.progress import Progress, silent
from clp_edge.search.cost import Size
from clp_edge.search.gated import ActivationBudget, activation_budget, gated_final_hidden
from clp_edge.search.judge import paired
from clp_edge.search.method import Problem, Proposal, Trace
from clp_edge.search.states import BlockStates
from clp_edge.segment import Segment

OPEN = 1e-3
"""A block whose gate is nearer to 1 than this runs as it is."""

SURE, SURE_FROM = 4.0, 4
"""A leader so many paired standard errors ahead, on so many sequences, ends the descents."""

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
    """How the gate descends; docs/LOG.md has what else was tried on the demo model."""

    spacing: int = 2
    """blocks between two starts of the even grid"""
    steps: tuple[int, ...] = (0, 2, 3)
    """steps of every start in each round, before the worse half leaves"""
    tokens: int = 256
    """tokens of one step, the same ones for all starts; at least one sequence"""
    learning_rate: float = 0.5
    """of Adam on s, in blocks"""
    first_temperature: float = 1.5
    last_temperature: float = 0.3
    judged: int = 5
    """windows that the exact judge may see"""
    activation_bytes: int | None = None
    """what a step may keep for backward, the rest is run again; None: half of what is free"""


@dataclass
class Descent:
    """One start: where it has been, and the gate's loss there."""

    origin: float
    start: Tensor
    optimizer: torch.optim.Optimizer
    path: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def at(self) -> float:
        return float(self.start.detach())


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
    """Run the gate from many starts, and name the windows that look best where they end."""
    states = problem.states
    batch = max(1, min(settings.tokens // states.tokens, states.sequences))
    everyone = []
    for origin in seeds(states, problem.count, problem.starts, settings.spacing):
        start = torch.tensor(origin, requires_grad=True, device=states.device)
        everyone.append(
            Descent(origin, start, torch.optim.Adam([start], lr=settings.learning_rate))
        )
    descents = list(everyone)
    _, arguments = problem.body.prepare(states.ids[:batch])
    room = activation_budget(
        problem.body, states.at(0, slice(0, batch)), arguments, settings.activation_bytes
    )
    total = sum(settings.steps)
    share = batch / states.sequences
    done, spent = 0, 0.0
    for turn, steps in enumerate(settings.steps):
        for descent in descents:
            for step in range(done, done + steps):
                at = step / max(1, total - 1)
                temperature = (
                    settings.first_temperature
                    * (settings.last_temperature / settings.first_temperature) ** at
                )
                # the same text for all starts, other text at every step
                pick = (torch.arange(batch) + step * batch) % states.sequences
                spent += share * _step(problem, descent, temperature, pick, room)
                note = f"gate from {descent.origin:g}, tau {temperature:.1f}"
                progress(step + 1, total, note)
        done += steps
        last = turn == len(settings.steps) - 1
        looked = min(states.sequences, 1 << turn)
        descents, clear = _better_half(problem, descents, looked, all_of_them=last)
        if clear:
            break
    own = _nearest(problem, descents[0].at)
    return Trace(
        choice=own,
        candidates=_candidates(problem, descents, own, looked, settings.judged),
        paths=tuple(tuple(descent.path) for descent in everyone),
        losses=tuple(tuple(descent.losses) for descent in everyone),
        forward_equivalents=spent,
    )


def _better_half(
    problem: Problem, descents: list[Descent], looked: int, *, all_of_them: bool
) -> tuple[list[Descent], bool]:
    """The descents by the exact KL of the windows they stand at, on the first `looked` sequences.

    Returns: the better half (or all), best first; and whether the leader's window is clear of all
    others by SURE paired standard errors.
    """
    windows = [_nearest(problem, descent.at) for descent in descents]
    distinct = list(dict.fromkeys(windows))
    kl = problem.judge.look(distinct, looked)
    mean = dict(zip(distinct, kl.mean(axis=1), strict=True))
    ranked = [descents[k] for k in sorted(range(len(windows)), key=lambda k: mean[windows[k]])]
    if not all_of_them:
        ranked = ranked[: max(2, math.ceil(len(ranked) / 2))]
    leader, gaps, errors = paired(kl)
    others = np.arange(len(distinct)) != leader
    clear = looked >= SURE_FROM and bool((gaps > SURE * errors)[others].all())
    return ranked, clear


def _step(
    problem: Problem, descent: Descent, temperature: float, pick: Tensor, room: ActivationBudget
) -> float:
    """One step of one start; returns its forward equivalents per token of the step."""
    body, states, cost = problem.body, problem.states, problem.cost
    total = len(body)
    gates = gate_values(descent.start, problem.count, total, temperature)
    closing = (1.0 - gates.detach() > OPEN).nonzero()
    first = int(closing[0])
    _, arguments = body.prepare(states.ids[pick])
    hidden = states.at(first, pick)
    recompute = room.recompute(total - first)
    # The gates stay float32: in bfloat16 a gate just below 1 has no value but 1.
    final = gated_final_hidden(body, hidden, gates, arguments, first=first, recompute=recompute)
    dense = states.dense.select(token_rows(pick, states.tokens).to(hidden.device))
    loss = head_kl(body.head, dense, final.flatten(0, 1)).mean()
    descent.optimizer.zero_grad()
    (loss * FLOAT16_SCALE if hidden.dtype == torch.float16 else loss).backward()
    descent.optimizer.step()
    with torch.no_grad():
        descent.start.clamp_(float(problem.starts[0]), float(problem.starts[-1]))
    descent.path.append(descent.at)
    descent.losses.append(float(loss.detach()))
    return 2.0 * cost.tail(first) + recompute * cost.block / cost.forward


def _nearest(problem: Problem, start: float) -> Segment:
    """The window that may go whose start is nearest."""
    return min(problem.windows(), key=lambda segment: abs(segment.first - start))


def _candidates(
    problem: Problem, descents: Sequence[Descent], own: Segment, looked: int, limit: int
) -> tuple[Segment, ...]:
    """The gate's choice, then the best windows beside the survivors' ends, by a hard look."""
    possible = set(problem.windows())
    around = [
        Segment.from_start(_nearest(problem, descent.at).first + offset, problem.count)
        for offset in (0, 1, -1)
        for descent in descents
    ]
    others = [one for one in dict.fromkeys(around) if one in possible and one != own]
    if not others:
        return (own,)
    kl = problem.judge.look(others, looked).mean(axis=1)
    return (own, *(others[k] for k in np.argsort(kl, kind="stable")[: limit - 1]))


class Gate:
    """The concave gate as a method."""

    def __init__(self, settings: GateSettings | None = None) -> None:
        self.settings = settings or GateSettings()

    def predict(self, size: Size) -> float:
        """The dense pass, the steps over the later half of the model, the looks and the judge."""
        settings, cost, sequences = self.settings, size.cost, size.sequences
        runs = len(size.starts) // settings.spacing + 1
        batch = max(1, min(settings.tokens // size.tokens, sequences))
        tail = cost.tail(cost.blocks // 2)
        total, seen = 1.0 + cost.head / cost.forward, 0
        for turn, steps in enumerate(settings.steps):
            looked = min(sequences, 1 << turn)
            total += runs * steps * 2.0 * tail * batch / sequences
            total += runs * (looked - seen) / sequences * tail
            runs, seen = max(2, math.ceil(runs / 2)), looked
        return total + min(settings.judged, len(size.starts)) * tail

    def propose(self, problem: Problem, progress: Progress) -> Proposal:
        """The windows around where the descents end."""
        trace = descend(problem, self.settings, progress=progress)
        return Proposal(trace.candidates, trace.forward_equivalents, trace)


GATE = Gate()
