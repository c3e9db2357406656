"""Multiple choice, partial evaluation and last words: how well a model or an artifact answers.

Choice i scores log p(" " + choice | context). `acc` takes the largest sum, `acc_norm` the largest
sum per character of the choice, and where a continuation begins is lm-evaluation-harness's rule
(api/task.py, models/huggingface.py: the ids of the whole less as many as the context has), so that
the figures compare. The first of equal scores is taken.

Retention is what is left of what the dense model knows beyond guessing: (acc - chance) /
(dense - chance), both over the same items, with a paired interval. Where the dense model's own
interval holds chance there is nothing to retain, and `at_chance` says so.

>>> from clp_edge.evaluate.tasks import read_task
>>> from clp_edge.models.anatomy import dissect
>>> task = read_task("arc_easy.jsonl", limit=100)                            # doctest: +SKIP
>>> asked = encode(task, tokenizer)                                          # doctest: +SKIP
>>> dense = answer(task, asked, model_scorer(dissect(model)))                # doctest: +SKIP
>>> healed = answer(task, asked, session.score)                              # doctest: +SKIP
>>> retention(dense, healed, "acc").value                                    # doctest: +SKIP
0.91
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clp_edge.data import follows_bos
from clp_edge.errors import ClpEdgeError, VerificationError
from clp_edge.evaluate.intervals import Estimate, paired_interval, rate
from clp_edge.evaluate.tasks import Item, Task
from clp_edge.metrics import mean_and_standard_error
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress, silent
from clp_edge.runtimes.hf import score_branches

Score = tuple[float, bool]
Scorer = Callable[[Sequence[int], Sequence[Sequence[int]]], Sequence[Score]]
"""(context, choices) -> (sum of log-probabilities, greedy) of each; `Session.score` is one."""


@dataclass(frozen=True)
class Asked:
    """An item's ids: continuations under the context they share."""

    groups: tuple[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]], ...]
    """(context, continuations) in the order of the item's requests"""

    @property
    def tokens(self) -> int:
        """Of the longest sequence."""
        return max(len(context) + max(map(len, ends)) for context, ends in self.groups)


@dataclass(frozen=True)
class Answers:
    """What one model answered to the items of a task."""

    name: str
    form: str
    hits: dict[str, tuple[bool, ...]]
    """metric -> whether each item was right; the first metric is the one that is quoted"""
    chances: tuple[float, ...]
    """how often guessing is right, per item"""
    target_nll: tuple[float, ...] = ()
    """of each last word, nats"""

    @property
    def chance(self) -> float:
        return float(np.mean(self.chances))

    def accuracy(self, metric: str) -> Estimate:
        """Share of right answers with Wilson's interval."""
        hits = self.hits[metric]
        return rate(sum(hits), len(hits))

    def standard_error(self, metric: str) -> float:
        """Of the accuracy, over items."""
        return mean_and_standard_error([float(hit) for hit in self.hits[metric]])[1]

    def at_chance(self, metric: str) -> bool:
        """Whether the interval holds what guessing would get, or lies below it."""
        return self.accuracy(metric).low <= self.chance

    @property
    def target_perplexity(self) -> float:
        """exp of the mean NLL of the last words; NaN for other forms."""
        return math.exp(float(np.mean(self.target_nll))) if self.target_nll else math.nan


def encode(task: Task, tokenizer: Any, *, longest: int | None = None) -> tuple[Asked, ...]:
    """The ids of every item, with the model's own BOS rule.

    Contexts are cut from the left where a sequence would be longer than `longest` tokens. Raises
    ClpEdgeError where a choice alone is.
    """
    bos = follows_bos(tokenizer)
    return tuple(_encode(item, tokenizer, bos, longest, task.name) for item in task.items)


def _encode(item: Item, tokenizer: Any, bos: int | None, longest: int | None, name: str) -> Asked:
    groups: list[tuple[tuple[int, ...], list[tuple[int, ...]]]] = []
    for context, continuation in item.requests:
        bare = context.rstrip()  # white space belongs to the word after it
        end = context[len(bare) :] + continuation
        whole = tokenizer.encode(bare + end, add_special_tokens=False)
        cut = min(len(tokenizer.encode(bare, add_special_tokens=False)), len(whole) - 1)
        before, after = whole[:cut], tuple(whole[cut:])
        if bos is not None:
            before = [bos, *before]
        elif not before:  # something has to predict the first token
            before = [_any_start(tokenizer)]
        if longest is not None and len(before) + len(after) > longest:
            keep = longest - len(after)
            if keep < 2:
                raise ClpEdgeError(
                    f"a choice of the task {name!r} has {len(after)} tokens, the context holds "
                    f"{longest}",
                    "leave that task out",
                )
            head = 1 if bos is not None else 0
            before = before[:head] + before[len(before) - keep + head :]
        start = tuple(before)
        if groups and groups[-1][0] == start:
            groups[-1][1].append(after)
        else:
            groups.append((start, [after]))
    return Asked(tuple((start, tuple(ends)) for start, ends in groups))


def _any_start(tokenizer: Any) -> int:
    found = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if found is None else found)


def answer(
    task: Task, asked: Sequence[Asked], score: Scorer, progress: Progress = silent
) -> Answers:
    """Ask every item. Raises VerificationError where a score is not finite."""
    hits: dict[str, list[bool]] = {metric: [] for metric in task.form.metrics}
    nll: list[float] = []
    for at, (item, ids) in enumerate(zip(task.items, asked, strict=True)):
        scores = [one for context, ends in ids.groups for one in score(context, ends)]
        sums = np.array([total for total, _ in scores])
        if not np.isfinite(sums).all():
            raise VerificationError(
                f"log-probabilities of the task {task.name!r} are not finite",
                "the weights overflow at this precision; try another --dtype or --target",
            )
        if item.label is None:
            hits["acc"].append(scores[0][1])
            nll.append(-float(sums[0]))
        else:
            lengths = np.array([len(text) - 1 for _, text in item.requests])  # less the space
            for metric, value in (("acc", sums), ("acc_norm", sums / lengths)):
                if metric in hits:
                    hits[metric].append(int(value.argmax()) == item.label)
        progress(at + 1, len(asked), f"{task.name}, item {at + 1} of {len(asked)}")
    return Answers(
        name=task.name,
        form=task.form.name,
        hits={metric: tuple(found) for metric, found in hits.items()},
        chances=tuple(0.0 if i.label is None else 1 / len(i.requests) for i in task.items),
        target_nll=tuple(nll),
    )


def retention(dense: Answers, candidate: Answers, metric: str) -> Estimate | None:
    """(acc - chance) / (dense - chance) over the same items; None where the dense one guesses."""
    if dense.chances != candidate.chances:
        raise ValueError(f"the answers to {dense.name!r} are to other items")
    if dense.at_chance(metric):
        return None

    def left(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        above, below = ours.mean(axis=-1), theirs.mean(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = above / below
        # A resample in which the dense model guesses says nothing of how much is kept.
        return np.where(below > 0, found, np.where(above < 0, -np.inf, np.inf))

    chances = np.array(dense.chances)
    pair = (np.array(one.hits[metric], dtype=np.float64) - chances for one in (candidate, dense))
    return paired_interval(left, *pair)


def model_scorer(body: Anatomy) -> Scorer:
    """A torch model that is loaded already; the context is computed once, logits are float32."""
    device = body.embedding.weight.device

    def forward(ids: Tensor, cache: Any, keep: int) -> tuple[Tensor, Any]:
        out = body.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        return body.logits(out.last_hidden_state[:, -keep:]), out.past_key_values

    def score(context: Sequence[int], choices: Sequence[Sequence[int]]) -> Sequence[Score]:
        with torch.no_grad():
            return score_branches(forward, context, choices, device)

    return score
