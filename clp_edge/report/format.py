"""How figures are written: units kept apart, n beside every interval, "not measured" for a null.

>>> ratio(1.1567), mib(92_500_000)
('1.16x', '88.2 MiB')
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from clp_edge.records import Span, SummaryRecord

NOT_MEASURED = "not measured"
USUAL_CONFIDENCE = 0.95


def number(value: float | None, digits: int = 3) -> str:
    """A figure with `digits` significant places, never with an exponent."""
    if value is None:
        return NOT_MEASURED
    if value == 0:
        return "0"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def fixed(value: float | None, places: int, unit: str = "") -> str:
    """A figure with a fixed number of decimals and its unit."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.{places}f}{' ' + unit if unit else ''}"


def perplexity(value: float | None) -> str:
    """One decimal, none from 1,000 up, two below 10."""
    if value is None:
        return NOT_MEASURED
    return fixed(value, 2 if value < 10 else 1 if value < 1000 else 0)


def ratio(value: float | None) -> str:
    """A quotient: "1.16x"."""
    return NOT_MEASURED if value is None else f"{value:.2f}x"


def mib(size: float | None) -> str:
    """Bytes as MiB (2^20)."""
    return NOT_MEASURED if size is None else f"{size / 2**20:,.1f} MiB"


def megabytes(size: float | None) -> str:
    """Bytes as MB (10^6)."""
    return NOT_MEASURED if size is None else f"{size / 1e6:,.1f} MB"


def percent(share: float | None) -> str:
    """A share of one as a percentage."""
    return NOT_MEASURED if share is None else f"{100 * share:.1f} %"


def interval(summary: SummaryRecord | None, places: int = 1, unit: str = "") -> str:
    """Median, interval and n: "61.2 tok/s (60.1 to 62.3, n 6)"; below 95 % how sure it is, too."""
    if summary is None:
        return NOT_MEASURED
    median = fixed(summary.median, places, unit)
    if summary.n < 2:
        return f"{median} (n 1)"
    low, high = fixed(summary.low, places), fixed(summary.high, places)
    confidence = summary.confidence
    weak = confidence if confidence is not None and confidence < USUAL_CONFIDENCE else None
    return f"{median} ({low} to {high}, {sureness(weak, summary.n)})"


def sureness(confidence: float | None, n: int) -> str:
    """What an interval attains, and of how many samples: "97 %, n 6"."""
    return f"n {n}" if confidence is None else f"{100 * confidence:.0f} %, n {n}"


def spread(value: float | None, error: float | None, n: int | None, text: str) -> str:
    """A mean with its standard error and n, where known; `text` is the formatted mean."""
    if value is None:
        return NOT_MEASURED
    parts = text
    if error is not None:
        parts += f" ± {number(error, 2)}"
    return f"{parts} (n {n})" if n and error is not None else parts


def blocks(segments: Sequence[Span], dropped: Sequence[int], total: int) -> str:
    """Which blocks go: "Blocks 12-17 (6 of 30)", several runs joined by "and"."""
    runs = [(part.first, part.last) for part in segments] or _runs(dropped)
    spans = [f"{first}-{last}" if first != last else f"{first}" for first, last in runs]
    count = sum(last - first + 1 for first, last in runs)
    joined = " and ".join([", ".join(spans[:-1]), spans[-1]] if len(spans) > 1 else spans)
    return f"{'Block' if count == 1 else 'Blocks'} {joined} ({count} of {total})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped and a line break becomes a blank."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _runs(ids: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for block in sorted(ids):
        if runs and block == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs
