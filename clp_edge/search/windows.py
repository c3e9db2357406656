"""The oracle: exact KL of every window of n blocks, from the stored block inputs.

Window [s, s+n) needs the blocks s+n ... L-1 and the head only, about (L-n)²/2L dense passes for
the whole curve. It is both a method of its own and the judge of every other (judge.py):
regret = KL(choice) / min KL - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clp_edge.kernels.head_kl import head_kl
from clp_edge.metrics import mean_and_standard_error
from clp_edge.models.anatomy import Anatomy
from clp_edge.search.states import BlockStates
from clp_edge.segment import Segment


@dataclass(frozen=True)
class WindowScore:
    """KL(dense || the model without this segment), nats per token."""

    segment: Segment
    kl: float
    kl_se: float
    """over sequences"""
    by_sequence: tuple[float, ...]

    @classmethod
    def of(cls, segment: Segment, by_sequence: Sequence[float]) -> WindowScore:
        """The mean over these sequences, and its standard error."""
        mean, error = mean_and_standard_error(by_sequence)
        return cls(segment, mean, error, tuple(by_sequence))


@torch.no_grad()
def window_kl(
    body: Anatomy,
    states: BlockStates,
    segment: Segment,
    first: int,
    last: int,
    gone: Segment | None = None,
) -> list[float]:
    """Mean KL of each of the sequences first ... last-1 without the segment, nats per token.

    Args: gone, another run that is not there either; the states are those without it.
    """
    _, arguments = body.prepare(states.ids[first:last])
    hidden = states.at(segment.first, slice(first, last))
    left = [i for i in range(segment.last + 1, len(body)) if gone is None or i not in gone.blocks]
    hidden = body.run_blocks(left, hidden, arguments)
    dense = states.dense.select(states.rows(first, last))
    kl = head_kl(body.head, dense, body.normed(hidden).flatten(0, 1))
    values: list[float] = kl.view(last - first, -1).mean(dim=1).tolist()
    return values


FEWEST_SEQUENCES = 4
"""A bootstrap over fewer says nothing: of one sequence every resample is the same."""


@dataclass(frozen=True)
class Stability:
    """How firm the choice is: a bootstrap over sequences."""

    wins: float | None
    """share of resamples in which the best window is the best again; None where fewer than
    FEWEST_SEQUENCES sequences were seen"""
    rivals: tuple[tuple[Segment, float], ...]
    """other windows that won some resamples, with their shares"""
    gap: float
    """KL of the second best less KL of the best"""
    gap_se: float
    """standard error of that gap, paired by sequence; NaN where `wins` is None or for one window"""

    @property
    def near_tie(self) -> bool:
        """Whether the second best is within one paired standard error; False where not known."""
        return self.gap <= self.gap_se


def surely_better(scores: Sequence[WindowScore], than: Segment, *, errors: float) -> WindowScore:
    """The least KL among the windows that beat `than` by more than so many paired standard errors.

    Returns: the score of `than` itself, which is one of `scores`, where none does: a tie is no
    reason to leave it, and of one sequence no error is known.
    """
    known = {score.segment: np.array(score.by_sequence) for score in scores}
    best = next(score for score in scores if score.segment == than)
    for score in scores:
        gain, error = mean_and_standard_error(known[than] - known[score.segment])
        if gain > errors * error and score.kl < best.kl:
            best = score
    return best


def stability(
    scores: Sequence[WindowScore],
    *,
    chosen: Segment | None = None,
    resamples: int = 2_000,
    seed: int = 0,
) -> Stability:
    """Resample the sequences and see which window wins.

    Args: chosen, the window that is spoken of where it is not the one of least KL; the gap to the
        best of the others is then below 0.
    """
    matrix = np.array([score.by_sequence for score in scores])
    order = list(np.argsort(matrix.mean(axis=1), kind="stable"))
    if chosen is not None:
        order.sort(key=lambda row: scores[row].segment != chosen)
    best = int(order[0])
    gap, gap_se = float("nan"), float("nan")
    if len(order) > 1:
        gap, gap_se = mean_and_standard_error(matrix[int(order[1])] - matrix[best])
    if matrix.shape[1] < FEWEST_SEQUENCES:
        return Stability(None, (), gap, float("nan"))
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, matrix.shape[1], size=(resamples, matrix.shape[1]))
    winners = matrix[:, draws].mean(axis=2).argmin(axis=0)
    shares = np.bincount(winners, minlength=len(scores)) / resamples
    rivals = tuple((scores[i].segment, float(shares[i])) for i in order[1:] if shares[i] > 0)
    return Stability(float(shares[best]), rivals, gap, gap_se)
