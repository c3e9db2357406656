"""report.html in a headless Chromium, where there is one: `make test-html`.

With CLP_EDGE_SCREENSHOTS=FOLDER it leaves pictures of the page there, to be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from clp_edge.records import Report
from clp_edge.report import render_html
from clp_edge.report.blocks import Plot
from clp_edge.report.sections import report_blocks
from tests.report.browser import Browser, find
from tests.report.large import large_report
from tests.report.sample import sample_report
from tests.report.test_html import EVIL, evil_report

PHONE, DESKTOP = (390, 844), (1280, 900)

pytestmark = pytest.mark.skipif(find() is None, reason="needs chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find()
    assert program is not None
    with Browser(program) as opened:
        yield opened


def page(folder: Path, report: Report) -> Path:
    file = folder / "report.html"
    file.write_text(render_html(report), encoding="utf-8")
    return file


BARE = {"search": None, "heal": None, "bench": None, "quality": {}, "artifacts": (), "samples": ()}
REPORTS = {
    "large": large_report(),
    "sample": sample_report(),
    "bare": sample_report(**BARE, evaluation=None, seconds={}),
    "evil": evil_report(),
}


@pytest.mark.parametrize("name", REPORTS)
def test_nothing_is_fetched_and_nothing_complains(
    browser: Browser, tmp_path: Path, name: str
) -> None:
    file = page(tmp_path, REPORTS[name])
    browser.look(*DESKTOP)
    seen = browser.open(file)
    assert seen.requests == [file.resolve().as_uri()]
    assert seen.complaints == []
    assert browser.run("document.scripts.length") == 0
    assert browser.run("document.querySelectorAll('img, link, iframe, object, embed').length") == 0


def test_the_tool_sees_a_request_and_a_complaint(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text("<img src='file:///nowhere.png'><script>console.error('ouch')</script>")
    seen = browser.open(file)
    assert "file:///nowhere.png" in seen.requests
    assert any("ouch" in complaint for complaint in seen.complaints)


def test_every_plot_is_seen_with_its_data(browser: Browser, tmp_path: Path) -> None:
    report = large_report()
    plots = [block for block in report_blocks(report) if isinstance(block, Plot)]
    assert len(plots) == 12
    browser.open(page(tmp_path, report))
    found = browser.run(
        """[...document.querySelectorAll('figure')].map(figure => {
            const svg = figure.querySelector('svg.plot'), box = svg.getBoundingClientRect()
            const drawn = [...svg.querySelectorAll('path, use')].filter(
                part => getComputedStyle(part).stroke !== 'none' || part.tagName === 'use')
            return {title: figure.querySelector('figcaption').textContent,
                    label: svg.getAttribute('aria-label'),
                    wide: box.width, high: box.height, drawn: drawn.length,
                    names: [...figure.querySelectorAll('.legend li')].map(li => li.textContent),
                    rows: figure.querySelectorAll('tbody tr').length}})"""
    )
    assert [one["title"] for one in found] == [plot.title for plot in plots]
    for one, plot in zip(found, plots, strict=True):
        points = [len(series.x) for series in plot.series]
        assert one["rows"] in (sum(points), points[0])
        assert one["wide"] > 300
        assert one["high"] > 150
        assert one["drawn"] > len(plot.series)
        assert all(series.name in one["label"] for series in plot.series)
        if len(points) > 1:
            assert len(one["names"]) == len(points) + len(plot.marks)


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", REPORTS)
def test_the_page_is_as_wide_as_the_window(
    browser: Browser, tmp_path: Path, size: tuple[int, int], name: str
) -> None:
    browser.look(*size)
    browser.open(page(tmp_path, REPORTS[name]))
    assert browser.run("document.documentElement.scrollWidth") <= size[0]


def test_light_dark_and_paper_have_their_colours(browser: Browser, tmp_path: Path) -> None:
    file = page(tmp_path, large_report())
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('svg.plot text')).fill"
    seen = []
    for dark, printed in ((False, False), (True, False), (True, True)):
        browser.look(*DESKTOP, dark=dark, printed=printed)
        browser.open(file)
        seen.append((browser.run(ground), browser.run(line)))
    light, dark_page, paper = seen
    assert light == paper == ("rgb(255, 255, 255)", "rgb(25, 28, 32)")
    assert dark_page == ("rgb(20, 23, 26)", "rgb(232, 234, 237)")


def test_markup_of_a_model_is_text_in_the_page(browser: Browser, tmp_path: Path) -> None:
    browser.look(*DESKTOP)
    browser.open(page(tmp_path, evil_report()))
    assert browser.run("window.pwned === undefined")
    quotes = browser.run("[...document.querySelectorAll('blockquote')].map(q => q.textContent)")
    assert EVIL in quotes
    title = browser.run("document.querySelector('h1').textContent")
    assert EVIL.replace("/", "\\") in title
    assert any(EVIL in text for text in browser.run(
        "[...document.querySelectorAll('svg.plot text')].map(one => one.textContent)"
    ))  # fmt: skip


def test_pictures_to_look_at(browser: Browser, tmp_path: Path) -> None:
    folder = Path(os.environ.get("CLP_EDGE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("large", "bare"):
        file = page(tmp_path, REPORTS[name])
        for kind, size in (("phone", PHONE), ("desktop", DESKTOP)):
            for scheme in ("light", "dark"):
                browser.look(*size, dark=scheme == "dark")
                browser.open(file)
                picture = folder / f"{name}-{kind}-{scheme}.png"
                browser.picture(picture)
                assert picture.read_bytes().startswith(b"\x89PNG")
