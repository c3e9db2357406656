"""--tune-blocks: what its words mean, and what is refused before any work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from clp_edge.config import CompressConfig
from clp_edge.errors import UsageError
from clp_edge.heal.blocks import tuned_blocks
from clp_edge.pipeline.stages.heal import inputs
from clp_edge.segment import Segment


@pytest.mark.parametrize(
    ("words", "segment", "expected"),
    [
        ("near", Segment(13, 18), (12, 19, 20, 21)),
        ("near", Segment(0, 2), (3, 4, 5)),
        ("near", Segment(27, 28), (26, 29)),
        ("near", Segment(28, 29), (27,)),
        ("endpoints", Segment(13, 18), (12, 19)),
        ("endpoints", Segment(0, 2), (3,)),
        ("21,11-12", Segment(13, 18), (11, 12, 21)),
    ],
)
def test_which_blocks_the_words_mean(
    words: str, segment: Segment, expected: tuple[int, ...]
) -> None:
    assert tuned_blocks(words, segment, 30) == expected


@pytest.mark.parametrize(("words", "why"), [("12-14", "goes with 13-18"), ("30", "not in 0-29")])
def test_a_block_that_is_not_there_is_refused_before_any_work(words: str, why: str) -> None:
    asked = CompressConfig.of("model", blocks="13-18", tune_blocks=words)
    plan: Any = SimpleNamespace(blocks=30)
    with pytest.raises(UsageError, match=f"--tune-blocks.*{why}"):
        inputs(asked, plan)


def test_ids_need_the_cut_that_they_stand_beside() -> None:
    with pytest.raises(UsageError, match=r"--tune-blocks 12,19 .*--blocks"):
        CompressConfig.of("model", tune_blocks="12,19")
    with pytest.raises(UsageError, match=r"did you mean endpoints"):
        CompressConfig.of("model", tune_blocks="endpoint")
    asked = CompressConfig.of("model", blocks="13-18", tune_blocks=" Near ")
    assert inputs(asked, SimpleNamespace(blocks=30)).tune_blocks == "near"  # type: ignore[arg-type]
