"""How the tail does on held-back text, sequence by sequence, so that differences are paired.

Perplexity costs no pass of its own: with the head shared, KL and what is kept of the dense model
leave the candidate's log-sum-exp (kernels/head_kl.py).

>>> before = Judged(torch.tensor([0.9, 0.7]), torch.tensor([3.5, 3.3]), torch.tensor([3.0, 3.0]))
>>> round(before.kl, 3), round(before.ratio[0], 3)
(0.8, 1.492)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clp_edge.heal.collect import TailInputs, Teachers, next_tokens, sequence_nll
from clp_edge.heal.ranks import SINGLE, Ranks
from clp_edge.heal.tail import Tail
from clp_edge.kernels.head_kl import head_kl, head_nll
from clp_edge.metrics import mean_and_standard_error


@dataclass(frozen=True)
class Judged:
    """Means over each sequence's tokens, nats: (sequences,) float64 on the CPU."""

    kl_each: Tensor
    """KL(dense || tail)"""
    nll_each: Tensor
    """of the next tokens under the tail"""
    dense_nll_each: Tensor | None = None
    """the same under the dense model, where it was kept"""

    @property
    def kl(self) -> float:
        """Mean KL; NaN where the tail left no numbers."""
        return float(self.kl_each.mean())

    @property
    def ratio(self) -> tuple[float, float]:
        """Perplexity over the dense model's, and its standard error, paired by sequence (delta
        method); NaN where the dense model's was not kept."""
        if self.dense_nll_each is None:
            return math.nan, math.nan
        mean, error = mean_and_standard_error((self.nll_each - self.dense_nll_each).numpy())
        value = math.exp(mean) if mean < 700.0 else math.inf
        return value, value * error

    def change_from(self, before: Judged) -> tuple[float, float]:
        """Mean KL less that of `before`, and its standard error, paired by sequence."""
        return mean_and_standard_error((self.kl_each - before.kl_each).numpy())


@torch.no_grad()
def judge_tail(inputs: TailInputs, tail: Tail, *, batch: int = 4, ranks: Ranks = SINGLE) -> Judged:
    """The tail as it is on text that was collected with its teachers.

    Args: ranks, the processes that share the sequences out; each gets all of the result.
    """
    head, tokens = tail.body.head, inputs.tokens
    teachers = Teachers(tail, inputs)
    mine = ranks.share(torch.arange(len(inputs.ids)))
    none = torch.empty(0, dtype=torch.float64)
    kl, nll = [none], [none]
    for pick in mine.split(batch) if len(mine) else ():
        ids = inputs.ids[pick]
        _, arguments = tail.body.prepare(ids)
        final = tail(inputs.entry[pick], arguments).flatten(0, 1)
        dense = teachers.of(pick)
        each = head_kl(head, dense, final)
        kl.append(each.view(-1, tokens).double().mean(-1).cpu())
        targets = next_tokens(ids).to(final.device)
        nll.append(sequence_nll(head_nll(head, dense, final, targets, kl=each), tokens))
    parts = ranks.whole(torch.stack([torch.cat(kl), torch.cat(nll)]))
    return Judged(parts[0], parts[1], inputs.dense_nll)
