from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from clp_edge.errors import ClpEdgeError, PreflightError
from clp_edge.records import to_plain
from clp_edge.report import parse_report
from clp_edge.ui import LINE_EVERY_S, Ui
from tests.report.sample import SAMPLE, sample_report


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain_ui(**options) -> tuple[Ui, io.StringIO, io.StringIO, Clock]:
    out, err, clock = io.StringIO(), io.StringIO(), Clock()
    return Ui(stdout=out, stderr=err, clock=clock, **options), out, err, clock


def test_without_a_terminal_a_stage_is_a_few_plain_lines():
    ui, out, err, clock = plain_ui()
    with ui.stage(3, 8, "Search") as progress:
        for done in range(40):
            clock.now += 1.0
            progress(done, 40, f"window {done} of 40")
    assert out.getvalue() == ""
    assert err.getvalue().splitlines() == [
        "[3/8] Search ...",
        "[3/8] Search: 35 %, 15.0 s, window 14 of 40",
        "[3/8] Search: 72 %, 30.0 s, window 29 of 40",
        "[3/8] Search: done in 40.0 s",
    ]
    assert LINE_EVERY_S == 15.0


def test_a_stage_that_fails_says_so_and_lets_the_error_through():
    ui, _, err, clock = plain_ui()

    def fails() -> None:
        with ui.stage(1, 2, "Heal"):
            clock.now += 75.0
            raise ClpEdgeError("out of memory")

    with pytest.raises(ClpEdgeError):
        fails()
    assert err.getvalue().splitlines()[-1] == "[1/2] Heal: stopped after 1 min 15 s"


def test_quiet_keeps_results_and_complaints_only():
    ui, out, err, _ = plain_ui(quiet=True)
    with ui.stage(1, 2, "Heal") as progress:
        progress(1, 2, "x")
    ui.note("a remark")
    assert err.getvalue() == ""
    ui.warn("little memory")
    ui.report(sample_report(), Path("out"))
    assert err.getvalue() == "warning: little memory\n"
    assert "Blocks 12-17 (6 of 30) are gone" in out.getvalue()


def test_problems_are_one_line_with_the_cure():
    ui, out, err, _ = plain_ui()
    ui.problem(ClpEdgeError("the file\nis empty", "give one with text"))
    ui.problem(KeyError())
    assert err.getvalue() == "error: the file is empty; give one with text\nerror: KeyError\n"
    assert out.getvalue() == ""
    ui, _, err, _ = plain_ui()
    ui.problem(PreflightError([ClpEdgeError("a"), ClpEdgeError("b", "do c")]))
    assert err.getvalue().splitlines()[1:] == ["  - a", "  - b; do c"]


def test_text_in_brackets_is_text():
    ui, _, err, _ = plain_ui()
    ui.note("tensor [bold]blk[/bold] :smile: " + "x" * 300)
    assert err.getvalue() == "tensor [bold]blk[/bold] :smile: " + "x" * 300 + "\n"


def test_the_report_ends_with_files_and_the_verdict():
    ui, out, err, _ = plain_ui()
    sample = dataclasses.replace(SAMPLE, healed="two\nlines")
    report = sample_report(samples=[sample], warnings=["the machine was busy"])
    ui.report(report, Path("out"))
    lines = out.getvalue().splitlines()
    decode = next(line for line in lines if line.strip().startswith("decode"))
    assert "60.0 tok/s (59.0 to 61.0, n 6)" in decode
    assert "69.6 tok/s (68.6 to 70.6, n 6)" in decode
    assert "1.16x (1.12 to 1.20, 97 %, n 6; ideal 1.15x)" in decode
    energy = next(line for line in lines if "energy per token" in line)
    assert energy.count("not measured") == 2
    assert "  dense (dense): upon a time" in lines
    assert "  pruned (healed): two lines" in lines
    assert "mind: the machine was busy" in lines
    assert "wrote out/gguf/tiny-healed.gguf (verified)" in lines
    assert lines[-1] == report.verdict
    assert "\x1b" not in out.getvalue()
    assert err.getvalue() == ""


def test_json_leaves_stdout_to_one_document():
    ui, out, err, _ = plain_ui(json=True)
    report = sample_report()
    ui.report(report, Path("out"))
    ui.table("Methods", ("name",), [("gate",)])
    ui.result("nothing")
    with ui.stage(1, 1, "Search"):
        pass
    ui.print_json(report)
    assert json.loads(out.getvalue()) == to_plain(report)
    assert parse_report(out.getvalue()) == report
    assert "done in" in err.getvalue()


def test_a_table_holds_its_cells():
    ui, out, _, _ = plain_ui()
    ui.table("Methods", ("method", "KL"), [("gate", "0.72"), ("[exact]", "0.70")])
    text = out.getvalue()
    assert text.index("Methods") < text.index("method") < text.index("gate") < text.index("[exact]")


def test_a_terminal_gets_a_live_bar_with_the_note(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    err = Terminal()
    with Ui(stdout=io.StringIO(), stderr=err).stage(2, 5, "Calibrate") as progress:
        progress(1, 4, "sequence 1 of 4")
    text = err.getvalue()
    assert "sequence 1 of 4" in text
    assert "25%" in text
    assert "done in" in text
    assert "\x1b[" in text


def test_no_colour_is_honoured_and_nothing_is_coloured_without_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    ui, _, err, _ = plain_ui()
    ui.warn("x")
    assert err.getvalue() == "warning: x\n"
    monkeypatch.delenv("FORCE_COLOR")
    coloured, bare = Terminal(), Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    Ui(stderr=coloured, stdout=io.StringIO()).warn("x")
    monkeypatch.setenv("NO_COLOR", "1")
    Ui(stderr=bare, stdout=io.StringIO()).warn("x")
    assert "\x1b[33m" in coloured.getvalue()
    assert "\x1b[3" not in bare.getvalue()


def test_drawing_does_not_import_torch():
    code = "import sys, clp_edge.ui; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_narrow_encoding_does_not_end_the_run():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Ui(stdout=out, stderr=io.StringIO()).report(sample_report(), Path("out"))
    out.flush()
    assert b"23.1 ? 0.60" in raw.getvalue()
