"""The codec between records and JSON: text that UTF-8 does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from clp_edge.records import AnswerRecord, SanityRecord, decode, encode, from_plain, to_plain
from clp_edge.records.codec import RecordError

HALF = "a \ud83d b \udc00"


def test_half_a_surrogate_pair_in_generated_text_is_replaced() -> None:
    record = SanityRecord(0, 1, (AnswerRecord("json 1", "p", HALF, False, "json"),))
    read = decode(encode(record), SanityRecord)
    assert read.answers[0].text == "a \ufffd b \ufffd"
    assert read == from_plain(to_plain(record), SanityRecord)


def test_whole_pairs_and_free_values_are_kept_beside_it() -> None:
    free = {HALF: [Path("a/b"), "\U0001f600", 1.5, None, float("nan"), (True, HALF)]}
    assert to_plain(free) == {
        "a \ufffd b \ufffd": ["a/b", "\U0001f600", 1.5, None, None, [True, "a \ufffd b \ufffd"]]
    }


def test_what_json_cannot_hold_is_named_in_such_a_record_too() -> None:
    with pytest.raises(RecordError, match="object"):
        encode({"text": HALF, "what": object()})


def test_a_list_of_numbers_is_one_line_and_text_that_looks_like_one_stays() -> None:
    value = {
        "ms": [[1.5, -2e-05, None], [3]],
        "text": "[\n  1,\n  2\n]",
        "mixed": [1, "a"],
        "no": [],
    }
    written = encode(value)
    assert decode(written, dict) == value
    lines = written.decode().splitlines()
    assert "    [1.5, -0.00002, null]," in lines or "    [1.5, -2e-5, null]," in lines
    assert "    [3]" in lines
    assert b'"a"\n' in written
    # 15 rounds of 128 tokens: six bytes a number, not a line a number.
    samples = encode({"run": {"token_ms": [[12.3] * 128] * 15}})
    assert len(samples) < 15 * 128 * 6 + 500
