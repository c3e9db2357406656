"""The guard by its exact rule, and evaluation text by the protocol."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clp_edge.data import calibrate, documents_from_texts, evaluation_text, held_back
from clp_edge.data.calibration import split_sequences
from clp_edge.data.guard import leaked
from clp_edge.errors import ClpEdgeError, UsageError
from tests.data.test_packing import with_rule
from tests.models.tiny_gguf import byte_level_tokenizer

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "text"
LETTERS = "abcdefghijklmnopqrstuvwxyzäß中文 "


def noise(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=length))


# --- the rule


def test_pitfall_8_a_run_of_200_characters_is_a_leak_and_199_is_not():
    phrase = noise(200, 1)
    long = [noise(20_000, 2) + phrase + noise(20_000, 3)]
    assert leaked(long, [noise(500, 4) + phrase + noise(500, 5)]) == [True]
    # 140 shared shingles of 40,140: far under 2 %
    assert leaked(long, [noise(500, 4) + phrase[:199] + noise(500, 5)]) == [False]
    assert leaked(long, [noise(500, 4) + phrase[1:] + noise(500, 5)]) == [False]
    assert leaked([phrase], [phrase]) == [True]


@pytest.mark.parametrize(("shared", "expected"), [(79, False), (80, True)])
def test_pitfall_8_over_2_percent_of_the_shingles_is_a_leak(shared, expected):
    # 1,059 characters have 1,000 shingles; a run of r characters shares r - 59 of them
    text = noise(1_059, 1)
    assert leaked([text], [noise(300, 2) + text[400 : 400 + shared] + "|" + noise(300, 3)]) == [
        expected
    ]


def test_shares_from_several_places_add_up():
    text = noise(1_059, 1)
    parts = [text[i : i + 70] for i in (0, 300, 700)]  # 11 shingles each
    assert leaked([text], parts[:1]) == [False]
    assert leaked([text], parts) == [True]


def test_runs_do_not_cross_from_one_text_to_the_next():
    text = noise(200, 1)
    assert leaked(["z" * 9_800 + text], [text[:100], text[100:]]) == [False]
    halves = [noise(9_900, 2) + text[:100], text[100:] + noise(9_900, 3)]
    assert leaked(halves, [text]) == [False, False]


def test_guard_agrees_with_the_rule_spelled_out():
    source = noise(3_000, 7)
    rng = random.Random(0)
    sequences = []
    for seed in range(40):
        at, size = rng.randrange(2_000), rng.randrange(0, 300)
        sequences.append(noise(700, 100 + seed) + source[at : at + size] + noise(700, 200 + seed))

    def spelled_out(text: str) -> bool:
        runs = any(text[i : i + 200] in source for i in range(len(text) - 199))
        shingles = [text[i : i + 60] in source for i in range(len(text) - 59)]
        return runs or sum(shingles) > 0.02 * len(shingles)

    expected = [spelled_out(s) for s in sequences]
    assert leaked(sequences, [source]) == expected
    assert 5 < sum(expected) < 35


def test_short_and_empty_texts():
    assert leaked([], ["x"]) == []
    assert leaked(["short", ""], ["short"]) == [False, False]
    assert leaked([noise(500, 1)], []) == [False]
    assert leaked(["👩‍💻" * 100, "\ud800" * 300], ["👩‍💻" * 100]) == [True, False]


@pytest.mark.skipif(not SHARED.is_dir(), reason="development data is not here")
def test_pitfall_8_stock_phrases_of_wikitext_stay():
    train = (SHARED / "wikitext2_train_raw_head1MB.txt").read_text(encoding="utf-8")
    valid = (SHARED / "wikitext2_valid_raw.txt").read_text(encoding="utf-8")
    sequences = [valid[i : i + 2_000] for i in range(0, len(valid), 2_000)]
    assert sum(leaked(sequences, [train])) <= 0.005 * len(sequences)
    planted = [*sequences[:3], train[50_000:52_000]]
    assert leaked(planted, [train]) == [False, False, False, True]


# --- the protocol


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def words(count: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(count))


def calibration_of(text: str, tokenizer):
    texts = [text[i : i + 500] for i in range(0, len(text), 500)]
    return calibrate(
        documents_from_texts(texts, "calibration"), tokenizer, sequences=10, length=32, seed=0
    )


def test_the_text_is_taken_as_it_is_and_evenly(tmp_path, tokenizer):
    text = words(6_000, 1) + "\n\n" + words(6_000, 2)
    (tmp_path / "e.txt").write_text(text)
    flat = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = evaluation_text(str(tmp_path / "e.txt"), tokenizer, sequences="all", length=128)
    assert whole.ids.flatten().tolist() == flat[: len(flat) // 128 * 128]
    some = evaluation_text(tmp_path / "e.txt", tokenizer, sequences=4, length=128)
    total = len(whole.ids)
    assert torch.equal(some.ids, whole.ids[[int((i + 0.5) * total / 4) for i in range(4)]])
    assert some.tokens == 512
    assert some.removed_as_leaked == 0
    assert some.sha256 == whole.sha256
    default = evaluation_text(tmp_path / "e.txt", tokenizer)
    assert default.ids.shape == (32, 512)
    many = evaluation_text(tmp_path / "e.txt", tokenizer, sequences=10**6, length=128)
    assert torch.equal(many.ids, whole.ids)


def test_documents_are_joined_with_a_blank_line(tokenizer):
    documents = documents_from_texts([words(50, 1), words(50, 2)], "two")
    flat = tokenizer("\n\n".join(documents.texts), add_special_tokens=False)["input_ids"]
    ids = evaluation_text(documents, tokenizer, sequences="all", length=16).ids
    assert ids.flatten().tolist() == flat[: ids.numel()]


def test_pitfall_5_evaluation_sequences_follow_the_bos_rule():
    ids = evaluation_text(
        documents_from_texts([words(300, 1)], "x"),
        with_rule(["<|im_start|>", "$A"]),
        sequences=4,
        length=64,
    ).ids
    assert ids[:, 0].tolist() == [1, 1, 1, 1]
    assert not (ids[:, 1:] == 1).any()


def test_pitfall_8_leaked_sequences_are_removed_counted_and_replaced(tokenizer):
    clean = words(30_000, 1)
    calibration_text = words(3_000, 2)
    middle = len(clean) // 2
    mixed = clean[:middle] + calibration_text[1_000:1_400] + clean[middle:]
    documents = documents_from_texts([mixed], "mixed")
    calibration = calibration_of(calibration_text, tokenizer)
    free = evaluation_text(documents, tokenizer, sequences="all", length=128)
    kept = evaluation_text(documents, tokenizer, sequences="all", length=128, against=calibration)
    assert 1 <= kept.removed_as_leaked <= 6
    assert len(kept.ids) == len(free.ids) - kept.removed_as_leaked
    planted = calibration_text[1_020:1_380]
    assert planted in tokenizer.decode(free.ids.flatten().tolist())
    assert planted[100:260] not in tokenizer.decode(kept.ids.flatten().tolist())
    # as many as were asked for, the leaked one replaced by a neighbour
    odd = 101
    few = evaluation_text(documents, tokenizer, sequences=odd, length=128, against=calibration)
    same = evaluation_text(documents, tokenizer, sequences=odd, length=128)
    assert len(few.ids) == odd
    changed = (few.ids != same.ids).any(dim=1).sum()
    assert changed <= kept.removed_as_leaked
    assert few.removed_as_leaked == kept.removed_as_leaked


def test_pitfall_8_over_5_percent_and_the_same_file_are_refused(tmp_path, tokenizer):
    text = words(4_000, 3)
    calibration = calibration_of(text, tokenizer)
    ten_percent = words(36_000, 4) + text
    with pytest.raises(ClpEdgeError, match=r"sequences of mixed share text with the calibration"):
        evaluation_text(
            documents_from_texts([ten_percent], "mixed"), tokenizer, against=calibration
        )
    from clp_edge.data import read_documents

    (tmp_path / "same.txt").write_text(text)
    same = calibrate(
        read_documents(str(tmp_path / "same.txt")), tokenizer, sequences=10, length=32, seed=0
    )
    with pytest.raises(ClpEdgeError, match=r"same\.txt is the calibration text itself"):
        evaluation_text(str(tmp_path / "same.txt"), tokenizer, against=same)
    (tmp_path / "copy.txt").write_text(text + " ")
    with pytest.raises(ClpEdgeError, match="share text with the calibration text"):
        evaluation_text(str(tmp_path / "copy.txt"), tokenizer, against=same)


def test_bad_sizes(tokenizer):
    documents = documents_from_texts(["short"], "short.txt")
    with pytest.raises(ClpEdgeError, match=r"short.txt is too short to evaluate on: \d tokens"):
        evaluation_text(documents, tokenizer)
    with pytest.raises(UsageError, match="cannot evaluate on 0 sequences"):
        evaluation_text(documents, tokenizer, sequences=0)


def test_held_back_is_the_report_part_less_what_repeats(tokenizer):
    calibration = calibration_of(words(4_000, 5), tokenizer)
    wrapped = held_back(calibration)
    assert torch.equal(wrapped.ids, calibration.report)
    assert wrapped.tokens == calibration.report.numel()
    assert wrapped.removed_as_leaked == 0
    plain = split_sequences(
        torch.arange(400).view(40, 10),
        [noise(400, i) for i in range(40)],
        origin="own",
        sha256="0",
        seed=0,
    )
    # a passage too short to tell its document from others, in a sequence of which it is much
    fooled = replace(plain, report_sequences=(plain.fit_texts[3], *plain.report_sequences[1:]))
    repeated = held_back(fooled)
    assert repeated.removed_as_leaked == 1
    assert torch.equal(repeated.ids, plain.report[1:])
    with pytest.raises(ClpEdgeError, match="every held-back sequence"):
        held_back(replace(plain, report_sequences=plain.fit_texts[:4]))
