"""The sections on equal bytes and on the size or speed asked for, the verdict on both."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from clp_edge.records import (
    ChoiceRecord,
    ContextMemoryRecord,
    FrontierRecord,
    GoalRecord,
    Report,
    decode,
    encode,
)
from clp_edge.report.blocks import Plot, Table, Text
from clp_edge.report.frontier import frontier, goal
from clp_edge.report.headline import headline
from clp_edge.report.html import render_html
from clp_edge.report.markdown import render_markdown
from clp_edge.report.plots import data_table, svg
from clp_edge.report.sections import tradeoff
from tests.report.sample import BENCH, artifact, parts, quality, run, sample_report

RIVAL = artifact("dense Q2_K", "dense", 80 * 2**20, target="gguf-q2_k")
SMALL = artifact("healed Q2_K", "healed", 70 * 2**20, target="gguf-q2_k")
CHOICE = ChoiceRecord("bytes", "dense Q2_K", False, "KL at most 0.2 nats", "no cut: x", (), {})


def compared(choice: ChoiceRecord | None = None, **changes: Any) -> Report:
    """The sample with two files that are only there for the comparison."""
    found = parts()["quality"] | {
        "dense Q2_K": quality(24.0, 0.2, 0.85),
        "healed Q2_K": quality(40.0, 0.6, 0.6),
    }
    runs = (*BENCH.runs, run("dense Q2_K", "dense", 75.0), run("healed Q2_K", "healed", 80.0))
    record = FrontierRecord((RIVAL, SMALL), (), (), {}, choice)
    memory = {
        name: ContextMemoryRecord(4096, size, 1_000_000)
        for name, size in (("tiny-dense", 100), ("tiny-healed", 90), ("dense Q2_K", 80))
    }
    given = {"quality": found, "bench": replace(BENCH, runs=runs), "context_memory": memory}
    return sample_report(**{**given, "frontier": record, **changes})


def test_the_section_lists_every_file_with_its_fronts_and_says_what_was_deleted() -> None:
    blocks = list(frontier(compared()) or ())
    table = next(block for block in blocks if isinstance(block, Table))
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert set(rows) == {"tiny-dense", "tiny-healed", "dense Q2_K", "healed Q2_K"}
    assert rows["dense Q2_K"]["file kept"] == "deleted"
    assert rows["tiny-healed"]["file kept"] == "yes"
    assert rows["tiny-healed"]["on the front of"] == "none", "Q2_K is smaller, faster, nearer"
    assert "bytes" in rows["healed Q2_K"]["on the front of"]
    assert any(isinstance(b, Text) and b.text.startswith("2 files were written") for b in blocks)
    plots = [block for block in blocks if isinstance(block, Plot)]
    assert [plot.title for plot in plots] == [
        "KL against bytes", "KL against decode speed", "KL against prefill speed",
    ]  # fmt: skip
    front = plots[0].series[0]
    assert front.style == "line"
    assert front.x == tuple(sorted(front.x))
    assert 84 * 2**20 / 1e6 not in front.x


def test_the_plot_names_its_points_in_the_drawing_and_in_its_numbers() -> None:
    pytest.importorskip("matplotlib")
    plot = next(block for block in frontier(compared()) or () if isinstance(block, Plot))
    drawn = svg(plot, "k")
    assert drawn is not None
    assert ">Q2_K<" in drawn
    assert any("dense Q2_K" in cell for row in data_table(plot).rows for cell in row)


def test_the_verdict_names_the_better_dense_file_and_the_rival_of_equal_size() -> None:
    said = compared().verdict
    assert "at equal size the dense model as gguf-q2_k is better" in said
    assert "for bytes dense Q2_K is better" in said
    assert "Held against 1 other dense file, tiny-healed serves" in said
    assert "not measured: energy" in said


def test_a_choice_of_the_dense_file_is_no_cut_everywhere() -> None:
    report = compared(CHOICE)
    assert "--aim bytes chooses dense Q2_K: no cut: x." in report.verdict
    assert headline(report).ship == "no"
    assert "--aim bytes" in render_markdown(report)
    assert "dense Q2_K" in render_html(report)
    nothing = compared(replace(CHOICE, chosen=None, why="no file reaches it"))
    assert "chooses nothing" in nothing.verdict


def test_reports_without_it_say_so_and_older_files_are_read() -> None:
    assert frontier(sample_report()) is None
    assert "Harder quantizations of the dense model were not measured" in render_html(
        sample_report()
    )
    assert tradeoff(compared()) is None, "its files are in the larger table"
    assert 'id="section-tradeoff"' not in render_html(compared())
    report = compared(CHOICE)
    assert decode(encode(report), Report) == report
    old = json.loads(encode(sample_report()))
    for key in ("frontier", "goal", "context_memory"):
        del old[key]
    assert decode(json.dumps(old), Report).frontier is None


def asked(**changes: Any) -> GoalRecord:
    base = GoalRecord("--min-speedup", 1.25, 1.26, 1.16, 1.12, 1.2, "tiny-healed", "not met")
    return replace(base, **changes)


def test_the_goal_is_met_not_met_or_within_the_noise_and_says_so() -> None:
    assert goal(sample_report()) is None
    report = sample_report(goal=asked())
    assert "--min-speedup (at least 1.25x) is NOT met (1.16x, 1.12x to 1.20x)" in report.verdict
    blocks = list(goal(report) or ())
    assert Text("not met", lead="--min-speedup:", style="strong") in blocks
    noise = sample_report(goal=asked(met="undecided", wanted=1.15))
    assert "is within the noise" in noise.verdict
    none = asked(measured=None, low=None, high=None, file=None, met="not measured")
    assert "(at least 1.25x) was not measured" in sample_report(goal=none).verdict
    size = GoalRecord("--max-bytes", 9e7, 8.8e7, 8.8e7, 8.8e7, 8.8e7, "tiny-healed", "met")
    assert "--max-bytes (at most 90.0 MB) is met (88.0 MB)" in sample_report(goal=size).verdict
    speed = GoalRecord("--min-tps", 60.0, 80.0, 55.0, 54.0, 56.0, "f", "not met")
    assert (
        "(at least 60.0 tok/s) is NOT met (55.0 tok/s, 54.0 tok/s"
        in sample_report(goal=speed).verdict
    )
