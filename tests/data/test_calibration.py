"""The split by document, and calibration sequences out of it."""

from __future__ import annotations

import pytest
import torch

from clp_edge.data import calibrate, documents_from_texts, read_documents, split_documents
from clp_edge.data.calibration import part_sizes
from clp_edge.errors import ClpEdgeError, UsageError
from tests.data.test_packing import with_rule
from tests.models.tiny_gguf import byte_level_tokenizer


def corpus(count: int, words: int = 60):
    texts = [f"document {i}: " + f"the text of {i} goes on " * words for i in range(count)]
    return documents_from_texts(texts, "corpus")


def test_documents_are_split_80_10_10_by_document():
    documents = corpus(100)
    fit, select, report = split_documents(documents, seed=0)
    assert [len(g) for g in (fit, select, report)] == [80, 10, 10]
    assert sorted(fit + select + report) == sorted(documents.texts)
    order = [documents.texts.index(t) for t in fit]
    assert order == sorted(order)
    assert split_documents(documents, seed=0) == (fit, select, report)
    assert split_documents(documents, seed=1) != (fit, select, report)


def test_the_split_goes_by_characters_where_documents_differ():
    documents = documents_from_texts([f"{i} " + "x" * (i * 97 % 3000) for i in range(200)], "mixed")
    groups = split_documents(documents, seed=3)
    shares = [sum(map(len, g)) / documents.characters for g in groups]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


@pytest.mark.parametrize(("count", "sizes"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1])])
def test_each_group_has_a_document_where_possible(count, sizes):
    for seed in range(5):
        assert [len(g) for g in split_documents(corpus(count), seed)] == sizes


def test_part_sizes():
    assert part_sizes(3) == (1, 1, 1)
    assert part_sizes(20) == (16, 2, 2)
    assert part_sizes(64) == (52, 6, 6)


def test_calibrate_takes_sequences_from_all_through_the_text():
    tokenizer = byte_level_tokenizer()
    documents = corpus(60)
    calibration = calibrate(documents, tokenizer, sequences=20, length=32, seed=0)
    assert [tuple(t.shape) for t in (calibration.fit, calibration.select, calibration.report)] == [
        (16, 32),
        (2, 32),
        (2, 32),
    ]
    assert (calibration.sequences, calibration.length) == (20, 32)
    assert calibration.sha256 == documents.sha256
    text = "\n\n".join(calibration.fit_texts)
    places = [text.index(tokenizer.decode(row)) / len(text) for row in calibration.fit.tolist()[:1]]
    places += [text.rindex(tokenizer.decode(calibration.fit[-1].tolist())) / len(text)]
    assert places[0] < 0.2
    assert places[1] > 0.8
    assert not set(calibration.fit_texts) & set(calibration.report_texts)
    for ids, own in zip(calibration.report.tolist(), calibration.report_sequences, strict=True):
        assert tokenizer.decode(ids) == own
        assert own in "\n\n".join(calibration.report_texts)
    again = calibrate(documents, tokenizer, sequences=20, length=32, seed=0)
    assert torch.equal(again.fit, calibration.fit)
    other = calibrate(documents, tokenizer, sequences=20, length=32, seed=1)
    assert not torch.equal(other.fit, calibration.fit)


def test_pitfall_5_calibration_sequences_follow_the_bos_rule():
    calibration = calibrate(
        corpus(60), with_rule(["<|im_start|>", "$A"]), sequences=10, length=16, seed=0
    )
    for part in (calibration.fit, calibration.select, calibration.report):
        assert (part[:, 0] == 1).all()
        assert (part[:, 1:] != 1).all()


def test_one_long_file_is_enough(tmp_path):
    lines = [f"line {i * i} is read by the model, which goes on to the next\n" for i in range(300)]
    (tmp_path / "one.txt").write_text("".join(lines))
    documents = read_documents(str(tmp_path / "one.txt"))
    assert len(documents.texts) < 9
    calibration = calibrate(documents, byte_level_tokenizer(), sequences=20, length=64, seed=0)
    assert calibration.sequences == 20


def test_far_more_text_than_needed_is_thinned_evenly():
    documents = corpus(400, words=20)
    calibration = calibrate(documents, byte_level_tokenizer(), sequences=8, length=64, seed=0)
    used = len(calibration.texts)
    assert 40 <= used < 100
    numbers = sorted(int(t.split()[1].rstrip(":")) for t in calibration.texts)
    assert numbers[0] < 20
    assert numbers[-1] > 380


def test_too_little_text_says_how_much_there_is_and_is_needed():
    tokenizer = byte_level_tokenizer()
    documents = documents_from_texts(["the text"], "tiny.txt")
    found = len(tokenizer("the text")["input_ids"])
    message = rf"tiny.txt is too short: {found} tokens found, 640 needed \(20 sequences of 32\)"
    with pytest.raises(ClpEdgeError, match=message):
        calibrate(documents, tokenizer, sequences=20, length=32, seed=0)
    with pytest.raises(UsageError, match="at least 3"):
        calibrate(documents, tokenizer, sequences=2, length=32, seed=0)
