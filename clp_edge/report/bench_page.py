"""The page of a bench alone, or of two beside each other: one file, drawn as report.html is.

>>> bench_page(record, "clp-edge bench a.gguf b.gguf")[:15]                   # doctest: +SKIP
'<!DOCTYPE html>'
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import clp_edge
from clp_edge.bench import costs, formats
from clp_edge.bench.compare import Comparison
from clp_edge.records import BenchRecord, SpeedupRecord
from clp_edge.report.blocks import Block, Code, Heading, Items, Table, Text
from clp_edge.report.curves import speed_plots
from clp_edge.report.format import NOT_MEASURED
from clp_edge.report.html import page, text
from clp_edge.report.latency import latency_blocks
from clp_edge.report.sections import STATISTICS_NOTE

Section = tuple[str, Sequence[Block]]


def bench_page(record: BenchRecord, command: str) -> str:
    """Everything that a bench found, as one self-contained HTML document."""
    names = [run.artifact for run in record.runs]
    title = f"How fast: {', '.join(dict.fromkeys(names))}"
    top = "\n".join(f"<p>{text(_sentence(pair))}</p>" for pair in record.speedup)
    top = f'<div class="verdict">\n{top or f"<p>{text(_no_pair(record))}</p>"}\n</div>'
    sections = [
        _section("warnings", "Warnings", _listed(_warnings(record), "There is nothing to mind.")),
        ("speed", [Heading("Speed"), *_runs(record)]),
        _section("pairs", "Round by round", _pairs(record)),
        ("plots", [Heading("Plots"), *speed_plots(record.runs)]),
        _section("costs", "Energy, memory and heat", _costs(record)),
        _section("device", "The device", _device(record.device)),
        _section("method", "How each number was taken", [Items(tuple(_method(record)))]),
        _section("command", "The exact command", [Code(command)]),
    ]
    return _page(title, top, sections, "-o json and --append keep every sample")


def comparison_page(
    found: Comparison, benches: Sequence[tuple[str, BenchRecord]], command: str
) -> str:
    """Two benches (A and B, each with the name of its file) beside each other."""
    first, second = (name for name, _ in benches)
    rows = tuple(cells for row in found.rows for cells in formats.compared_cells(row))
    top = f'<div class="verdict">\n<p>A: {text(first)}<br>B: {text(second)}</p>\n'
    top += f"<p>{text(_sentence_case(found.note))}</p>\n</div>"
    sections = [
        _section("compared", "B over A", [Table(formats.COMPARED_HEADER, rows)]),
        _section(
            "differences",
            "What differs in how they were taken",
            _listed(found.differences, "Nothing that the records hold."),
        ),
        _section("unmatched", "Without a match", _listed(found.unmatched, "Nothing.")),
    ]
    for letter, (name, bench) in zip("AB", benches, strict=True):
        blocks = [Text(formats.conditions(bench), lead=f"{name}:"), *latency_blocks(bench.runs)]
        sections.append(_section(letter.lower(), f"{letter} alone", blocks))
    sections.append(_section("command", "The exact command", [Code(command)]))
    return _page("Two benches beside each other", top, sections, "made of two records")


def _page(title: str, top: str, sections: Sequence[Section], rest: str) -> str:
    version = clp_edge.__version__
    return page(title, top, sections, f"Made by clp-edge {version}; {rest}.", version)


def _section(name: str, title: str, blocks: Sequence[Block]) -> Section:
    return name, [Heading(title), *blocks]


def _listed(texts: Iterable[str], otherwise: str) -> list[Block]:
    found = tuple(texts)
    return [Items(found)] if found else [Text(otherwise)]


def _sentence_case(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"


def _sentence(pair: SpeedupRecord) -> str:
    ratio, ideal = pair.decode, pair.decode.ideal
    beside = "" if ideal is None else f"; the bytes alone would give {ideal:.2f}x"
    return (
        f"{pair.after} against {pair.before}, {pair.test.name}: decode {ratio.median:.2f}x "
        f"({ratio.low:.2f} to {ratio.high:.2f}{beside}), prefill {pair.prefill.median:.2f}x "
        f"({pair.prefill.low:.2f} to {pair.prefill.high:.2f}), time to first token "
        f"{pair.ttft.median:.2f}x ({pair.ttft.low:.2f} to {pair.ttft.high:.2f}); {pair.n} rounds, "
        f"intervals of {pair.confidence:.0%}."
    )


def _no_pair(record: BenchRecord) -> str:
    if all(run.status != "ok" for run in record.runs):
        return "No file could be measured."
    return "No dense and pruned file of one type and runtime were measured, so there is no ratio."


def _warnings(record: BenchRecord) -> list[str]:
    return [*formats.failures(record), *record.warnings]


def _runs(record: BenchRecord) -> Iterator[Block]:
    yield Text(f"{_sentence_case(formats.conditions(record))}")
    yield Table(formats.HEADER, tuple(formats.run_cells(run) for run in record.runs))


def _pairs(record: BenchRecord) -> list[Block]:
    if not record.speedup:
        return [Text(_no_pair(record))]
    rows = tuple(formats.pair_cells(pair) for pair in record.speedup)
    blocks: list[Block] = [Table(formats.PAIR_HEADER, rows)]
    # What the probes found has a section of its own.
    said = [one for one in formats.notes(record) if one not in costs.lines(record)]
    return [*blocks, *(_listed(said, "") if said else [])]


def _costs(record: BenchRecord) -> list[Block]:
    told = costs.lines(record)
    heat = record.heat
    if heat is None or not heat.after:
        told.append(f"temperature {NOT_MEASURED}: no source could be read")
    elif heat.throttled:
        told.append(f"slowed down by: {', '.join(heat.throttled)}")
    if not any(run.memory is not None for run in record.runs):
        told.append(f"memory by parts {NOT_MEASURED}")
    return _listed(told, "")


def _device(device: dict[str, Any]) -> list[Block]:
    rows: list[tuple[str, str]] = []
    unknown: list[str] = []
    for key, value in device.items():
        name = str(key).replace("_", " ")
        if value is None:  # the machine's files do not say
            unknown.append(name)
        elif isinstance(value, dict):
            rows += [(f"{name}: {part}", _plain(said)) for part, said in value.items()]
        else:
            rows.append((name, _plain(value)))
    blocks: list[Block] = [Table(("what", "value"), tuple(rows))] if rows else []
    if unknown or not rows:
        blocks.append(Text(f"Not known here: {', '.join(unknown) or 'the device'}."))
    return blocks


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(one) for one in value) or "none"
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


def _method(record: BenchRecord) -> Iterator[str]:
    yield STATISTICS_NOTE
    for said in (record.settings.timed, record.settings.memory, record.settings.energy):
        if said:
            yield _sentence_case(said)
    bandwidth = record.settings.memory_bandwidth_gb_s
    if bandwidth is None:
        yield f"Memory bandwidth {NOT_MEASURED}."
    else:
        yield f"Memory bandwidth {bandwidth:.1f} GB/s, measured here."
    for name, version in record.versions.items():
        yield f"{name} {version}"
