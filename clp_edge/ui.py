"""The only module that draws: results to stdout, progress and complaints to stderr.

On a terminal a stage is a live bar with the time it took and the time it needs; without one it is a
line at its start, a line at its end with the measured seconds, and in between at most one every
quarter of a minute, so that a log stays readable. No colour without a terminal, none with NO_COLOR.

    ui = Ui()
    with ui.stage(3, 8, "Search") as progress:
        find_segment(..., progress=progress)
    ui.report(report, out_dir)
"""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as LiveBar
from rich.table import Table
from rich.text import Text

from clp_edge.errors import PreflightError
from clp_edge.progress import Progress, silent
from clp_edge.records import Report, to_plain
from clp_edge.report import blocks as block_kinds
from clp_edge.report.blocks import Block
from clp_edge.report.facts import all_warnings
from clp_edge.report.summary import summary_block

# Without a terminal: never more than one progress line in so many seconds.
LINE_EVERY_S = 15.0
# Wide enough for the summary: a log is not folded to 80 columns.
PLAIN_WIDTH = 160
SAMPLE_CHARACTERS = 400


class Ui:
    """Draws for one command. `quiet`: results and complaints; `json`: stdout holds JSON alone."""

    def __init__(
        self,
        quiet: bool = False,
        json: bool = False,
        *,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quiet = quiet
        self.json = json
        self._out = _console(stdout or sys.stdout)
        self._err = _console(stderr or sys.stderr)
        self._clock = clock

    @contextmanager
    def stage(self, number: int, total: int, title: str) -> Iterator[Progress]:
        """Draw a numbered stage; gives the callback that moves its bar."""
        if self.quiet:
            yield silent
            return
        name = f"[{number}/{total}] {title}"
        start = self._clock()
        ended = "stopped after"
        try:
            if self._err.is_terminal:
                with self._bar() as bar:
                    yield _Moving(bar, name)
            else:
                self._say(f"{name} ...")
                yield _Lines(name, self._say, self._clock)
            ended = "done in"
        finally:
            self._say(f"{name}: {ended} {duration(self._clock() - start)}")

    def note(self, text: str) -> None:
        """A remark for who watches; silent with `quiet`."""
        if not self.quiet:
            self._say(text)

    def warn(self, text: str) -> None:
        """Something that may spoil the result; said even with `quiet`."""
        self._say(f"warning: {text}", style="yellow")

    def problem(self, error: BaseException) -> None:
        """The cause and the cure in one line (one line each for a list of problems)."""
        if isinstance(error, PreflightError):
            text = str(error)
        else:
            text = " ".join(str(error).split()) or type(error).__name__
        self._say(f"error: {text}", style="bold red")

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of results on stdout; nothing with `json`."""
        if self.json:
            return
        drawn = Table(
            box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False
        )
        for column in header:
            drawn.add_column(Text(column))
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        self._draw(drawn)

    def result(self, text: str, *, style: str | None = None) -> None:
        """A line of results on stdout, never folded; nothing with `json`."""
        if not self.json:
            self._out.print(Text(text, style=style or ""), soft_wrap=True)

    def blocks(self, blocks: Iterable[Block]) -> None:
        """Blocks of a report on stdout; nothing with `json`. Of a plot its table, if it has one."""
        for block in blocks:
            if isinstance(block, block_kinds.Plot):
                if block.table is not None:
                    self._grouped(block.table)
            elif isinstance(block, block_kinds.Table):
                self._grouped(block)
            elif isinstance(block, block_kinds.Items):
                for item in block.items:
                    self.result(f"- {item}")
            elif isinstance(block, block_kinds.Text):
                text = f"{block.lead} {block.text}".strip()
                self.result(text, style="bold" if block.style == "strong" else None)
            elif isinstance(block, block_kinds.Answers):
                self.result(f"Prompt: {_one_line(block.prompt)}", style="bold")
                for side, by, text in block.said:
                    self.result(f"  {side} ({by}): {_one_line(text)}")
            else:
                bold = isinstance(block, block_kinds.Heading)
                self.result(block.text, style="bold" if bold else None)

    def report(self, report: Report, out_dir: Path) -> None:
        """The end of a run: the one table, text before and after, what to mind, files, verdict."""
        self.blocks([summary_block(report)])
        for sample in report.samples:
            self.result(f"Prompt: {_one_line(sample.prompt)}", style="bold")
            self.result(f"  dense ({sample.dense_by}): {_one_line(sample.dense)}")
            self.result(f"  pruned ({sample.healed_by}): {_one_line(sample.healed)}")
            self.result("")
        for text in all_warnings(report):
            self.result(f"mind: {text}", style="yellow")
        for artifact in report.artifacts:
            if artifact.variant == "healed":
                state = "verified" if artifact.verified else "NOT VERIFIED"
                self.result(f"wrote {out_dir / artifact.path} ({state})")
        self.result(f"wrote {out_dir / 'report.html'}, report.md, report.json, README.md")
        self.result("")
        self.result(report.verdict, style="bold")

    def print_json(self, document: Any) -> None:
        """One JSON document on stdout, as it is: a record, or plain values."""
        text = json_module.dumps(to_plain(document), indent=2, ensure_ascii=False, allow_nan=False)
        self._out.file.write(text + "\n")
        self._out.file.flush()

    def _grouped(self, table: block_kinds.Table) -> None:
        if self.json:
            return
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in table.header:
            drawn.add_column(Text(column))
        for heading, rows in table.groups():
            if heading:
                drawn.add_row(Text(heading, style="bold"))
            for label, *cells in rows:
                first = f"  {label}" if heading else label
                drawn.add_row(*(Text(cell) for cell in (first, *cells)))
            drawn.add_section()
        self._draw(drawn)

    def _draw(self, drawn: Table) -> None:
        if self._out.is_terminal:
            self._out.print(drawn)
            return
        with self._out.capture() as captured:
            self._out.print(drawn)
        for line in captured.get().splitlines():
            self.result(line.rstrip())

    def _say(self, text: str, style: str | None = None) -> None:
        self._err.print(Text(text, style=style or ""), soft_wrap=True)

    def _bar(self) -> LiveBar:
        return LiveBar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._err,
            transient=True,
        )


class _Moving:
    """Moves a live bar."""

    def __init__(self, bar: LiveBar, name: str) -> None:
        self.bar = bar
        self.task = bar.add_task(name, total=None, note="")

    def __call__(self, done: float, total: float, note: str = "") -> None:
        self.bar.update(self.task, completed=done, total=total or None, note=note)


class _Lines:
    """Says a line now and then."""

    def __init__(self, name: str, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self.name, self.say, self.clock = name, say, clock
        self.start = self.last = clock()

    def __call__(self, done: float, total: float, note: str = "") -> None:
        now = self.clock()
        if now - self.last < LINE_EVERY_S or done >= total > 0:
            return
        self.last = now
        share = f"{100 * done / total:.0f} %, " if total > 0 else ""
        said = f", {note}" if note else ""
        self.say(f"{self.name}: {share}{duration(now - self.start)}{said}")


def _console(stream: TextIO) -> Console:
    # FORCE_COLOR must not colour a file: whether the stream is a terminal alone decides.
    terminal = stream.isatty()
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a "±" must not end a run on a C locale
    return Console(
        file=stream,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        width=None if terminal else PLAIN_WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
    )


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= SAMPLE_CHARACTERS else f"{joined[:SAMPLE_CHARACTERS]} ..."
