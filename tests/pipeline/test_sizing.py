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


def test_pitfall_21_a_speedup_is_foretold_by_what_a_token_reads(tmp_path) -> None:
    """An untied embedding is in the file and is not read: by its bytes more blocks would go."""
    pytest.importorskip("onnxruntime_genai")
    from clp_edge import export
    from clp_edge.config import CompressConfig
    from clp_edge.pipeline.preflight import preflight
    from tests.export.models import tiny_folder

    folder, model, hf = tiny_folder(tmp_path / "m", blocks=8, spare_rows=6_000)
    target = export.resolve("onnx-fp32")
    plans = [export.plan(model.config, hf, target, blocks=count) for count in (8, 7)]
    by_reads = plans[0].read_bytes / plans[1].read_bytes
    by_files = plans[0].predicted_bytes / plans[1].predicted_bytes
    assert by_reads > by_files + 0.005
    config = CompressConfig(
        model=str(folder),
        targets=("onnx-fp32",),
        cut=CutConfig(min_speedup=(by_reads + by_files) / 2),
        out=tmp_path / "out",
    )
    assert preflight(config).count == 1
