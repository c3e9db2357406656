"""The local rung: the blocks around the cut learn what the dense model's state is a little later.

From the stored input of the first of them, the tuned blocks run up to the block behind the last
one (s+n+3 by default), and train on

    mean over tokens of ||h' - h||² / ||h||²,

h the dense model's state there. Neither the rest of the tail nor the head is run, so a step costs a
third of one on KL, and its gradient reaches every position and dimension; what it optimises is not
what is wanted, though, so held-back KL decides when it stops and whether it stays (docs/LOG.md).
"""

from __future__ import annotations

from torch import Tensor

from clp_edge.heal.rung import Job, Mended, Rung
from clp_edge.heal.tail import Tail
from clp_edge.heal.train import train
from clp_edge.progress import Progress


class Local(Rung):
    """Training on the relative error of the state behind the tuned blocks."""

    name = "local"
    noun = "local tuning"
    trains = True

    def reach(self, tail: Tail) -> int:
        return max(*tail.tuned, tail.segment.last) + 1

    def passes(self, tail: Tail) -> str | None:
        if set(tail.tuned) <= set(tail.segment.endpoints(len(tail.body))):
            return "only the endpoints are tuned, and they are on KL (--tune-blocks endpoints)"
        return None

    def mend(self, job: Job, progress: Progress) -> Mended:
        """Facts: those of `Trained`."""
        tail, inputs, settings = job.tail, job.fit, job.settings
        reach = self.reach(tail)
        goal = inputs.goal
        if goal is None or inputs.reach != reach:
            raise ValueError(f"the goal is what block {inputs.reach} reads, not {reach}")

        def loss(pick: Tensor) -> Tensor:
            _, arguments = tail.body.prepare(inputs.ids[pick])
            hidden = tail.until(reach, inputs.entry[pick], arguments)
            return relative_error(hidden, goal[pick])

        steps = 3 * settings.steps if settings.local_steps is None else settings.local_steps
        found = train(
            job,
            loss,
            steps=steps,
            rate=settings.rate,
            seed=job.seed,
            progress=progress,
            noun=self.noun,
        )
        return Mended(found.judged, found.facts)


LOCAL = Local()


def relative_error(hidden: Tensor, goal: Tensor) -> Tensor:
    """Mean over tokens of ||h' - h||² / ||h||², in float32: (..., hidden) both."""
    goal = goal.float()
    gap = (hidden.float() - goal).square().sum(-1)
    return (gap / goal.square().sum(-1).clamp_min(1e-30)).mean()
