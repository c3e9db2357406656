"""Answers against the definition, retention against a hand count, on torch and on files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clp_edge.errors import ClpEdgeError, VerificationError
from clp_edge.evaluate.choices import Answers, answer, encode, model_scorer, retention
from clp_edge.evaluate.tasks import Task, read_task
from clp_edge.models.anatomy import dissect
from clp_edge.runtimes import open_artifact

LINES: list[dict[str, Any]] = [
    {
        "context": "the quick brown",
        "choices": ["fox", "lazy dog jumps over ships", "old"],
        "label": 0,
    },
    {"context": "seven small ships ", "choices": ["sail past", "rain"], "label": 1},
    {"context": "count them aloud\n", "choices": ["from one to ten", "grey"], "label": 0},
    {"context": "", "choices": ["the", "harbour", "a"], "label": 2},
]


@pytest.fixture(scope="module")
def model(tiny_llama_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama_folder)


def task_of(folder: Path, lines: list[dict[str, Any]]) -> Task:
    path = folder / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return read_task(path)


def sums_by_hand(model: Any, tokenizer: Any, context: str, choices: list[str]) -> list[float]:
    """log p of " " + choice after the context, which loses its trailing space to the choice."""
    bare = context.rstrip()
    found = []
    for choice in choices:
        whole = tokenizer.encode(bare + context[len(bare) :] + " " + choice)
        start = len(tokenizer.encode(bare))
        if start == 0:
            whole, start = [tokenizer.bos_token_id, *whole], 1
        with torch.no_grad():
            logits = model(torch.tensor([whole])).logits[0].double()
        rows = torch.log_softmax(logits, -1)[start - 1 : -1]
        found.append(float(rows[torch.arange(len(rows)), torch.tensor(whole[start:])].sum()))
    return found


def test_answers_are_by_the_definition(model, tokenizer, tmp_path) -> None:
    task = task_of(tmp_path, LINES)
    asked = encode(task, tokenizer)
    assert [len(one.groups) for one in asked] == [1, 1, 1, 1]  # one context computed once
    score = model_scorer(dissect(model))
    found = answer(task, asked, score)
    for at, line in enumerate(LINES):
        sums = sums_by_hand(model, tokenizer, line["context"], line["choices"])
        context, ends = asked[at].groups[0]
        assert [total for total, _ in score(context, ends)] == pytest.approx(sums, abs=5e-3)
        assert found.hits["acc"][at] == (int(np.argmax(sums)) == line["label"])
        per_sign = [s / len(c) for s, c in zip(sums, line["choices"], strict=True)]
        assert found.hits["acc_norm"][at] == (int(np.argmax(per_sign)) == line["label"])
    assert found.hits["acc"] != found.hits["acc_norm"]
    assert found.chances == (1 / 3, 1 / 2, 1 / 2, 1 / 3)


def test_partial_evaluation_scores_the_same_end_after_each_context(
    model, tokenizer, tmp_path
) -> None:
    line = {
        "contexts": ["the fox jumps", "a child"],
        "choices": ["past an old harbour"] * 2,
        "label": 1,
    }
    task = task_of(tmp_path, [line])
    asked = encode(task, tokenizer)
    assert [len(ends) for _, ends in asked[0].groups] == [1, 1]
    found = answer(task, asked, model_scorer(dissect(model)))
    sums = [
        sums_by_hand(model, tokenizer, one, ["past an old harbour"])[0] for one in line["contexts"]
    ]
    assert found.hits == {"acc": (int(np.argmax(sums)) == 1,)}


def test_last_words(model, tokenizer, tmp_path) -> None:
    lines = [{"context": "the quick brown", "target": word} for word in ("fox", "ships sail")]
    task = task_of(tmp_path, lines)
    found = answer(task, encode(task, tokenizer), model_scorer(dissect(model)))
    sums = sums_by_hand(model, tokenizer, "the quick brown", ["fox", "ships sail"])
    assert found.target_perplexity == pytest.approx(math.exp(-np.mean(sums)), rel=1e-3)
    assert found.hits["acc"] == (False, False)
    assert found.chance == 0.0
    greedy = answer(task, encode(task, tokenizer), lambda c, e: [(-1.0, True)])
    assert greedy.accuracy("acc").value == 1.0


def test_the_models_bos_stands_in_front(tokenizer, tmp_path, monkeypatch) -> None:
    from clp_edge.evaluate import choices

    task = task_of(tmp_path, LINES)
    monkeypatch.setattr(choices, "follows_bos", lambda _: 1)
    with_bos = encode(task, tokenizer)
    monkeypatch.setattr(choices, "follows_bos", lambda _: None)
    without = encode(task, tokenizer)
    for one, other in zip(with_bos[:3], without[:3], strict=True):
        assert one.groups[0][0] == (1, *other.groups[0][0])
    assert with_bos[3].groups[0][0] == (1,)
    assert without[3].groups[0][0] == (tokenizer.bos_token_id,)


def test_a_long_context_is_cut_from_the_left(tokenizer, tmp_path, monkeypatch) -> None:
    from clp_edge.evaluate import choices

    monkeypatch.setattr(choices, "follows_bos", lambda _: 1)
    line = {"context": "the fox " * 40 + "jumps", "choices": ["past", "over"], "label": 0}
    task = task_of(tmp_path, [line])
    whole = encode(task, tokenizer)[0].groups[0][0]
    short = encode(task, tokenizer, longest=20)[0]
    assert short.tokens <= 20
    kept = short.groups[0][0]
    assert kept == (1, *whole[len(whole) - len(kept) + 1 :])
    with pytest.raises(ClpEdgeError, match=r"a choice of the task 'task' has \d+ tokens"):
        encode(task, tokenizer, longest=2)


def answers(hits: list[int], chance: float = 0.25) -> Answers:
    return Answers("t", "choices", {"acc": tuple(map(bool, hits))}, (chance,) * len(hits))


def test_retention_is_chance_corrected_and_paired() -> None:
    dense = answers([1] * 70 + [0] * 30)
    healed = answers([1] * 60 + [0] * 10 + [1] * 2 + [0] * 28)
    found = retention(dense, healed, "acc")
    assert found is not None
    assert found.value == pytest.approx((0.62 - 0.25) / (0.70 - 0.25))
    assert found.low < found.value < found.high < 1.0
    # the same rates on items that have nothing to do with each other are looser
    apart = answers([0] * 38 + [1] * 62)
    loose = retention(dense, apart, "acc")
    assert loose is not None
    assert loose.value == found.value
    assert loose.high - loose.low > 1.5 * (found.high - found.low)
    same = retention(dense, dense, "acc")
    assert same is not None
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)


def test_a_dense_model_that_guesses_has_nothing_to_retain() -> None:
    guessing = answers([1] * 28 + [0] * 72)
    assert guessing.at_chance("acc")
    assert retention(guessing, answers([1] * 50 + [0] * 50), "acc") is None
    assert not answers([1] * 60 + [0] * 40).at_chance("acc")
    assert answers([1] * 5 + [0] * 95).at_chance("acc")  # worse than guessing


def test_answers_to_other_items_are_not_compared() -> None:
    with pytest.raises(ValueError, match="other items"):
        retention(answers([1] * 10), answers([1] * 11), "acc")


def test_scores_that_are_no_numbers_are_an_error(tokenizer, tmp_path) -> None:
    task = task_of(tmp_path, LINES[:1])
    with pytest.raises(VerificationError, match="not finite"):
        answer(task, encode(task, tokenizer), lambda c, e: [(math.nan, False)] * len(e))


def test_a_session_answers_as_the_model_does(model, tokenizer, tiny_llama_folder, tmp_path) -> None:
    task = task_of(tmp_path, LINES)
    asked = encode(task, tokenizer)
    expected = answer(task, asked, model_scorer(dissect(model)))
    seen: list[tuple[float, float]] = []
    with open_artifact(tiny_llama_folder, threads=1, context=64) as session:
        found = answer(task, asked, session.score, lambda d, t, note="": seen.append((d, t)))
    assert found == expected
    assert seen[-1] == (4, 4)
    assert replace(found, name="x") != expected
