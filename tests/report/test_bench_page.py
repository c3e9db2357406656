"""The page of a bench alone, from the command line too; in Chromium where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clp_edge.bench.compare import UNPAIRED, compare
from clp_edge.cli import app
from clp_edge.records import BenchRecord, EnergyRecord, HeatRecord, MemoryRecord, encode
from clp_edge.report.bench_page import bench_page, comparison_page
from clp_edge.report.latency import MISSING
from tests.report.browser import Browser, find
from tests.report.large import large_report
from tests.report.sample import died, summary
from tests.report.test_html import EVIL, Page

COMMAND = "clp-edge bench a.gguf b.gguf"


def bench() -> BenchRecord:
    found = large_report().bench
    assert found is not None
    energy = EnergyRecord(
        None, "INA3221", "the whole board", gross=summary(0.08, 0.01), watts=5.0, period_s=0.1
    )
    first = replace(found.runs[0], energy=energy, memory=MemoryRecord(12.0, 90.0))
    return replace(
        found,
        runs=(first, *found.runs[1:]),
        device={"name": "Jetson", "power_mode": None, "builds": {"llama.cpp": "CPU"}},
        heat=HeatRecord({"soc": 40.0}, {"soc": 71.0}, ("the soc was hot",)),
        taken="2026-11-25T03:00:00Z",
    )


def evil_bench() -> BenchRecord:
    found = bench()
    runs = (found.runs[0], replace(found.runs[1], artifact=EVIL, runtime=EVIL, reason=EVIL))
    pair = replace(found.speedup[0], after=EVIL)
    return replace(
        found, runs=runs, speedup=(pair,), device={EVIL: EVIL, "b": {EVIL: EVIL}}, warnings=(EVIL,)
    )


def bare_bench() -> BenchRecord:
    failed = died("llama.cpp died: signal 9")
    run = replace(failed.runs[1], token_ms=())
    return replace(failed, runs=(run,), device={})


PAGES = {
    "bench": bench_page(bench(), COMMAND),
    "evil": bench_page(evil_bench(), EVIL),
    "bare": bench_page(bare_bench(), COMMAND),
    "compared": comparison_page(
        compare(bench(), bench()), (("a.json", bench()), ("b.json", bare_bench())), COMMAND
    ),
}


def test_the_page_has_the_device_the_tables_and_the_plots() -> None:
    document = PAGES["bench"]
    page = Page(document)
    assert page.faults == []
    titles = [
        "Decode, round by round", "Decode against bytes",
        "Time of a token over the depth of the context", "Percentiles of a token's time",
    ]  # fmt: skip
    assert len(page.named("svg")) == len(titles)
    for title, drawn in zip(titles, page.named("svg"), strict=True):
        assert (drawn["aria-label"] or "").startswith(title)
    words = "\n".join(page.words)
    assert "tiny-healed against tiny-dense, pp512 tg128: decode 1.16x" in words
    assert "Not known here: power mode." in words
    assert "0.080 J a token (0.070 to 0.090)" in words
    assert "soc 40 to 71 degrees C" in words
    assert "slowed down by: the soc was hot" in words
    assert "12 MiB private" in words
    assert "ceiling by memory bandwidth" in words
    assert COMMAND in words
    assert page.named("script") == page.named("link") == page.named("img") == []


def test_what_is_missing_is_said() -> None:
    page = Page(PAGES["bare"])
    words = "\n".join(page.words)
    assert page.named("svg") == []
    assert "No file could be measured." in words
    assert "failed: llama.cpp died: signal 9" in words
    assert "tiny-healed: llama.cpp died: signal 9" in words  # among the warnings
    assert MISSING in words
    assert "Not known here: the device." in words
    assert "temperature not measured" in words
    alone = replace(bench(), speedup=())
    assert "so there is no ratio" in bench_page(alone, COMMAND)


def test_markup_stays_text() -> None:
    page = Page(PAGES["evil"])
    assert page.faults == []
    assert page.open == []
    assert page.named("img") == page.named("script") == []
    assert sum(EVIL in word for word in page.words) > 10


def test_two_benches_say_that_they_are_unpaired() -> None:
    page = Page(PAGES["compared"])
    words = "\n".join(page.words)
    assert page.faults == []
    assert UNPAIRED[1:] in words
    assert "a.json" in words
    assert "may be the same" in words
    assert len(page.named("svg")) == 2  # A's; B has no tokens and says so
    assert MISSING in words


def told(*arguments: object):
    return CliRunner().invoke(app, ["bench", *(str(one) for one in arguments)])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The verb's own call gives the sample; the paths it was asked for are kept."""
    asked: list[Path] = []

    def stand_in(paths, settings, **rest):
        asked.extend(paths)
        return bench()

    monkeypatch.setattr("clp_edge.pipeline.verbs.bench.bench", stand_in)
    return asked


def test_the_page_is_written_beside_the_output(measured, tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench.html"
    result = told("a.gguf", "--html", file, "-o", "csv", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("artifact,")
    assert Page(file.read_text(encoding="utf-8")).named("svg")
    alone = told("a.gguf", "-o", "html", "--quiet")
    assert alone.exit_code == 0, alone.stderr
    assert Page(alone.stdout).faults == []
    assert alone.stdout.rstrip().endswith("</html>")


def test_a_folder_is_no_page_and_nothing_is_measured(measured, tmp_path: Path) -> None:
    result = told("a.gguf", "--html", tmp_path)
    assert result.exit_code == 2
    assert "is a folder" in result.stderr
    assert "Traceback" not in result.stderr
    assert not measured


def test_a_comparison_as_a_page(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        path.write_bytes(encode(bench()))
    file = tmp_path / "both.html"
    result = told("--compare", *paths, "--html", file)
    assert result.exit_code == 0, result.stderr
    assert "B over A" in result.stdout
    assert len(Page(file.read_text(encoding="utf-8")).named("svg")) == 4
    shown = told("--compare", *paths, "-o", "html")
    assert shown.stdout.startswith("<!DOCTYPE html>")
    other = replace(bench(), runs=(replace(bench().runs[0], runtime="other"),), speedup=())
    paths[1].write_bytes(encode(other))
    file.unlink()
    nothing = told("--compare", *paths, "--html", file)
    assert nothing.exit_code == 2
    assert "in common" in nothing.stderr
    assert not file.exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("needs chromium")
    with Browser(program) as opened:
        yield opened


@pytest.mark.parametrize("name", PAGES)
def test_in_a_browser(browser: Browser, tmp_path: Path, name: str) -> None:
    """No request, no complaint, no sideways scrolling; pictures with CLP_EDGE_SCREENSHOTS."""
    file = tmp_path / f"{name}.html"
    file.write_text(PAGES[name], encoding="utf-8")
    folder = Path(os.environ.get("CLP_EDGE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for size in ((390, 844), (1280, 900)):
        browser.look(*size, dark=size[0] < 600)
        seen = browser.open(file)
        assert seen.requests == [file.resolve().as_uri()]
        assert seen.complaints == []
        assert browser.run("window.pwned === undefined")
        assert browser.run("document.documentElement.scrollWidth") <= size[0]
        wide = browser.run(
            "[...document.querySelectorAll('svg.plot')].map(s => s.getBoundingClientRect().width)"
        )
        assert len(wide) == PAGES[name].count('<svg class="plot"')
        assert all(300 < one <= size[0] for one in wide)
        picture = folder / f"bench-{name}-{size[0]}.png"
        browser.picture(picture)
        assert picture.read_bytes().startswith(b"\x89PNG")
