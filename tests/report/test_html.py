"""report.html without a browser: escaping, structure, what is missing, sameness, contrast."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from clp_edge.records import Report, RungRecord
from clp_edge.registry import SECTIONS
from clp_edge.report import plots as drawing
from clp_edge.report import render_html, sections, write_report
from clp_edge.report.blocks import Mark, Plot, Series
from clp_edge.report.headline import headline
from clp_edge.report.html import ABSENT, text
from clp_edge.report.style import DARK, LIGHT
from tests.report.large import large_report
from tests.report.sample import (
    DENSE,
    HEAL,
    HEALED,
    MODEL,
    SAMPLE,
    artifact,
    parts,
    quality,
    ratio,
    sample_report,
    with_decode,
)

EVIL = "\"><img src=x onerror=pwned=1> <script>pwned=2</script> $x$ {verdict} ]]>-->'"
VOID = {"meta", "br", "img", "link", "hr", "input"}
CLOSING = {"use", "path", "rect", "image"}


class Page(HTMLParser):
    """Every element with its attributes, and faults of nesting."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.words: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def evil_report() -> Report:
    """Markup in every string that a model or a user may choose."""
    evil = replace(HEALED, name=EVIL, path=EVIL, target=EVIL)
    bench = parts()["bench"]
    runs = (bench.runs[0], replace(bench.runs[1], artifact=EVIL, runtime=EVIL, target=EVIL))
    return large_report(
        command=f"clp-edge compress {EVIL}",
        model=replace(MODEL, source=EVIL.replace("/", "\\"), architecture=EVIL),
        artifacts=(DENSE, evil),
        quality={"tiny-dense": quality(20.0, 0.1, 0.9), EVIL: quality(30.0, 0.3, 0.7)},
        bench=replace(bench, device={"name": EVIL}, runs=runs, speedup=(), warnings=(EVIL,)),
        heal=replace(
            HEAL,
            method=EVIL,
            notes=(EVIL,),
            rungs=(RungRecord(EVIL, 0.7, 0.3, True, 1.0),),
        ),
        samples=(replace(SAMPLE, prompt=EVIL, dense=EVIL, healed=EVIL, healed_by=EVIL),),
        environment={EVIL: EVIL},
        warnings=(EVIL,),
    )


def test_markup_from_a_model_stays_text() -> None:
    document = render_html(evil_report())
    page = Page(document)
    assert page.faults == []
    assert page.open == []
    assert page.named("img") == page.named("script") == []
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    # Once in the SVG's labels, too: the name of the rung stands below its axis.
    assert document.count("&lt;script&gt;pwned=2&lt;/script&gt;") > 20
    label = re.search(r"<text [^>]*>[^<]*&lt;script&gt;[^<]*</text>", document)
    assert label is not None
    assert "$x$" in label[0]  # no formula


def test_a_drawing_escapes_its_axes_and_ticks() -> None:
    series = (Series(EVIL, (0.0, 1.0), (0.5, 0.4)),)
    plot = Plot(EVIL, EVIL, EVIL, series, marks=(Mark(EVIL, 0, 1),), ticks=(EVIL, "_hidden"))
    drawn = drawing.svg(plot, "k")
    assert drawn is not None
    page = Page(drawn)
    assert page.faults == []
    assert {tag for tag, _ in page.elements} <= {"svg", "g", "path", "text", "use", "defs",
                                                 "clippath", "rect"}  # fmt: skip
    assert page.words.count(EVIL) == 3
    assert "_hidden" in page.words
    assert (page.named("svg")[0]["aria-label"] or "").startswith(EVIL)


def test_unprintable_characters_do_not_reach_the_page() -> None:
    document = render_html(sample_report(samples=(replace(SAMPLE, healed="a\x00b\x1b[31mc"),)))
    assert "a\ufffdb\ufffd[31mc" in document
    text("half a pair: \ud800").encode("utf-8")


def test_the_structure_is_one_that_a_screen_reader_reads() -> None:
    page = Page(render_html(large_report()))
    assert page.faults == []
    assert page.named("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(cell.get("scope") in ("col", "row", "rowgroup") for cell in page.named("th"))
    assert all(one["role"] == "img" and one["aria-label"] for one in page.named("svg"))
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    links = {(found["href"] or "") for found in page.named("a")}
    assert links
    assert links <= {f"#{name}" for name in ids}
    used = {found["xlink:href"] for found in page.named("use")}
    assert used <= {f"#{name}" for name in ids}


def test_nothing_points_outside_and_nothing_may() -> None:
    document = render_html(large_report())
    page = Page(document)
    policy = [one["content"] for one in page.named("meta") if "http-equiv" in one]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "://" not in document
    assert page.named("link") == page.named("script") == page.named("img") == []


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render_html(large_report()) == render_html(large_report())


def test_the_verdict_comes_first_and_every_section_is_there() -> None:
    report = large_report()
    document = render_html(report)
    body = document[document.index("<body>") :]
    order = ["Would we ship it?", "What went", "What it costs", "What it gives", "<main>"]
    places = [body.index(words) for words in order]
    assert places == sorted(places)
    for heading in ("Before and after", "Which blocks went", "The exact command", "Environment"):
        assert f"<h2>{heading}</h2>" in body
    for title in ("KL of every window", "Where the gate went", "Rung by rung", "KL against size"):
        assert f"<figcaption>{title}</figcaption>" in body
    assert "chosen: blocks 12-17" in body
    assert "1.490 times the dense torch model&#x27;s (1.450 to 1.530)" in body


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("search", {"search": None}, "No search was part of this run."),
        ("heal", {"heal": None}, "Healing was not part of this run."),
        ("speed", {"bench": None}, "The speed was not measured."),
        ("files", {"artifacts": (), "bench": None}, "No file for a device was written."),
        ("samples", {"samples": ()}, "No text was generated in this run."),
        ("warnings", {"warnings": ()}, "There is nothing to mind."),
        ("costs", {"seconds": {}}, "The time of the stages was not measured."),
    ],
)
def test_a_missing_section_says_so(name: str, changes: dict[str, Any], said: str) -> None:
    page = Page(render_html(sample_report(**changes)))
    assert page.faults == []
    assert any(said in words for words in page.words)
    assert f"section-{name}" in [found.get("id") for found in page.named("section")]


def test_no_gate_and_no_tuning_are_said() -> None:
    document = render_html(sample_report())
    assert "The gate was not part of this search" in document
    assert "No tuning step was recorded." in document


def test_every_section_of_ours_that_may_be_absent_has_its_words() -> None:
    bare = sample_report(
        search=None, heal=None, bench=None, artifacts=(), samples=(), seconds={}, quality={}
    )
    silent = {name for name in SECTIONS.names() if not getattr(sections, name)(bare)}
    assert silent == set(ABSENT)


def test_without_matplotlib_the_numbers_stand_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = Page(render_html(large_report()))
    assert not any("open" in found for found in with_it.named("details"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    document = render_html(large_report())
    page = Page(document)
    assert page.named("svg") == []
    assert page.faults == []
    plots = page.named("figure")
    assert len(plots) == len(with_it.named("svg")) == 12
    assert [found.get("open", "closed") for found in page.named("details")] == [None] * 12
    assert "KL of every window: KL to dense (nats) against first block." in document


def test_numbers_that_are_no_numbers_leave_gaps() -> None:
    nan = float("nan")
    plot = Plot("t", "x", "y", (Series("s", (0.0, 1.0, 2.0), (None, nan, 2.0)),))
    drawn = drawing.svg(plot, "k")
    assert drawn is not None
    assert drawn.count("var(--series-1)") >= 1
    assert drawing.svg(Plot("t", "x", "y", (Series("s", (0.0,), (None,)),)), "k") is None
    assert drawing.data_table(plot).rows[1] == ("1", "not measured")


def test_a_wide_range_is_drawn_in_decades_without_formulas() -> None:
    plot = Plot("t", "x", "y", (Series("s", (0.0, 1.0, 2.0), (0.01, 1.0, 100.0)),))
    page = Page(drawing.svg(plot, "k") or "")
    assert {"0.01", "1", "100"} <= set(page.words)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lights = sorted((luminance(one), luminance(other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out(colours: dict[str, str]) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for ground in ("page", "card"):
        for name in ("ink", "muted", "yes", "no", "unsure", "link"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in (name for name in colours if name.startswith("series")):
        assert contrast(colours[name], colours["page"]) >= 4.5, name  # the legend's signs are text


def test_shipping_is_decided_by_what_was_measured() -> None:
    rival = artifact("tiny-dense-q3", "dense", 80 * 2**20, target="gguf-q3")
    known = parts()["quality"]
    files = (DENSE, HEALED, rival)

    def judged(perplexity: float, **changes: Any) -> tuple[str, str]:
        scores = {**known, "tiny-dense-q3": quality(perplexity, 0.2, 0.8)}
        found = headline(sample_report(artifacts=files, quality=scores, **changes))
        return found.ship, "; ".join(found.why)

    assert judged(35.0)[0] == "yes"
    ship, why = judged(25.0)
    assert (ship, "better at the same size" in why) == ("no", True)
    assert judged(35.0, bench=None) == ("not proven", "the speed was not measured")
    slow = with_decode(ratio(1.01, 0.98, 1.04, 1.15))
    assert judged(35.0, bench=slow) == ("not proven", "it is not measurably faster")
    found = headline(sample_report())
    assert found.ship == "not proven"
    assert "at equal size was not measured" in found.why[0]
    known["tiny-healed"] = quality(60.0, 1.0, 0.4)
    assert "a heavy loss" in judged(100.0)[1]
    unproved = headline(sample_report(artifacts=(DENSE, replace(HEALED, verified=False))))
    assert (unproved.ship, unproved.why) == ("no", ("tiny-healed did not pass verification",))


def test_the_page_is_written_beside_the_others(tmp_path: Path) -> None:
    paths = write_report(large_report(), tmp_path)
    assert [path.name for path in paths][1] == "report.html"
    assert paths[1].read_text(encoding="utf-8") == render_html(large_report())
