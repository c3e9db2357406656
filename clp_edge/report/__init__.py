"""The report: report.json (the contract), report.html, report.md, the card, a one-sentence verdict.

`sections` turns the record into blocks, and renderers draw blocks; all of them are pure functions
of `records.Report`, and only `files` writes.

>>> from clp_edge.records import ModelRecord
>>> model = ModelRecord("SmolLM2", "llama", blocks=30, parameters=134_515_008)
>>> report = build_report(command="clp-edge compress", model=model, seed=0)
>>> report.schema, report.bench
(1, None)
>>> [path.name for path in write_report(report, folder)]                    # doctest: +SKIP
['report.json', 'report.html', 'report.md', 'README.md']
"""

from clp_edge.report.card import render_card
from clp_edge.report.document import ReportError, build_report, parse_report, validate
from clp_edge.report.files import load_report, write_report
from clp_edge.report.html import render_html
from clp_edge.report.markdown import render_markdown
from clp_edge.report.summary import SummaryRow, summary_table
from clp_edge.report.verdict import verdict

__all__ = [
    "ReportError",
    "SummaryRow",
    "build_report",
    "load_report",
    "parse_report",
    "render_card",
    "render_html",
    "render_markdown",
    "summary_table",
    "validate",
    "verdict",
    "write_report",
]
