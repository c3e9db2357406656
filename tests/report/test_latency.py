"""Single tokens in the report: the numbers by hand, what is missing, names that are markup."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clp_edge.records import RunRecord, TestRecord
from clp_edge.report import render_html, render_markdown
from clp_edge.report.blocks import Block, Plot, Table, Text
from clp_edge.report.latency import MISSING, TITLE, latency_blocks, percentile
from clp_edge.report.plots import alt_text, data_table, svg
from tests.report.large import large_report
from tests.report.sample import BENCH, TEST, run, sample_report

DENSE = replace(run("dense", "dense", 60.0), token_ms=((10.0, 12.0, 14.0), (11.0, 13.0, 30.0)))
CUT = replace(run("cut", "healed", 70.0), token_ms=((8.0, 9.0, 10.0), (8.0, 9.0, 12.0)))


def of(*runs: RunRecord) -> dict[str, list[Block]]:
    found: dict[str, list[Block]] = {"Table": [], "Plot": [], "Text": [], "Heading": []}
    for block in latency_blocks(runs):
        found[type(block).__name__].append(block)
    return found


def plots(*runs: RunRecord) -> tuple[Plot, Plot]:
    depth, shares = of(*runs)["Plot"]
    assert isinstance(depth, Plot)
    assert isinstance(shares, Plot)
    return depth, shares


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(100, 50, 50), (100, 90, 90), (100, 99, 99), (99, 99, None), (10, 90, 9), (9, 90, None),
     (2, 50, 1), (1, 50, None), (0, 50, None), (1000, 99, 990)],
)  # fmt: skip
def test_a_percentile_is_a_time_that_was_measured(count, share, expected) -> None:
    values = [float(n) for n in range(count, 0, -1)]
    assert percentile(values, share) == expected


def test_over_depth_each_place_has_its_median_and_middle_half() -> None:
    depth, _ = plots(DENSE, CUT)
    dense, cut = depth.series
    assert (dense.name, cut.name) == ("dense", "cut")
    assert dense.x == (0.0, 1.0, 2.0)
    assert dense.y == (10.5, 12.5, 22.0)
    assert (dense.low[2], dense.high[2]) == (18.0, 26.0)
    assert cut.y == (8.0, 9.0, 11.0)
    assert "dense: 3 points, lowest 10.5 at 0, highest 22 at 2" in alt_text(depth)
    assert ("cut", "2", "11", "10.5 to 11.5") in data_table(depth).rows


def test_tests_at_other_depths_go_on_the_same_line_with_a_break() -> None:
    deep = replace(DENSE, test=replace(TEST, depth=512), token_ms=((20.0, 22.0),))
    longer = replace(DENSE, test=replace(TEST, prompt=128), token_ms=((30.0,),))
    depth, shares = plots(DENSE, deep, longer)
    (line,) = depth.series
    assert line.x == (0.0, 1.0, 2.0, 257.0, 512.0, 513.0)
    assert line.y[0] == 11.0  # of 10, 11 and the other prompt's 30
    assert line.y[3] is None
    assert line.y[4:] == (20.0, 22.0)
    # A percentile is of one test; the name says which.
    assert [series.name for series in shares.series] == [
        "dense, pp512 tg128", "dense, pp512 tg128 @ d512", "dense, pp128 tg128"
    ]  # fmt: skip


def test_long_runs_are_drawn_by_neighbours_and_say_so() -> None:
    many = replace(DENSE, token_ms=(tuple(float(n) for n in range(1000)),))
    depth, _ = plots(many)
    (line,) = depth.series
    assert len(line.x) == 32
    assert (line.x[0], line.y[0]) == (15.5, 15.5)  # places 0 to 31
    (said,) = of(many)["Text"]
    assert isinstance(said, Text)
    assert "up to 32 tokens in a row" in said.text
    assert "evenly spread, not of all" in said.text  # one round of the six is kept


def test_the_table_says_where_tokens_are_too_few() -> None:
    (table,) = of(DENSE)["Table"]
    assert isinstance(table, Table)
    assert table.rows == (("dense", "6", "12.0", "too few tokens", "too few tokens", "30.0"),)
    _, shares = plots(DENSE)
    assert shares.series[0].y == (12.0, None, None)


def test_what_was_not_measured_says_so() -> None:
    old = run("dense", "dense", 60.0)
    failed = replace(DENSE, status="failed", reason="died")
    empty = replace(DENSE, token_ms=((), ()))
    for runs in ((), (old,), (failed,), (empty,)):
        found = of(*runs)
        assert not found["Plot"]
        assert found["Text"] == [Text(MISSING)]
    (said,) = of(DENSE, replace(old, artifact="other"))["Text"]
    assert isinstance(said, Text)
    assert said.text.endswith("Not measured: other.")
    report = sample_report()
    assert MISSING in render_html(report)
    assert MISSING in render_markdown(report)


def test_the_page_draws_them_and_the_text_has_the_table() -> None:
    report = large_report()
    page, text = render_html(report), render_markdown(report)
    titles = (
        "Time of a token over the depth of the context",
        "Decode against bytes",
        "Percentiles of a token&#x27;s time",
        "KL against time to first token",
    )
    for title in titles:
        assert f"<figcaption>{title}</figcaption>" in page
    assert f"### {TITLE}" in text
    assert "| file | tokens | p50 ms | p90 ms | p99 ms | longest ms |" in text
    assert "| tiny-dense | 768 |" in text


def test_names_that_are_markup_stay_text() -> None:
    evil = "</svg><script>pwned()</script>"
    named = replace(DENSE, artifact=evil, test=TestRecord(1, 1, 0))
    report = sample_report(bench=replace(BENCH, runs=(named,), speedup=()))
    assert "<script>" not in render_html(report)
    for plot in plots(named):
        drawn = svg(plot, "k")
        assert drawn is not None
        assert "<script>" not in drawn
