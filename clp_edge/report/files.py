"""The report's files: written each whole or not at all (PITFALLS 25), and read again."""

from __future__ import annotations

from pathlib import Path

from clp_edge.durable import write_text
from clp_edge.errors import UsageError
from clp_edge.records import Report, encode
from clp_edge.report.card import render_card
from clp_edge.report.document import ReportError, parse_report, validate
from clp_edge.report.html import render_html
from clp_edge.report.markdown import render_markdown


def write_report(report: Report, out_dir: Path) -> list[Path]:
    """Write report.json, report.html, report.md and README.md; returns their paths.

    Nothing is written unless the report is valid and all of them could be rendered. Raises
    ReportError, or ClpEdgeError when the folder cannot be written.
    """
    report = validate(report)
    texts = {
        "report.json": encode(report).decode(),
        "report.html": render_html(report),
        "report.md": render_markdown(report),
        "README.md": render_card(report),
    }
    for name, text in texts.items():
        write_text(out_dir / name, text)
    return [out_dir / name for name in texts]


def load_report(path: Path) -> Report:
    """The report of a finished run: of its output folder, or of the report.json itself.

    Raises UsageError where there is none, or where the file is none of ours.
    """
    file = path / "report.json" if path.is_dir() else path
    cure = "give the output folder of a finished clp-edge compress, or its report.json"
    try:
        document = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}", cure) from error
    try:
        return parse_report(document)
    except ReportError as error:
        raise UsageError(f"{file} is no report of clp-edge: {error.cause}", cure) from error
