"""How likely each of several continuations of one context is: what every engine answers.

A continuation's score is the sum of its tokens' log-probabilities (nats), and whether each token is
the most likely one, so that greedy decoding would write it. Only the rows that predict a token of a
continuation are looked at: the context's last, and all of the continuation's but its last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clp_edge.errors import UsageError

Score = tuple[float, bool]
"""(sum of log-probabilities in nats, whether it is what greedy decoding would write)"""


def check(context: Sequence[int], choices: Sequence[Sequence[int]]) -> int:
    """Tokens of the longest sequence. Raises UsageError where there is nothing to score."""
    if not context:
        raise UsageError("there is no context to continue", "give at least one token (a BOS)")
    if not choices or not all(choices):
        raise UsageError("a continuation has no tokens", "give each choice some text")
    return len(context) + max(len(choice) for choice in choices)


def score_rows(rows: np.ndarray, targets: Sequence[int]) -> Score:
    """From the logits (tokens, vocabulary) that predict `targets` (tokens,)."""
    wide = rows.astype(np.float64)
    top = wide.max(axis=-1)
    picked = wide[np.arange(len(targets)), list(targets)]
    spread = np.log(np.exp(wide - top[:, None]).sum(axis=-1))
    greedy = bool((rows.argmax(axis=-1) == np.asarray(targets)).all())
    return float((picked - top - spread).sum()), greedy


def score_by_logits(
    iter_logits: Callable[[Sequence[int]], Iterator[np.ndarray]],
    context: Sequence[int],
    choices: Sequence[Sequence[int]],
) -> list[Score]:
    """For a runtime that only gives plain logits: one run of context and choice for each choice."""
    check(context, choices)
    scores = []
    for choice in choices:
        start, position, kept = len(context) - 1, 0, []
        for part in iter_logits([*context, *choice[:-1]]):
            kept.append(part[max(0, start - position) :])
            position += len(part)
        scores.append(score_rows(np.concatenate(kept), choice))
    return scores
