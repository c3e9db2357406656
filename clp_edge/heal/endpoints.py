"""Tuning on KL(dense || cut) of the blocks around the cut, all else frozen.

With `--tune-blocks endpoints` these are the two beside the cut: the cutoff endpoint tuning of CLP
(arXiv 2510.23652). A step starts at the stored input of the tail's first block and ends in the
dense model's distribution, which is made once per sequence from the dense state behind the tuned
blocks: no frozen prefix is run, and no dense logits are kept. After a local rung it goes on at a
smaller rate.
"""

from __future__ import annotations

from torch import Tensor

from clp_edge.heal.collect import Teachers, light_head
from clp_edge.heal.fast_head import fast_kl
from clp_edge.heal.local import LOCAL
from clp_edge.heal.rung import Job, Mended, Rung
from clp_edge.heal.train import train
from clp_edge.kernels.head_kl import head_kl
from clp_edge.progress import Progress

SECOND = 0.2
"""What of the rate is left after the local rung. At half of it held-back KL first rises and the
training is stopped before the rate has fallen (docs/LOG.md)."""


class Endpoints(Rung):
    """Tuning on KL."""

    name = "endpoints"
    noun = "tuning"
    trains = True

    def mend(self, job: Job, progress: Progress) -> Mended:
        """Facts: those of `Trained`."""
        tail, inputs, settings = job.tail, job.fit, job.settings
        head = tail.body.head
        teachers = Teachers(tail, inputs, light_head(tail.body))

        def loss(pick: Tensor) -> Tensor:
            _, arguments = tail.body.prepare(inputs.ids[pick])
            dense = teachers.of(pick)
            final = tail(inputs.entry[pick], arguments).flatten(0, 1)
            if teachers.light is not None:
                return fast_kl(teachers.light, head.scale, dense, final).mean()
            return head_kl(head, dense, final).mean()

        after_local = LOCAL.name in job.kept
        found = train(
            job,
            loss,
            steps=settings.steps,
            rate=settings.rate * (SECOND if after_local else 1.0),
            seed=job.seed + after_local,
            progress=progress,
            noun=self.noun,
        )
        return Mended(found.judged, found.facts)


ENDPOINTS = Endpoints()
