"""Healing in several processes: the first runs the verb, the others only heal along.

The first process alone has an output folder, reads the text, speaks and writes. When it comes to
healing it tells the others what there is to heal, model and text included, and all of them climb
the same ladder (heal/ranks.py). So nothing but healing has to be the same in every process.

>>> task = Task(source, "cpu", torch.float32, segment, fit, select)            # doctest: +SKIP
>>> ranks.told(task)                                                          # doctest: +SKIP
>>> task.heal(body, ranks)                                                    # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clp_edge.heal import HealResult, TuningSettings, heal
from clp_edge.heal.ranks import Ranks
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.source import Source, load_model
from clp_edge.progress import Progress, silent
from clp_edge.segment import Segment


@dataclass(frozen=True)
class Task:
    """What is to be healed, as every process needs to know it. The model is read by each."""

    source: Source
    device: str
    compute: torch.dtype
    segment: Segment
    fit: Tensor
    """(sequences, tokens) int64 in host memory; trained on"""
    select: Tensor
    """held back to choose by"""
    autocast: torch.dtype | None = None
    rungs: str = "endpoints"
    tune_blocks: str = "near"
    tuning: TuningSettings = field(default_factory=TuningSettings)
    seed: int = 0
    threads: int = 1

    def heal(self, body: Anatomy, ranks: Ranks, progress: Progress = silent) -> HealResult:
        """Mend the cut of this model together; it is spent then, see `clp_edge.heal.heal`."""
        return heal(
            body,
            self.segment,
            self.fit.to(self.device),
            self.select.to(self.device),
            rungs=self.rungs,
            tune_blocks=self.tune_blocks,
            tuning=self.tuning,
            seed=self.seed,
            spent=True,
            ranks=ranks,
            progress=progress,
        )

    def load(self) -> Anatomy:
        """The dense model as it is healed."""
        model = load_model(self.source, dtype=self.compute, device=self.device)
        return dataclasses.replace(dissect(model), autocast=self.autocast)


def heal_along(ranks: Ranks) -> int:
    """What every process but the first does: heal what it is told until it is told None.

    Returns how many tasks there were. Raises ClpEdgeError as healing does, and RankLostError where
    the first process ends without a word.
    """
    count = 0
    while True:
        task = ranks.told()
        if task is None:
            return count
        torch.set_num_threads(task.threads)
        task.heal(task.load(), ranks)
        count += 1
