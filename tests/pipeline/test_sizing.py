"""--max-bytes and --min-speedup: the fewest blocks that reach it, and what cannot be reached."""

from __future__ import annotations

import pytest

from clp_edge.config import CutConfig, parse_bytes
from clp_edge.errors import UsageError
from clp_edge.pipeline.sizing import blocks_to_drop


def two_files(count: int) -> list[int]:
    """A large and a small file of a model of 10 blocks: the head stays."""
    return [200 + 80 * (10 - count), 100 + 20 * (10 - count)]


@pytest.mark.parametrize("limit", [360, 500, 840, 900, 999])
def test_the_fewest_blocks_that_fit(limit: int) -> None:
    found = blocks_to_drop(CutConfig(max_bytes=str(limit)), 10, two_files)
    assert max(two_files(found)) <= limit < max(two_files(found - 1))


@pytest.mark.parametrize("wanted", [1.05, 1.25, 1.9])
def test_the_fewest_blocks_whose_bytes_allow_a_speedup(wanted: float) -> None:
    def ratio(count: int) -> float:
        return min(a / b for a, b in zip(two_files(0), two_files(count), strict=True))

    found = blocks_to_drop(CutConfig(min_speedup=wanted), 10, two_files)
    assert ratio(found) >= wanted > ratio(found - 1)


def test_what_needs_no_cut_and_what_no_cut_reaches() -> None:
    with pytest.raises(UsageError, match="without any cut"):
        blocks_to_drop(CutConfig(max_bytes="1KB"), 10, two_files)
    with pytest.raises(UsageError, match=r"without 8 of 10 blocks .* still"):  # two stay: 360
        blocks_to_drop(CutConfig(max_bytes="359"), 10, two_files)
    with pytest.raises(UsageError, match=r"the bytes allow 2\.14 times"):
        blocks_to_drop(CutConfig(min_speedup=3.0), 10, two_files)


def test_without_a_goal_the_count_is_the_configs() -> None:
    assert blocks_to_drop(CutConfig(drop_blocks=3), 10, two_files) == 3
    assert blocks_to_drop(CutConfig(), 30, two_files) == 6


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "90 apples", "0GB", "1.2.3MB"])
def test_a_size_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="--max-bytes"):
        CutConfig(max_bytes=text)


def test_sizes() -> None:
    assert parse_bytes("90MB") == 90_000_000
    assert parse_bytes("90mib") == 90 * 2**20
    assert parse_bytes("1234") == 1234


@pytest.mark.parametrize(
    "given", [{"prune": 0.2, "max_bytes": "1MB"}, {"min_speedup": 1.2, "blocks": "1-2"}]
)
def test_goals_exclude_other_ways_to_say_it(given) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        CutConfig(**given)


@pytest.mark.parametrize("value", [1.0, 0.5, -1.0])
def test_a_speedup_that_is_none(value: float) -> None:
    with pytest.raises(UsageError, match="no speed-up"):
        CutConfig(min_speedup=value)
