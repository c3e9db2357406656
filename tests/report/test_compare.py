"""Two runs side by side, and reports that are read from files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clp_edge.cli import app
from clp_edge.errors import UsageError
from clp_edge.records import to_plain
from clp_edge.report import load_report, render_html, write_report
from clp_edge.report.compare import side_by_side
from tests.report.sample import MODEL, TARGET, parts, quality, sample_report


def table(*changes: dict) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    reports = [sample_report(**one) for one in changes]
    names = [chr(ord("a") + index) for index in range(len(reports))]
    header, rows = side_by_side(reports, names)
    assert all(len(row) == len(header) for row in rows)
    assert len({row[0] for row in rows}) == len(rows)
    return header, {label: tuple(cells) for label, *cells in rows}


def test_each_figure_stands_beside_the_other_run_s() -> None:
    worse = {**parts()["quality"], "tiny-healed": quality(40.0, 0.5, 0.6)}
    header, rows = table({}, {"quality": worse, "heal": None, "bench": None})
    assert header == ("", "a", "b")
    assert rows[f"{TARGET}: perplexity"] == (
        "29.8 ± 0.60 (n 32) [1.29x]",
        "40.0 ± 0.60 (n 32) [1.73x]",
    )
    assert rows[f"{TARGET}: decode"][1] == "not measured"
    assert rows["heal"] == ("endpoints", "not in this run")
    assert rows["went"] == ("Blocks 12-17 (6 of 30)",) * 2
    assert rows["mind"][0].startswith("not the same machine:")


def test_the_ratio_is_paired_over_the_sequences_of_the_same_text() -> None:
    nll = tuple(3.0 + 0.5 * math.sin(n) for n in range(32))
    known = parts()["quality"]

    def with_nll(shift: float) -> dict:
        row = tuple(value + shift for value in nll)
        return {**known, "tiny-healed": replace(known["tiny-healed"], sequence_nll=row)}

    _, rows = table({"quality": with_nll(0.0)}, {"quality": with_nll(math.log(1.1))})
    label = f"{TARGET}: perplexity over a's, paired"
    assert rows[label] == ("1", "1.100 (1.100 to 1.100, n 32)")
    assert "mind" not in rows
    other = replace(parts()["evaluation"], sha256="ef" * 32)
    _, rows = table({"quality": with_nll(0.0)}, {"quality": with_nll(0.1), "evaluation": other})
    assert label not in rows  # other text: no pairs
    assert "measured on" in rows["mind"][0]


def test_a_target_of_one_run_alone_is_said_to_be_missing_in_the_other() -> None:
    _, rows = table({}, {"artifacts": (), "bench": None})
    assert rows[f"{TARGET}: file size"] == ("84.0 MiB [-16.0 %]", "not in this run")
    _, rows = table({}, {"model": replace(MODEL, source="another.gguf")})
    assert "not the same model" in rows["mind"][0]


def test_a_file_that_is_no_report_is_the_user_s_mistake(tmp_path: Path) -> None:
    foreign = tmp_path / "report.json"
    for document in (b"", b"[]", b'{"schema": 7}', b"\x00\xff", b'{"name": "package"}'):
        foreign.write_bytes(document)
        with pytest.raises(UsageError, match=r"is no report of clp-edge: .*; give the output"):
            load_report(tmp_path)


def test_a_report_of_an_older_version_of_the_schema_still_renders(tmp_path: Path) -> None:
    """Without every key that came later; tests/report/test_document.py pins the first ones."""
    plain = to_plain(sample_report())
    for key in ("samples", "warnings"):
        del plain[key]
    for key in ("rungs", "history", "notes", "parts", "ridge", "explained"):
        del plain["heal"][key]
    for key in ("gate", "rivals", "reason", "gap", "gap_se", "near_tie", "tokens"):
        del plain["search"][key]
    for row in plain["quality"].values():
        for key in [key for key in row if key.startswith(("ppl_", "kl_m", "kl_9", "sequence"))]:
            del row[key]
    (tmp_path / "report.json").write_text(json.dumps(plain))
    report = load_report(tmp_path / "report.json")
    assert "No text was generated in this run." in render_html(report)
    write_report(report, tmp_path)
    assert load_report(tmp_path) == report


def invoke(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["report", *words])
    return result.exit_code, result.stdout, result.stderr


def test_the_page_is_made_anew_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(sample_report(), tmp_path)
    page = tmp_path / "report.html"
    page.unlink()
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)) or len(opened) < 2)
    code, out, _ = invoke(str(tmp_path), "--open")
    assert (code, opened) == (0, [page.resolve().as_uri()])
    assert f"wrote {page}, report.md, report.json, README.md" in out
    assert page.read_text(encoding="utf-8") == render_html(sample_report())
    code, _, err = invoke(str(tmp_path / "report.json"), "--open")
    assert (code, "no browser could be opened" in err) == (0, True)


def test_two_runs_stand_side_by_side_on_the_command_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(sample_report(), tmp_path / name)
    both = (str(tmp_path / "a"), str(tmp_path / "b"))
    code, out, _ = invoke(*both)
    assert code == 0
    assert f"{TARGET}: decode" in out
    code, out, err = invoke(*both, "--open")
    assert (code, out) == (2, "")
    assert "--open shows one report; give one folder" in err
    (tmp_path / "b" / "report.json").write_text("{}")
    code, out, err = invoke(*both)
    assert (code, out) == (2, "")
    assert "is no report of clp-edge" in err
    assert "Traceback" not in err
