"""report.html: the whole report in one file that asks for nothing else, not even a script.

`page` puts the verdict first, then every section's blocks. What a model or a user named is text and
never markup: everything goes through `text`. A policy in the page's head forbids what nobody wrote.

>>> text('<img src="x">')
'&lt;img src=&quot;x&quot;&gt;'
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, groupby

from clp_edge.records import Report
from clp_edge.registry import SECTIONS
from clp_edge.report import plots
from clp_edge.report.blocks import Answers, Block, Code, Heading, Items, Plot, Table, Text
from clp_edge.report.facts import model_name
from clp_edge.report.headline import Headline, headline
from clp_edge.report.style import STYLE

# What stands where a section of ours has nothing to show: the page never merely leaves it out.
ABSENT = {
    "warnings": ("Warnings", "There is nothing to mind."),
    "gate": ("The quality asked for", "No quality was asked for, so none was judged."),
    "tries": ("How much goes: every try", "How much goes was given, so nothing was tried."),
    "goal": ("The size or speed asked for", "No size and no speed was asked for."),
    "frontier": (
        "Dense and pruned at equal bytes",
        "Harder quantizations of the dense model were not measured; --frontier measures them.",
    ),
    "tasks": ("Tasks", "No questions were asked in this run."),
    "sanity": ("Does it still talk sense?", "The fixed prompts were not part of this run."),
    "cards": ("Block by block", "No block was cut."),
    "search": ("Which blocks went", "No search was part of this run."),
    "heal": ("How the cut was mended", "Healing was not part of this run."),
    "tradeoff": ("Quality against size and speed", "No file was written, so none was compared."),
    "files": ("Files", "No file for a device was written."),
    "samples": ("The same prompt, before and after", "No text was generated in this run."),
    "costs": ("What it cost", "The time of the stages was not measured."),
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# A table of more columns becomes cards on a phone.
COLUMNS_ON_A_PHONE = 3
SHIP = {"yes": "Yes", "no": "No", "not proven": "Not proven"}
# Control characters have no place in a page; neither has half a surrogate pair.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def render_html(report: Report) -> str:
    """The whole of report.html."""
    footer = f"Made by clp-edge {report.version} from report.json, which holds every sample."
    title = f"What clp-edge did to {model_name(report)}"
    top = _headline(headline(report), report.verdict)
    return page(title, top, list(_sections(report)), footer, report.version)


def page(
    title: str,
    top: str,
    sections: Sequence[tuple[str, Sequence[Block]]],
    footer: str,
    version: str,
) -> str:
    """A page that asks for nothing else: `top` is HTML, `sections` are names and blocks."""
    names = [(f"section-{name}", list(blocks)) for name, blocks in sections]
    links = "".join(
        f'<li><a href="#{name}">{text(blocks[0].text)}</a></li>'
        for name, blocks in names
        if isinstance(blocks[0], Heading)
    )
    keys = (f"plot-{number}" for number in count(1))
    drawn = "\n".join(
        f'<section id="{name}">\n{draw(blocks, keys)}\n</section>' for name, blocks in names
    )
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="generator" content="clp-edge {text(version)}">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{text(title)}</h1>
{top}
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{drawn}
</main>
<footer><p>{text(footer)}
</p></footer>
</body>
</html>
"""


def _sections(report: Report) -> Iterator[tuple[str, Sequence[Block]]]:
    """Name and blocks of every section; what is absent says so, the command stands near the end."""
    command: list[Block] = [Heading("The exact command"), Code(report.command)]
    for row in SECTIONS:
        if row.name == "environment":
            yield "command", command
        section: Callable[[Report], Sequence[Block] | None] = SECTIONS.load(row.name)
        blocks = section(report)
        if blocks:
            yield row.name, blocks
        elif row.name in ABSENT and not (row.name == "tradeoff" and report.frontier is not None):
            title, said = ABSENT[row.name]
            yield row.name, [Heading(title), Text(said)]


def _headline(found: Headline, verdict: str) -> str:
    kind = {"not proven": "unsure"}.get(found.ship, found.ship)
    tiles = "\n".join(
        f"<section>\n<h3>{title}</h3>\n{_list(items)}\n</section>"
        for title, items in (
            ("What went", found.went),
            ("What it costs", found.costs),
            ("What it gives", found.gives),
        )
    )
    return f"""\
<h2 class="hidden">The verdict</h2>
<div class="verdict {kind}">
<p class="ship">Would we ship it? <b>{SHIP[found.ship]}</b>: {text("; ".join(found.why))}.</p>
<p>{text(verdict)}</p>
</div>
<div class="tiles">
{tiles}
</div>"""


def text(value: str) -> str:
    """Any string as text of a page or of an attribute."""
    return html.escape(UNPRINTABLE.sub("\ufffd", value), quote=True)


def draw(blocks: Iterable[Block], keys: Iterator[str]) -> str:
    """The blocks as HTML; `keys` names the plots apart. Neighbouring plots share a row."""
    parts = []
    for together, group in groupby(blocks, key=lambda block: isinstance(block, Plot)):
        drawn = "\n".join(_draw(block, keys) for block in group)
        parts.append(f'<div class="plots">\n{drawn}\n</div>' if together else drawn)
    return "\n".join(parts)


def _draw(block: Block, keys: Iterator[str]) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{text(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return _paragraph(block)
    if isinstance(block, Items):
        return _list(block.items)
    if isinstance(block, Table):
        return _table(block, "Table")
    if isinstance(block, Plot):
        return _figure(block, next(keys))
    if isinstance(block, Answers):
        return _answers(block)
    return f"<pre><code>{text(block.text)}</code></pre>"


def _paragraph(block: Text) -> str:
    lead = f"<strong>{text(block.lead)}</strong> " if block.lead else ""
    if block.style == "quote":
        return f'<blockquote dir="auto">{text(block.text)}</blockquote>'
    said = text(block.text)
    return f"<p>{lead}{f'<strong>{said}</strong>' if block.style == 'strong' else said}</p>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"


def _answers(block: Answers) -> str:
    said = "\n".join(
        f'<div>\n<h3>{text(side)} <span class="muted">({text(by)})</span></h3>\n'
        f'<blockquote dir="auto">{text(words)}</blockquote>\n</div>'
        for side, by, words in block.said
    )
    return f"""\
<div class="answers">
<p><strong>Prompt</strong></p>
<blockquote dir="auto">{text(block.prompt)}</blockquote>
<div class="beside">
{said}
</div>
</div>"""


def _table(block: Table, name: str) -> str:
    """Header cells have a scope; the roles outlive the cards that a phone makes of the rows."""
    header = block.header
    cells = [
        f'<th scope="col" role="columnheader">{text(cell) or _hidden("figure")}</th>'
        for cell in header
    ]
    rows = []
    for heading, group in block.groups():
        rows.append('<tbody role="rowgroup">')
        if heading:
            rows.append(
                f'<tr role="row"><th scope="rowgroup" role="rowheader" colspan="{len(header)}">'
                f"{text(heading)}</th></tr>"
            )
        rows += [_row(header, row) for row in group]
        rows.append("</tbody>")
    many = len(header) > COLUMNS_ON_A_PHONE
    stack = " compact" if block.compact else " stack" if many else ""
    label = text(f"{name}: {', '.join(cell for cell in header if cell)}")
    body = "\n".join(rows)
    return f"""\
<div class="wide{stack}" role="region" tabindex="0" aria-label="{label}">
<table role="table">
<thead role="rowgroup"><tr role="row">{"".join(cells)}</tr></thead>
{body}
</table>
</div>"""


def _row(header: Sequence[str], row: Sequence[str]) -> str:
    first, *rest = row
    cells = "".join(
        f'<td role="cell" data-label="{text(label)}">{text(cell)}</td>'
        for label, cell in zip(header[1:], rest, strict=True)
    )
    return f'<tr role="row"><th scope="row" role="rowheader">{text(first)}</th>{cells}</tr>'


def _hidden(words: str) -> str:
    return f'<span class="hidden">{words}</span>'


def _figure(plot: Plot, key: str) -> str:
    """The drawing, its legend and its numbers; without matplotlib the numbers alone, open."""
    drawing = plots.svg(plot, key)
    numbers = _table(plots.data_table(plot), plot.title)
    opened = ' open class="only"' if drawing is None else ""
    return f"""\
<figure id="{key}">
<figcaption>{text(plot.title)}</figcaption>
{drawing or f"<p>{text(plots.alt_text(plot))}</p>"}
{_legend(plot) if drawing else ""}
<details{opened}><summary>The numbers{_hidden(f" of: {text(plot.title)}")}</summary>
{numbers}
</details>
</figure>"""


def _legend(plot: Plot) -> str:
    if len(plot.series) == 1 and not plot.marks:
        return ""
    entries = [
        (f"var(--series-{index % plots.SERIES_COLOURS + 1})", plots.sign(index), series.name)
        for index, series in enumerate(plot.series)
    ]
    entries += [("var(--ink)", plots.MARK_SIGN, mark.name) for mark in plot.marks]
    drawn = "".join(
        f'<li><span style="color: {colour}" aria-hidden="true">{sign}</span> {text(name)}</li>'
        for colour, sign, name in entries
    )
    return f'<ul class="legend">{drawn}</ul>'
