"""Calibration text that repeats itself: no copy of what is fitted on is held back."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from clp_edge.data import Documents, calibrate, documents_from_texts
from clp_edge.data.calibration import Calibration, split_documents, split_sequences
from clp_edge.data.guard import leaked, repeated
from clp_edge.data.repeats import Repeats, distinct
from clp_edge.errors import ClpEdgeError
from tests.models.tiny_gguf import byte_level_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level_tokenizer()


def article(seed: int, words: int = 120) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(words))


def articles(count: int, first: int = 0) -> list[str]:
    return [article(seed) for seed in range(first, first + count)]


def made(texts: list[str], tokenizer: Any, sequences: int = 40) -> Calibration:
    documents = documents_from_texts(texts, "articles")
    return calibrate(documents, tokenizer, sequences=sequences, length=128, seed=0)


def test_white_space_makes_no_other_document() -> None:
    assert distinct(["a b", "c", "a\n b ", "C", "a b"]) == (("a b", "c", "C"), 2)


def test_the_guard_over_all_texts_is_the_guard_of_each_against_the_others() -> None:
    texts = [*articles(12), "short", "short", ""]
    texts[3] += texts[7][:200]
    texts[9] += " and " + texts[1][:90] + " then " + texts[5][:100]
    texts[11] = texts[11] + texts[11]  # itself twice is no other text
    expected = [leaked([t], texts[:i] + texts[i + 1 :])[0] for i, t in enumerate(texts)]
    assert repeated(texts) == expected
    assert [i for i, flag in enumerate(expected) if flag] == [1, 3, 5, 7, 9]
    assert repeated([]) == []
    assert repeated([""]) == [False]


def test_documents_that_stand_twice_are_learnt_from_or_judged_by_once(tokenizer: Any) -> None:
    texts = articles(60)
    once = made(texts, tokenizer)
    twice = made(texts + texts, tokenizer)
    assert once.repeats == Repeats(0, 0, 60)
    assert twice.repeats == Repeats(60, 0, 60)
    assert torch.equal(once.fit, twice.fit)
    assert torch.equal(once.select, twice.select)
    assert twice.texts == once.texts
    assert str(once.repeats) == ""
    assert str(twice.repeats) == (
        "the calibration text repeats itself: 60 exact copies of others were dropped"
    )


def test_pitfall_8_near_copies_of_other_documents_are_not_held_back(tokenizer: Any) -> None:
    """A fifth of the documents stand there twice, the second time with another beginning."""
    texts = articles(100)
    texts += [f"Edition {i}. {texts[5 * i]}" for i in range(20)]
    fit, select, report = split_documents(Documents(tuple(texts), "articles", ""), seed=0)
    assert any(leaked(select, fit))  # or this test says nothing
    assert any(leaked(report, fit + select))
    found = made(texts, tokenizer)
    assert found.repeats == Repeats(0, 40, 120)
    assert "40 of 120 documents share long passages" in str(found.repeats)
    assert sorted(found.texts) == sorted(texts)  # nothing is lost
    assert not any(leaked(found.select_texts, found.fit_texts))
    assert not any(leaked(found.report_texts, found.fit_texts + found.select_texts))
    assert [len(part) for part in (found.fit, found.select, found.report)] == [32, 4, 4]
    shares = [len("".join(part)) / len("".join(texts)) for part in
              (found.fit_texts, found.select_texts, found.report_texts)]  # fmt: skip
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_a_passage_in_every_record_is_their_frame(tokenizer: Any) -> None:
    """A system prompt in each line of a chat log is no copy of one line in another."""
    passage = article(10_000, 60)
    assert len(passage) > 200
    records = [f"{passage}\n{text}" for text in articles(60)]
    found = made(records, tokenizer)
    assert found.repeats == Repeats(0, 0, 60)
    records[7] = f"{passage}\nAgain: {records[3][len(passage) + 1 :]}"
    assert [i for i, flag in enumerate(repeated(records)) if flag] == [3, 7]


def test_records_that_are_hardly_more_than_their_frame_are_refused(tokenizer: Any) -> None:
    passage = article(10_000, 160)
    records = [f"{passage} {index}" for index in range(60)]
    with pytest.raises(ClpEdgeError, match=r"articles repeats itself: 60 of 60 documents"):
        made(records, tokenizer)


def test_too_little_without_the_copies_says_so(tokenizer: Any) -> None:
    texts = articles(10)
    with pytest.raises(ClpEdgeError, match=r"tokens found without 90 exact copies of documents"):
        made(texts * 10, tokenizer, sequences=400)


def test_text_that_the_model_writes_twice_is_not_held_back() -> None:
    ids = torch.arange(400).view(40, 10)
    texts = articles(40)
    plain = split_sequences(ids, texts, origin="own", sha256="0", seed=0)
    assert plain.repeats == Repeats(0, 0, 40)
    fitted, held = (int(part[0, 0]) // 10 for part in (plain.fit, plain.select))
    texts[held] = texts[fitted]
    found = split_sequences(ids, texts, origin="own", sha256="0", seed=0)
    assert found.repeats == Repeats(0, 2, 40)
    assert [len(part) for part in (found.fit, found.select, found.report)] == [32, 4, 4]
    assert {10 * fitted, 10 * held} <= set(found.fit[:, 0].tolist())
    assert torch.equal(found.report, plain.report)
    assert len(set(found.select[:, 0].tolist()) & set(plain.select[:, 0].tolist())) == 3
    rows = torch.cat([found.fit, found.select, found.report])
    assert torch.equal(rows[rows[:, 0].argsort()], ids)
    with pytest.raises(ClpEdgeError, match="own repeats itself: 40 of 40"):
        split_sequences(ids, [texts[0]] * 40, origin="own", sha256="0", seed=0)
