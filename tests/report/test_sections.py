"""Sections and blocks: a toy section is one function and one row; renderers know every block."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clp_edge.errors import UsageError
from clp_edge.records import (
    GateRecord,
    PairRecord,
    Report,
    RivalRecord,
    RungRecord,
    Span,
    TuningRecord,
)
from clp_edge.registry import SECTIONS
from clp_edge.report import render_markdown, sections, write_report
from clp_edge.report.blocks import Block, Code, Heading, Items, Plot, Series, Table, Text
from clp_edge.report.format import NOT_MEASURED, fixed, percent
from clp_edge.report.markdown import draw
from clp_edge.report.sections import report_blocks
from clp_edge.ui import Ui
from tests.report.sample import HEAL, SEARCH, died, sample_report

LINE = Series("kl", x=(0.0, 1.0), y=(0.5, None))
EVERY: tuple[Block, ...] = (
    Heading("Weather"),
    Text("it rained", lead="Monday"),
    Text("a strong wind", style="strong"),
    Text("first\nsecond", style="quote"),
    Items(("umbrella", "boots")),
    Table(("day", "mm"), (("last week",), ("Sunday", "3|4"))),
    Plot("Rain", "day", "mm", (LINE,), table=Table(("x", "y"), (("0", "0.5"),))),
    Plot("Unseen", "day", "mm", (LINE,)),
    Code("clp-edge doctor"),
    Code("print(1)", language="python"),
)


def weather(report: Report) -> Sequence[Block] | None:
    """A toy section: only for runs with a seed."""
    return [Heading("Weather"), Text(f"seed {report.seed}")] if report.seed else None


def test_a_toy_section_is_one_function_and_one_row(tmp_path: Path) -> None:
    report = sample_report(seed=7)
    plain = render_markdown(report)
    with SECTIONS.temporarily("weather", f"{__name__}:weather", "what the sky did"):
        assert "weather: what the sky did" in SECTIONS.help()
        write_report(report, tmp_path)
        text = (tmp_path / "report.md").read_text()
        assert text == plain + "\n## Weather\n\nseed 7\n"
        assert "Weather" not in render_markdown(sample_report())  # None: it is left out
        with pytest.raises(UsageError, match="did you mean weather"):
            SECTIONS.resolve("wether")
    assert render_markdown(report) == plain


def test_every_registered_section_is_a_documented_function() -> None:
    for name in SECTIONS.names():
        assert SECTIONS.load(name) is getattr(sections, name)
        assert SECTIONS.load(name).__doc__


def test_markdown_draws_every_block() -> None:
    assert draw(EVERY) == (
        "## Weather\n\n**Monday** it rained\n\n**a strong wind**\n\n> first\n> second\n\n"
        "- umbrella\n- boots\n\n"
        "| day | mm |\n| --- | --- |\n| **last week** |  |\n| Sunday | 3\\|4 |\n\n"
        "| x | y |\n| --- | --- |\n| 0 | 0.5 |\n\n"
        "    clp-edge doctor\n\n```python\nprint(1)\n```"
    )


def test_the_console_draws_every_block_and_nothing_with_json() -> None:
    out = io.StringIO()
    Ui(stdout=out, stderr=io.StringIO()).blocks(EVERY)
    lines = [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
    for line in ("Weather", "Monday it rained", "a strong wind", "first", "- boots", "print(1)"):
        assert line in lines
    assert any("  Sunday" in line and "3|4" in line for line in lines)
    assert not any("Unseen" in line for line in lines)
    silent = io.StringIO()
    Ui(json=True, stdout=silent, stderr=io.StringIO()).blocks(EVERY)
    assert silent.getvalue() == ""


def test_plots_carry_the_numbers_of_the_records() -> None:
    gate = GateRecord(
        choice=Span(12, 17),
        candidates=(Span(12, 17),),
        paths=((3.0, 11.5, 12.0),),
        losses=((0.9, 0.8, 0.7),),
        forward_equivalents=3.0,
    )
    report = sample_report(
        search=replace(SEARCH, gate=gate),
        heal=replace(HEAL, history=(TuningRecord(0, 0.33), TuningRecord(10, 0.3))),
    )
    plots = {block.title: block for block in report_blocks(report) if isinstance(block, Plot)}
    raw, mended = plots["KL of every window"].series
    assert (raw.x, raw.y) == ((3.0, 12.0, 13.0), (3.5, 0.75, 0.72))
    assert mended.y == (None, 0.33, 0.4)  # not judged: a gap
    assert plots["Where the gate went"].series == (
        Series("start 1", (0.0, 1.0, 2.0), (3.0, 11.5, 12.0)),
    )
    assert plots["Tuning"].series == (Series("held-back KL", (0.0, 10.0), (0.33, 0.3)),)
    names = [series.name for series in plots["Decode, round by round"].series]
    assert names == ["tiny-dense", "tiny-healed"]
    fallen = list(report_blocks(sample_report(bench=died("died"))))
    (left,) = (block for block in fallen if isinstance(block, Plot) and "Decode" in block.title)
    assert [series.name for series in left.series] == ["tiny-dense"]


def test_a_series_has_one_value_a_point() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        Series("kl", x=(0.0, 1.0), y=(0.5,))
    with pytest.raises(ValueError, match="different lengths"):
        Series("kl", x=(0.0,), y=(0.5,), low=(0.1, 0.2), high=(0.6,))


def test_every_rung_has_its_line_and_the_share_that_came_back() -> None:
    points = [{"step": 0, "kl": 0.33}, {"step": 8, "kl": None}, {"step": 16, "kl": 0.29}]
    heal = replace(
        HEAL,
        history=(TuningRecord(0, 0.29), TuningRecord(10, 0.27)),
        rungs=(
            RungRecord("refit", 0.75, 0.33, True, 4.0, {}, 0.56),
            RungRecord("local", 0.33, 0.29, True, 20.0, {"history": points}, 0.61),
        ),
    )
    blocks = list(report_blocks(sample_report(heal=heal)))
    plots = {block.title: block for block in blocks if isinstance(block, Plot)}
    line = Series("held-back KL, local", (0.0, 8.0, 16.0), (0.33, None, 0.29))
    assert plots["Tuning"].series == (line,)
    tables = [block for block in blocks if isinstance(block, Table)]
    (rungs,) = (table for table in tables if "lost nats recovered" in table.header)
    at = rungs.header.index("lost nats recovered")
    assert [row[at] for row in rungs.rows] == ["", percent(0.56), percent(0.61)]
    assert rungs.rows[0][rungs.header.index("KL after")] == fixed(heal.kl_cut, 3)
    assert not any("closed-form refit" in row for table in tables for row in table.rows)


def test_a_report_from_before_there_were_rungs_has_its_three_values() -> None:
    blocks = report_blocks(sample_report(heal=replace(HEAL, rungs=())))
    (table,) = (b for b in blocks if isinstance(b, Table) and b.header == ("step", "KL to dense"))
    assert [row[0] for row in table.rows] == ["cut", "closed-form refit", "tuned"]


def test_the_search_says_how_sure_its_choice_is() -> None:
    assert "KL of the next window" not in render_markdown(sample_report())
    search = replace(
        SEARCH,
        gap=0.004,
        gap_se=0.011,
        near_tie=True,
        rivals=(RivalRecord(13, 18, 0.31),),
        pair=PairRecord((Span(5, 7), Span(20, 22)), 0.9, 0.15, 0.02),
        notes=("blocks 13-18 leave less, a tie, so the choice by raw KL stays",),
    )
    lists = [b for b in report_blocks(sample_report(search=search)) if isinstance(b, Items)]
    (said,) = (block.items for block in lists if any("next window" in item for item in block.items))
    assert list(said) == [
        "KL of the next window is 0.004 ± 0.011 nats higher: a near tie.",
        f"Of the resamples of the sequences others won: 13-18 in {percent(0.31)}.",
        "KL of two runs, 5-7 and 20-22, is 0.150 ± 0.020 nats higher than the best single one's.",
        "Blocks 13-18 leave less, a tie, so the choice by raw KL stays.",
    ]


def test_a_rung_says_how_sure_its_change_is() -> None:
    rung = RungRecord("refit", 0.75, 0.33, True, 4.0, {}, 0.56, 0.021, 1.412, 0.034)
    heal = replace(HEAL, rungs=(rung,), ratio_cut=2.4, ratio_cut_se=0.11, held_sequences=32)
    blocks = list(report_blocks(sample_report(heal=heal)))
    tables = [block for block in blocks if isinstance(block, Table)]
    (rungs,) = (table for table in tables if "lost nats recovered" in table.header)
    cut, line = (dict(zip(rungs.header, row, strict=True)) for row in rungs.rows)
    assert cut["perplexity ratio"] == "2.400 ± 0.11"
    assert line["change"] == "-0.420 ± 0.021"
    assert line["perplexity ratio"] == "1.412 ± 0.034"
    assert any(isinstance(b, Text) and "On 32 held-back" in b.text for b in blocks)
    unknown = replace(rung, kl_after=None, change_se=None, ratio=None, ratio_se=None)
    blocks = list(report_blocks(sample_report(heal=replace(HEAL, rungs=(unknown,)))))
    (rungs,) = (b for b in blocks if isinstance(b, Table) and "rung" in b.header)
    assert rungs.rows[1][rungs.header.index("change")] == NOT_MEASURED
