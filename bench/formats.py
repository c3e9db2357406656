"""A bench as text for other programs: Markdown, CSV, JSON lines. One row an artifact and test.

The JSON of the whole record (`records.to_plain`) keeps each round's samples; these keep medians and
intervals. A figure that was not measured is empty in CSV, null in JSON lines and "not measured" in
Markdown: it is never 0.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from clp_edge.bench import costs
from clp_edge.bench.compare import Compared
from clp_edge.bench.outcome import METRICS
from clp_edge.records import BenchRecord, RunRecord, SpeedupRecord

FORMATS = ("table", "md", "json", "jsonl", "csv", "html")
NOT_MEASURED = "not measured"
HEADER = (
    "file",
    "runtime",
    "on",
    "test",
    "prefill t/s",
    "decode t/s",
    "first token ms",
    "load ms",
    "memory",
    "of ceiling",
    "J/token",
)


def flat_rows(record: BenchRecord) -> list[dict[str, Any]]:
    """A flat object for each artifact and test, with the device, the date and the versions."""
    shared = {
        "taken": record.taken,
        "device": record.device.get("name"),
        "power_mode": record.settings.power_mode,
        "threads": record.settings.threads,
        "cpus": None if record.settings.cpus is None else _ranges(record.settings.cpus),
        "rounds": record.settings.rounds,
        **{name.replace("-", "_"): version for name, version in record.versions.items()},
    }
    return [{**_of_run(run), **shared} for run in record.runs]


def _of_run(run: RunRecord) -> dict[str, Any]:
    found: dict[str, Any] = {
        "artifact": run.artifact,
        "variant": run.variant,
        "target": run.target,
        "runtime": run.runtime,
        "runtime_version": run.runtime_version,
        "backend": run.backend,
        "gpu_layers": run.gpu_layers,
        "layers": run.layers,
        "test": run.test.name,
        "n_prompt": run.test.prompt,
        "n_gen": run.test.generate,
        "n_depth": run.test.depth,
        "status": run.status,
        "reason": run.reason,
    }
    for name in METRICS:
        summary = run.summary.get(name)
        for part in ("median", "low", "high"):
            found[f"{name}_{part}"] = None if summary is None else getattr(summary, part)
    anything = next(iter(run.summary.values()), None)
    net = run.energy.net if run.energy is not None else None
    return {
        **found,
        "n": None if anything is None else anything.n,
        "confidence": None if anything is None else anything.confidence,
        "load_ms": run.load_ms,
        "peak_rss_mib": run.peak_rss_mib,
        "peak_gpu_mib": run.peak_gpu_mib,
        "j_per_token": run.j_per_token,
        "j_per_token_net": net.median if net is not None else None,
        "bytes_per_token": run.bytes_per_token,
        "ideal_decode_tps": run.ideal_decode_tps,
        "mbu": run.mbu,
    }


def as_csv(record: BenchRecord) -> str:
    """With a line of names."""
    rows = flat_rows(record)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_jsonl(record: BenchRecord) -> str:
    """One JSON object a line."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in flat_rows(record))
    return "".join(f"{line}\n" for line in lines)


def as_markdown(record: BenchRecord) -> str:
    """Tables of the runs and of the speed-ups, what they were taken on, and what to mind."""
    parts = [_markdown_table(HEADER, [run_cells(run) for run in record.runs])]
    if record.speedup:
        cells = [pair_cells(pair) for pair in record.speedup]
        parts.append(_markdown_table(PAIR_HEADER, cells))
    told = [conditions(record), *failures(record), *notes(record), *record.warnings]
    parts.append("".join(f"- {text}\n" for text in told))
    return "\n".join(parts)


def run_cells(run: RunRecord) -> tuple[str, ...]:
    """The row of a run under HEADER; a failed one says why where its figures would stand."""
    where = backend_words(run)
    if run.status != "ok":
        empty = ("-",) * (len(HEADER) - 5)
        return (run.artifact, run.runtime, where, run.test.name, f"failed: {run.reason}", *empty)
    figures = [run.summary.get(name) for name in METRICS]
    return (
        run.artifact,
        run.runtime,
        where,
        run.test.name,
        *(
            NOT_MEASURED if one is None else f"{one.median:.1f} ({one.low:.1f} to {one.high:.1f})"
            for one in figures
        ),
        _figure(run.load_ms, "{:.0f}"),
        _figure(run.peak_rss_mib, "{:.0f} MiB"),
        _figure(run.mbu, "{:.0%}"),
        _figure(run.j_per_token, "{:.3f}"),
    )


def backend_words(run: RunRecord) -> str:
    """Such as "CPU", or "CUDA (24 of 31 layers)"."""
    if run.gpu_layers:
        return f"{run.backend} ({run.gpu_layers} of {run.layers} layers)"
    return run.backend


PAIR_HEADER = ("after", "before", "test", "prefill", "decode", "ideal decode", "first token", "n")


def pair_cells(pair: SpeedupRecord) -> tuple[str, ...]:
    """The row of a speed-up under PAIR_HEADER."""
    ideal = pair.decode.ideal
    return (
        pair.after,
        pair.before,
        pair.test.name,
        *(
            f"{one.median:.3f}x ({one.low:.3f} to {one.high:.3f})"
            for one in (pair.prefill, pair.decode)
        ),
        "unknown" if ideal is None else f"{ideal:.3f}x",
        f"{pair.ttft.median:.3f}x ({pair.ttft.low:.3f} to {pair.ttft.high:.3f})",
        f"{pair.n} ({pair.confidence:.0%})",
    )


def conditions(record: BenchRecord) -> str:
    """What the numbers were taken on, in one line."""
    said = record.settings
    pinned = "not pinned" if said.cpus is None else f"pinned to processors {_ranges(said.cpus)}"
    parts = [
        str(record.device.get("name", "unknown device")),
        f"power mode {said.power_mode or 'unknown'}",
        f"{said.threads} threads, {pinned}",
        f"{said.warmup_rounds} warm-up rounds, {said.rounds} that count",
        *([f"{said.delay_s:g} s of cooling before each"] if said.delay_s else []),
        f"taken {record.taken or 'at an unknown time'}",
    ]
    return "; ".join(parts)


def failures(record: BenchRecord) -> list[str]:
    """Why rows failed, once for each artifact."""
    told = (f"{run.artifact}: {run.reason}" for run in record.runs if run.status != "ok")
    return list(dict.fromkeys(told))


def notes(record: BenchRecord) -> list[str]:
    """Why files were computed where they were, ratios far from their ideal, and what it cost."""
    where: dict[tuple[str, str], dict[str, None]] = {}
    for run in record.runs:
        if run.backend_reason:
            where.setdefault((backend_words(run), run.backend_reason), {})[run.artifact] = None
    told = [f"{', '.join(names)} on {on}: {why}" for (on, why), names in where.items()]
    odd = (beside_the_ideal(pair) for pair in record.speedup)
    return [*told, *(text for text in odd if text is not None), *costs.lines(record)]


# A measured decode speed-up within these of the ideal by bytes needs no word.
NEAR_THE_IDEAL = (0.90, 1.08)


def beside_the_ideal(pair: SpeedupRecord) -> str | None:
    """Why a decode speed-up is so far from what the bytes allow; None where it is near."""
    ideal, found = pair.decode.ideal, pair.decode
    if ideal is None or NEAR_THE_IDEAL[0] <= found.median / ideal <= NEAR_THE_IDEAL[1]:
        return None
    start = (
        f"{pair.after} against {pair.before}, {pair.test.name}: decode {found.median:.2f}x is "
        f"{found.median / ideal:.2f} of the ideal by bytes ({ideal:.2f}x)"
    )
    most = found.bounds.get("blocks")
    if found.low <= ideal <= found.high:
        return f"{start}; the interval ({found.low:.2f} to {found.high:.2f}) holds the ideal"
    if found.median < ideal:
        return f"{start}: what is not in the blocks (the head, barriers, launches) costs more"
    if most is not None and found.low > most:
        if found.low <= found.bounds.get("cache", 0.0):
            return (
                f"{start} and above what the blocks allow ({most:.2f}x): the processor's "
                "last-level cache holds a larger share of the smaller file, which can give up to "
                f"{found.bounds['cache']:.2f}x"
            )
        return (
            f"{start} and above the most that the blocks allow ({most:.2f}x): a mistake, or "
            "another load on the two files; measure again"
        )
    upper = "" if most is None else f", up to {most:.2f}x where the blocks alone are paid for"
    return f"{start}: more than memory bounds it here, such as multiplications and barriers{upper}"


COMPARED_HEADER = ("file", "runtime", "test", "what", "A", "B", "B over A", "sure", "so it")
COMPARED = (
    ("prefill", "prefill_tps", "t/s"),
    ("decode", "decode_tps", "t/s"),
    ("ttft", "ttft_ms", "ms"),
)


def compared_cells(row: Compared) -> Iterator[tuple[str, ...]]:
    """The rows, one a metric, of what two benches have in common, under COMPARED_HEADER."""
    names = row.artifact
    if row.other_artifact != row.artifact:
        names = f"{row.artifact} / {row.other_artifact}"
    for name, metric, unit in COMPARED:
        ratio = row.ratios.get(name)
        if ratio is None:
            continue
        yield (
            names,
            row.runtime,
            row.test,
            name,
            *(f"{side[metric]:.1f} {unit}" for side in (row.first, row.second)),
            f"{ratio.median:.3f}x ({ratio.low:.3f} to {ratio.high:.3f})",
            f"{ratio.confidence:.0%} at least",
            "differs" if ratio.differs else "may be the same",
        )


def _figure(value: float | None, how: str) -> str:
    return NOT_MEASURED if value is None else how.format(value)


def _ranges(cpus: Sequence[int]) -> str:
    """As the kernel writes them: 0-2,4."""
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return (
            "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |\n"
        )

    ruler = "|" + "---|" * len(header) + "\n"
    return line(header) + ruler + "".join(line(row) for row in rows)
