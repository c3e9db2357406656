"""What a section of the report is made of: headings, text, lists, tables, plots, code.

A section says what stands there; how it looks is a renderer's business (`markdown.draw`,
`Ui.blocks`). Everything in a block is text already, apart from the numbers of a plot.

>>> Table(("block", "KL"), (("dense",), ("3", "0.20"))).groups()
[('dense', (('3', '0.20'),))]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Heading:
    """Level 1 is the title of the document, 2 that of a section."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph, with `lead` in bold before it. "quote": another's words, line by line."""

    text: str
    lead: str = ""
    style: Literal["plain", "strong", "quote"] = "plain"


@dataclass(frozen=True)
class Items:
    """A list without an order."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as the header has; a row of one cell heads the group below it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    compact: bool = False
    """many rows of short cells: it stays a table on a phone too"""

    def groups(self) -> list[tuple[str, tuple[tuple[str, ...], ...]]]:
        """(heading, its rows) one after another; the rows before any heading come under ""."""
        found: list[tuple[str, list[tuple[str, ...]]]] = []
        for row in self.rows:
            if len(row) == 1 < len(self.header):
                found.append((row[0], []))
                continue
            if not found:
                found.append(("", []))
            found[-1][1].append(row)
        return [(heading, tuple(rows)) for heading, rows in found]


@dataclass(frozen=True)
class Code:
    """Text to be copied as it is: a command, a program."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Series:
    """One line (or row of points) of a plot; a None is a gap. `low` and `high`, where there are
    any, are the ends of an interval for each point.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    labels: tuple[str, ...] = ()
    """a name for each point, drawn beside it"""
    style: Literal["", "line", "points"] = ""
    """"": as the plot's kind"""

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y), len(self.low or self.y), len(self.high or self.y)}
        lengths |= {len(self.labels or self.y)}
        if len(lengths) != 1:
            raise ValueError(f"the series {self.name!r} has lists of different lengths")


@dataclass(frozen=True)
class Mark:
    """A place or a stretch of one axis with a name, such as the choice that was made."""

    name: str
    first: float
    last: float
    axis: Literal["x", "y"] = "x"


@dataclass(frozen=True)
class Plot:
    """Numbers for the renderers that can draw; the others show `table`, or nothing."""

    title: str
    x: str
    """what the axis shows, with its unit"""
    y: str
    series: tuple[Series, ...]
    kind: Literal["line", "points"] = "line"
    table: Table | None = None
    marks: tuple[Mark, ...] = ()
    ticks: tuple[str, ...] = ()
    """names of x = 0, 1, 2 and so on, where they are no numbers"""


@dataclass(frozen=True)
class Answers:
    """A prompt and what several made of it, to be read beside one another."""

    prompt: str
    said: tuple[tuple[str, str, str], ...]
    """(side, the row of `quality` that wrote it, its text)"""


Block = Heading | Text | Items | Table | Plot | Answers | Code
