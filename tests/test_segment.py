"""The one name of what goes: Segment, both ends inclusive."""

from __future__ import annotations

import pytest

from clp_edge.errors import UsageError
from clp_edge.segment import Segment


def test_pitfall_3_both_ends_are_inclusive() -> None:
    segment = Segment(12, 17)
    assert segment.count == 6
    assert list(segment.blocks) == [12, 13, 14, 15, 16, 17]
    assert segment == Segment.from_start(12, 6) == Segment.parse("12-17")
    assert segment.describe(30) == "blocks 12-17 (6 of 30)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("12", Segment(12, 12)), (" 3 - 4 ", Segment(3, 4)), ("0-0", Segment(0, 0))],
)
def test_parse(text: str, expected: Segment) -> None:
    assert Segment.parse(text) == expected


def test_what_is_printed_can_be_read_back() -> None:
    for segment in (Segment(0, 0), Segment(2, 9)):
        assert Segment.parse(str(segment)) == segment


@pytest.mark.parametrize("text", ["", "a", "12-", "-3", "1-2-3", "3..4", "1,2", "17-12"])
def test_bad_text_is_a_usage_error_of_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Segment.parse(text)
    assert "FIRST" in caught.value.cure
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (4, 3)])
def test_impossible_ends(first: int, last: int) -> None:
    with pytest.raises(UsageError, match="no segment"):
        Segment(first, last)


def test_endpoints_stop_at_the_ends_of_the_model() -> None:
    assert Segment(12, 17).endpoints(30) == (11, 18)
    assert Segment(0, 2).endpoints(30) == (3,)
    assert Segment(28, 29).endpoints(30) == (27,)
    assert Segment(0, 29).endpoints(30) == ()
