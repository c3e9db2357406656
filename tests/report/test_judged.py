"""What was asked for and whether it holds: gate, tries, tasks, prompts, and block by block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clp_edge.records import (
    AnswerRecord,
    GateVerdictRecord,
    MetricRecord,
    PredictedCut,
    PredictionRecord,
    RateRecord,
    Report,
    SanityRecord,
    Span,
    TaskRecord,
    TriesRecord,
    TryRecord,
    WindowRecord,
    decode,
    encode,
    to_plain,
)
from clp_edge.report import parse_report, render_html, render_markdown
from clp_edge.report.headline import headline
from clp_edge.report.sections import cards, gate, sanity, tasks, tries
from tests.report.sample import MODEL, SEARCH, quality, sample_report

MISS = "perplexity is 1.29 times the dense model's, and at most 1.2 was asked for"


def verdict(**misses: tuple[str, ...]) -> GateVerdictRecord:
    return GateVerdictRecord(1.2, None, None, {"tiny-healed": (), **misses})


def metric(value: float, kept: float | None, *, chance: bool = False) -> MetricRecord:
    return MetricRecord(
        value=value, se=0.02, low=value - 0.1, high=value + 0.1, chance=0.25, at_chance=chance,
        retention=kept, retention_low=kept and kept - 0.1, retention_high=kept and kept + 0.1,
        dense_at_chance=kept is None, hits="10",
    )  # fmt: skip


def talk(passed: int, text: str) -> dict[str, Any]:
    answers = tuple(
        AnswerRecord(f"json {n}", f"prompt {n}", text, n < passed, "json") for n in range(8)
    )
    kinds = {"json": RateRecord(passed, 8, 0.1, 0.9)}
    return to_plain(SanityRecord(passed, 8, answers, 0.1, 0.9, kinds))


def asked(kept: float | None) -> dict[str, Any]:
    sides: dict[str, Any] = sample_report().quality
    rows = {"dense": (8, 1.0), "healed": (6, kept), "tiny-healed": (5, kept)}
    for side, (passed, share) in rows.items():
        task = TaskRecord("choices", 24, "acc", {"acc": metric(0.5, share)})
        found = {"sanity": talk(passed, f"<b>{side}</b>"), "arc": to_plain(task)}
        sides[side] = replace(sides[side], tasks=found)
    return sides


def test_a_gate_that_is_missed_leads_the_headline_and_ends_the_verdict() -> None:
    report = sample_report(quality_gate=verdict(**{"tiny-healed": (MISS,)}))
    assert headline(report).ship == "no"
    assert headline(report).why[0] == f"the quality asked for is not reached: tiny-healed: {MISS}"
    assert "the quality asked for is NOT reached by tiny-healed" in report.verdict
    assert f"- tiny-healed: {MISS}" in render_markdown(report)
    assert "not reached" in render_html(report)


def test_a_gate_that_is_reached_says_so_and_nobody_judged_is_no_pass() -> None:
    report = sample_report(quality_gate=verdict())
    assert "the quality asked for is reached" in report.verdict
    assert not any("asked for" in why for why in headline(report).why)
    assert not GateVerdictRecord(1.2, None, None, {}).passed
    assert gate(sample_report()) is None
    assert "No quality was asked for" in render_html(sample_report())


def test_tasks_show_intervals_and_say_chance_aloud() -> None:
    text = render_markdown(sample_report(quality=asked(0.8)))
    assert "| **arc: 24 items, quoted by acc** |" in text
    assert "| tiny-healed | acc | 50.0 % (40.0 to 60.0) | 25.0 % | 0.80 (0.70 to 0.90) |" in text
    guessing = sample_report(quality=asked(None))
    assert "arc: the dense model itself is at chance" in render_markdown(guessing)
    assert "arc: the dense model itself is at chance" in headline(guessing).costs
    assert (
        "arc: 80.0 % kept of what is beyond chance"
        in headline(sample_report(quality=asked(0.8))).costs
    )
    assert tasks(sample_report()) is None


def test_prompts_stand_side_by_side_and_the_torn_ones_first() -> None:
    report = sample_report(quality=asked(0.8))
    blocks = sanity(report)
    assert blocks is not None
    prompts = [block.prompt for block in blocks if hasattr(block, "prompt")]
    assert prompts[:3] == ["prompt 5", "prompt 6", "prompt 7"]
    said = next(block.said for block in blocks if hasattr(block, "said"))
    assert [(side, by) for side, by, _ in said] == [
        ("Passed", "dense"), ("Passed", "healed"), ("Failed", "tiny-healed"),
    ]  # fmt: skip
    page = render_html(report)
    assert "8 of 8 (10 to 90 %)" in page
    assert "<b>tiny-healed</b>" not in page, "generated text is no markup"
    assert "&lt;b&gt;tiny-healed&lt;/b&gt;" in page
    assert sanity(sample_report()) is None


def tried() -> TriesRecord:
    def one(count: int, share: float | None) -> TryRecord:
        passed = share is not None and share <= 1
        return TryRecord(
            count, Span(12, 11 + count), 0.9, share, 1.1, 0.1, None, passed,
            () if passed else (MISS,), 60.0,
        )  # fmt: skip

    curve = PredictionRecord(
        (PredictedCut(1, 12, 12, 0.1, 0.05), PredictedCut(6, 12, 17, 0.75, 0.33)),
        (WindowRecord(3, 3, kl_raw=0.42, kl_healed=None),),
        20.0,
    )
    return TriesRecord(0.18, curve, (one(6, 1.4), one(5, None), one(4, 0.8)), 4, "4 blocks go")


def test_every_try_is_listed_and_read_back() -> None:
    report = sample_report(tries=tried())
    assert decode(encode(report), Report).tries == tried()
    text = render_markdown(report)
    assert "| 6 | 12-17 | 90 % | 140 % | 1.100 | 0.100 | not measured | misses |" in text
    assert "| 5 | 12-16 | 90 % | not measured |" in text
    assert "| 4 | 12-15 | 90 % | 80 % | 1.100 | 0.100 | not measured | passes |" in text
    assert tries(sample_report()) is None


def test_every_block_has_a_row_with_what_became_of_it() -> None:
    model = replace(MODEL, parameters=1_000_000, parameters_after=880_000)
    blocks = cards(sample_report(model=model, tries=tried()))
    assert blocks is not None
    table = blocks[1]
    assert table.header == ("block", "what", "weight", "KL alone", "best window with it")
    assert len(table.rows) == 30
    assert table.rows[12] == (
        "12", "cut", "0.02 M (2.0 %)", "not measured", "12-17: 0.750",
    )  # fmt: skip
    assert table.rows[11][1] == "endpoint, healed"
    assert table.rows[3][3:] == ("0.420", "3-8: 3.500"), "it needs no KL after the refit"
    assert table.rows[18][4] == "13-18: 0.720"
    assert table.rows[25][4] == "none judged"
    assert table.rows[25][1] == "kept"


def test_what_was_not_measured_has_no_column_and_is_said() -> None:
    blocks = cards(sample_report(search=replace(SEARCH, criterion="raw")))
    assert blocks is not None
    assert blocks[1].header == ("block", "what", "best window with it")
    assert "was not measured in this run" in blocks[2].text
    assert cards(sample_report(search=None)) is None


def test_a_report_of_an_older_version_without_gate_and_tries_is_read() -> None:
    document = to_plain(sample_report(quality={"dense": quality(20.0, 0.0, 1.0)}))
    for key in ("quality_gate", "tries"):
        del document[key]
    for sample in document["samples"]:
        del sample["mended"]
    report = parse_report(encode(document))
    assert report.tries is None
    assert "Block by block" in render_html(report)


@pytest.mark.parametrize("name", ["gate", "tries", "tasks", "sanity", "cards"])
def test_a_page_without_it_says_so(name: str) -> None:
    page = render_html(sample_report(search=None, quality={}))
    assert f'<section id="section-{name}">' in page
