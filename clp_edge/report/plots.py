"""Plots as inline SVG, drawn by matplotlib where it is installed (the extra "report").

Colours are CSS variables of the page, so that one drawing serves light, dark and paper. Text stays
text. The same plot gives the same bytes: no date, no random ids; every id carries the plot's key,
since a page holds several drawings. Names of series and marks are not in the drawing but in the
page's legend (`html`), where they wrap on a phone.

>>> alt_text(Plot("Tuning", "step", "KL", (Series("held back", (0.0, 9.0), (0.4, 0.3)),)))
'Tuning: KL against step. held back: 2 points, lowest 0.3 at 9, highest 0.4 at 0.'
"""

from __future__ import annotations

import io
import math
import re
import warnings
from html import escape
from typing import Any

from clp_edge.report.blocks import Mark, Plot, Series, Table
from clp_edge.report.style import LIGHT

# Drawn in these, which stand for the page's variables: matplotlib knows no CSS.
PLACEHOLDERS = {"#010101": "var(--ink)", "#010102": "var(--muted)", "#010103": "var(--line)"}
INK, MUTED, LINE = PLACEHOLDERS
SERIES_COLOURS = 6
PLACEHOLDERS |= {f"#01020{n}": f"var(--series-{n})" for n in range(1, SERIES_COLOURS + 1)}
# A series is told by its marker and its dashes too: not everybody sees, or prints, colours.
MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"))
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
MARK_SIGN = "┆"
# In points; on a phone a point is about a pixel, on a desktop one and a half.
SIZE = (372.0, 232.0)
FONT = 10.5
LEGEND_LINE = 15.0
# Beyond so many points a line carries only a few markers.
MARKED_POINTS = 40
MARKERS_ON_A_LINE = 6
# A wider range than this is drawn on a logarithmic axis.
LOG_RANGE = 50.0
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "clp-edge",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it: the same layout everywhere
    "font.size": FONT,
    "axes.unicode_minus": False,
}


def svg(plot: Plot, key: str) -> str | None:
    """The plot as an <svg> element whose ids begin with `key`; None without matplotlib.

    A series without a finite point is left out; None, too, where none is left.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not any(_finite(series) for series in plot.series):
        return None
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that the layout font lacks: the browser has them
        figure = Figure(figsize=(SIZE[0] / 72, SIZE[1] / 72), layout="constrained")
        _draw(figure.add_subplot(), plot)
        written = io.StringIO()
        figure.savefig(
            written,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _for_page(written.getvalue(), key, alt_text(plot))


def standalone(plot: Plot) -> str | None:
    """The plot as a file of its own: in the light colours, its title and its names below it.

    None where `svg` is.
    """
    drawn = svg(plot, "plot")
    if drawn is None:
        return None
    _, body = drawn.split(">", 1)
    width, height = SIZE
    names = [
        (f"var(--series-{index % SERIES_COLOURS + 1})", f"{sign(index)} {series.name}")
        for index, series in enumerate(plot.series)
    ]
    names += [("var(--muted)", f"{MARK_SIGN} {mark.name}") for mark in plot.marks]
    rows = [("var(--ink)", plot.title), *names]
    lines = "".join(
        f'<text x="8" y="{height + LEGEND_LINE * row:g}" fill="{colour}">{escape(name)}</text>'
        for row, (colour, name) in enumerate(rows, start=1)
    )
    whole = height + LEGEND_LINE * (len(names) + 1.6)
    colours = "".join(f"--{name}:{colour};" for name, colour in LIGHT.items())
    style = f"svg{{{colours}background:var(--page)}}text{{font:{FONT}px sans-serif}}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {whole:g}" role="img" aria-label="{escape(alt_text(plot))}">'
        f"<style>{style}</style>{body.replace('</svg>', lines + '</svg>')}\n"
    )


def alt_text(plot: Plot) -> str:
    """What the plot shows, for those who do not see it."""
    said = [f"{plot.title}: {plot.y} against {plot.x}."]
    for series in plot.series:
        points = _finite(series)
        if not points:
            said.append(f"{series.name}: not measured.")
            continue
        (low_x, low), (high_x, high) = (end(points, key=lambda p: p[1]) for end in (min, max))
        if len(points) == 1:
            said.append(f"{series.name}: {number(low)} at {_x_name(plot, low_x)}.")
            continue
        said.append(
            f"{series.name}: {len(points)} points, lowest {number(low)} at "
            f"{_x_name(plot, low_x)}, highest {number(high)} at {_x_name(plot, high_x)}."
        )
    said += [f"Marked: {mark.name}." for mark in plot.marks]
    return " ".join(said)


def data_table(plot: Plot) -> Table:
    """The numbers of the plot: a column a series where all share their x, else a row a point."""
    shared = {series.x for series in plot.series}
    plain = not any(series.low or series.high for series in plot.series)
    if len(shared) == 1 and plain:
        (places,) = shared
        rows = tuple(
            (_x_name(plot, x), *(number(series.y[index]) for series in plot.series))
            for index, x in enumerate(places)
        )
        return Table((plot.x, *(series.name for series in plot.series)), rows)
    header: tuple[str, ...] = ("series", plot.x, plot.y)
    rows = tuple(
        (
            _point_name(series, index),
            _x_name(plot, x),
            number(y),
            *(() if plain else (_span(series, index),)),
        )
        for series in plot.series
        for index, (x, y) in enumerate(zip(series.x, series.y, strict=True))
    )
    return Table(header if plain else (*header, "interval"), rows)


def number(value: float | None) -> str:
    """Up to five significant places; "not measured" for none."""
    if value is None or not math.isfinite(value):
        return "not measured"
    return f"{value:.5g}" if abs(value) < 100_000 else f"{value:,.0f}"


def sign(index: int) -> str:
    """The marker of a series as a character, for the legend."""
    return MARKERS[index % len(MARKERS)][1]


def _point_name(series: Series, index: int) -> str:
    return f"{series.name} {series.labels[index]}" if series.labels else series.name


def _span(series: Series, index: int) -> str:
    low = series.low[index] if series.low else None
    high = series.high[index] if series.high else None
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def _x_name(plot: Plot, x: float) -> str:
    if plot.ticks and x == int(x) and 0 <= int(x) < len(plot.ticks):
        return " ".join(plot.ticks[int(x)].split())
    return number(x)


def _finite(series: Series) -> list[tuple[float, float]]:
    return [
        (x, y)
        for x, y in zip(series.x, series.y, strict=True)
        if y is not None and math.isfinite(y) and math.isfinite(x)
    ]


def _draw(axes: Any, plot: Plot) -> None:
    for index, series in enumerate(plot.series):
        _draw_series(axes, plot, series, index)
    for mark in plot.marks:
        _draw_mark(axes, mark)
    _scale(axes, plot)
    axes.set_xlabel(plot.x, color=INK)
    axes.set_ylabel(plot.y, color=INK)
    axes.tick_params(which="both", color=MUTED, labelcolor=INK)
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(MUTED)
        spine.set_visible(side in ("left", "bottom"))


def _draw_series(axes: Any, plot: Plot, series: Series, index: int) -> None:
    colour = f"#01020{index % SERIES_COLOURS + 1}"
    points = _finite(series)
    values = [math.nan if y is None else y for y in series.y]
    marker = MARKERS[index % len(MARKERS)][0]
    line, many = (series.style or plot.kind) == "line", len(points) > MARKED_POINTS
    dashes = DASHES[index % len(DASHES)]
    axes.plot(
        series.x,
        values,
        color=colour,
        linestyle=dashes if line else "none",
        linewidth=1.6,
        marker=marker,
        markevery=max(1, len(points) // MARKERS_ON_A_LINE) if line and many else None,
        # a line among points runs through them and hides none
        markersize=2 if series.style == "line" else 4.5 if len(points) > 1 else 7,
        markeredgewidth=0,
    )
    for place, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
        if series.labels and y is not None:
            axes.annotate(
                series.labels[place],
                (x, y),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=INK,
            )
        low = series.low[place] if series.low else None
        high = series.high[place] if series.high else None
        if y is not None and low is not None and high is not None:
            axes.plot([x, x], [low, high], color=colour, linewidth=1.1)


def _draw_mark(axes: Any, mark: Mark) -> None:
    line, band = (axes.axvline, axes.axvspan) if mark.axis == "x" else (axes.axhline, axes.axhspan)
    if mark.first == mark.last:
        line(mark.first, color=INK, linewidth=1.2, linestyle=(0, (2, 2)))
    else:
        band(mark.first, mark.last, color=MUTED, alpha=0.25, linewidth=0)


def _scale(axes: Any, plot: Plot) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    points = [point for series in plot.series for point in _finite(series)]
    heights = [y for _, y in points]
    heights += [y for series in plot.series for y in (*series.low, *series.high) if y is not None]
    plain = FuncFormatter(lambda value, _: f"{value:,.6g}")
    if min(heights) > 0 and max(heights) / min(heights) > LOG_RANGE:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif min(heights) >= 0:
        axes.set_ylim(0, 1.06 * max(heights) or 1)  # 0 is what the eye compares with
    axes.yaxis.set_major_formatter(plain)
    if plot.ticks:
        axes.set_xticks(range(len(plot.ticks)), list(plot.ticks))
        axes.set_xlim(-0.4, len(plot.ticks) - 0.6)
        return
    whole = all(x == int(x) for x, _ in points)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=whole))
    axes.xaxis.set_major_formatter(plain)


def _for_page(document: str, key: str, label: str) -> str:
    """Only the <svg> element, ids made its own, placeholders made variables, inside tags alone."""
    document = re.sub(r"<!--.*?-->", "", document, flags=re.DOTALL)
    document = document[document.index("<svg") :]
    view = re.search(r'viewBox="([^"]*)"', document)
    assert view is not None  # matplotlib writes one
    body = document[document.index(">") + 1 :]
    for element in ("metadata", "style"):
        body = re.sub(rf"<{element}[^>]*>.*?</{element}>", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _own(tag.group(), key), body)
    body = re.sub(r"\n\s*", "\n", body).strip()
    said = escape(label)
    return f'<svg class="plot" viewBox="{view.group(1)}" role="img" aria-label="{said}">\n{body}'


def _own(tag: str, key: str) -> str:
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)  # nothing refers to groups
    tag = re.sub(r'\bid="', f'id="{key}-', tag)
    tag = re.sub(r'(url\(#|href="#)', rf"\g<1>{key}-", tag)
    tag = tag.replace("'DejaVu Sans', ", "").replace("'DejaVu Sans'", "sans-serif")
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)  # a hundredth of a point is finer than any screen
    return re.sub(r"#010[12]0\d", lambda found: PLACEHOLDERS.get(found[0], found[0]), tag)
