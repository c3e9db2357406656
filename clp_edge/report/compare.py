"""Two runs (or more) side by side: the pruned side of each, and what forbids comparing them.

Where the runs measured the same text, sequence by sequence, the ratio of their perplexities is
paired over the sequences, which tells apart what two perplexities and their errors do not.

>>> side_by_side([report, report], ["a", "b"])[0]                            # doctest: +SKIP
('', 'a', 'b')
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from clp_edge.records import QualityRecord, Report
from clp_edge.report import format as write
from clp_edge.report.facts import model_quality, pairs
from clp_edge.report.format import NOT_MEASURED
from clp_edge.report.headline import headline
from clp_edge.report.summary import MODEL_GROUP, SummaryRow, summary_table

ABSENT = "not in this run"

FACTS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("model", lambda report: report.model.source),
    ("went", lambda report: headline(report).went[0]),
    ("search", lambda report: report.search.method if report.search else ABSENT),
    ("heal", lambda report: report.heal.method if report.heal else ABSENT),
    ("measured on", lambda report: _text(report)),
    ("machine", lambda report: _machine(report)),
    ("seed", lambda report: str(report.seed)),
    ("would we ship it", lambda report: headline(report).ship),
)
# Facts that have to be the same for the figures below them to mean the same.
SAME = ("model", "measured on", "machine")


def side_by_side(
    reports: Sequence[Report], names: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header ("" and the names) and rows of as many cells, all text.

    First what each run did, then every line of its table: the figure of the pruned side and, in
    brackets, its change from the dense one; last a row "mind" where the runs differ in what the
    figures depend on.
    """
    rows = [(label, *(fact(report) for report in reports)) for label, fact in FACTS]
    differ = [row[0] for row in rows if row[0] in SAME and len(set(row[1:])) > 1]
    tables = [{(row.group, row.label): row for row in summary_table(one)} for one in reports]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    groups = dict.fromkeys(group for group, _ in keys)
    for group in groups:
        for key in (key for key in keys if key[0] == group):
            rows.append((f"{group}: {key[1]}", *(_cell(table.get(key)) for table in tables)))
        ratio = _paired(reports, group)
        if ratio:
            rows.append((f"{group}: perplexity over {names[0]}'s, paired", "1", *ratio))
    if differ:
        said = f"not the same {', '.join(differ)}: these figures cannot be compared directly"
        rows.append(("mind", said, *[""] * (len(reports) - 1)))
    return ("", *names), rows


def _cell(row: SummaryRow | None) -> str:
    if row is None:
        return ABSENT
    return f"{row.after} [{row.change}]" if row.change and row.change != NOT_MEASURED else row.after


def _paired(reports: Sequence[Report], group: str) -> list[str]:
    """The ratio of each later run to the first; empty where not a single one can be taken."""
    sides = [_quality(report, group) for report in reports]
    first = sides[0].sequence_nll if sides[0] else ()
    found = []
    for report, side in zip(reports[1:], sides[1:], strict=True):
        other = side.sequence_nll if side else ()
        if not first or len(other) != len(first) or _text(report) != _text(reports[0]):
            found.append(NOT_MEASURED)
            continue
        from clp_edge.evaluate.intervals import perplexity_ratio

        ratio = perplexity_ratio(first, other)
        around = (
            f" ({write.fixed(ratio.low, 3)} to {write.fixed(ratio.high, 3)}, n {ratio.n})"
            if math.isfinite(ratio.low) and math.isfinite(ratio.high)
            else ""
        )
        found.append(f"{write.fixed(ratio.value, 3)}{around}")
    return found if any(one != NOT_MEASURED for one in found) else []


def _quality(report: Report, group: str) -> QualityRecord | None:
    if group == MODEL_GROUP:
        return model_quality(report)[1]
    return next((pair.quality_after for pair in pairs(report) if pair.target == group), None)


def _text(report: Report) -> str:
    evaluation = report.evaluation
    if evaluation is None:
        return NOT_MEASURED
    return (
        f"{evaluation.text} ({evaluation.sha256[:12]}), {evaluation.tokens:,} tokens in sequences "
        f"of {evaluation.sequence_length}"
    )


def _machine(report: Report) -> str:
    if report.bench is None:
        return NOT_MEASURED
    device = report.bench.device
    name = str(device.get("name") or device.get("cpu_model") or "unknown device")
    return f"{name}, {report.bench.settings.threads} threads"
