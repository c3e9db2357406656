"""report.md: the report for people, every figure with what is needed to believe it.

>>> from clp_edge.report.document import build_report
>>> model = {"source": "SmolLM2", "architecture": "llama", "blocks": 30, "parameters": 134_515_008}
>>> report = build_report(command="clp-edge compress", model=model, seed=0)
>>> render_markdown(report).splitlines()[0]
'# What clp-edge did to SmolLM2'
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import PurePath
from typing import Any

from clp_edge.report import format as write
from clp_edge.report.format import NOT_MEASURED
from clp_edge.report.summary import HEADER, sequences, summary_table

# How many candidate windows are listed; all of them are in report.json.
WINDOWS_SHOWN = 8
STATISTICS_NOTE = (
    "Medians, each between two order statistics that hold the true one with 95 % confidence or "
    "more, unless less is shown; the change is the median of the per-round ratios. "
    "Above 1 is faster, for the time to first token too."
)
MEMORY_NOTE = (
    "Peak memory is the peak resident set of the process that ran the file. Weights are mapped "
    "from the file, so the pages it touched are counted, and are page cache at the same time."
)


def render_markdown(report: Mapping[str, Any]) -> str:
    """The whole of report.md."""
    parts = [
        f"# What clp-edge did to {model_name(report)}",
        f"**{report['verdict']}**",
        f"    {report['command']}",
        *_warnings(report),
        "## Before and after",
        summary_markdown(report),
        _evaluation(report),
        *_search(report),
        *_heal(report),
        *_artifacts(report),
        *_bench(report),
        *_samples(report),
        *_costs(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_markdown(report: Mapping[str, Any]) -> str:
    """The one table, a heading row for each group."""
    lines: list[tuple[str, ...]] = []
    for group, rows in groupby(summary_table(report), key=lambda row: row.group):
        lines.append((f"**{group}**", "", "", ""))
        lines += [(row.label, row.before, row.after, row.change) for row in rows]
    return write.table(HEADER, lines) if lines else "Nothing was measured."


def model_name(report: Mapping[str, Any]) -> str:
    """The short name of the source: the last part of its path, without ".gguf"."""
    name = PurePath(report["model"]["source"]).name or report["model"]["source"]
    return name.removesuffix(".gguf")


def _warnings(report: Mapping[str, Any]) -> list[str]:
    texts = all_warnings(report)
    return ["## Warnings", "\n".join(f"- {text}" for text in texts)] if texts else []


def all_warnings(report: Mapping[str, Any]) -> list[str]:
    """The run's own warnings, the bench's, and what failed or fell back."""
    bench = report["bench"] or {"runs": [], "warnings": []}
    texts = [*report.get("warnings", []), *bench.get("warnings", [])]
    for run in bench["runs"]:
        if run["status"] != "ok":
            texts.append(f"{run['artifact']} was not timed ({run['status']}): {run['reason']}")
    for artifact in report["artifacts"]:
        if not artifact["verified"]:
            texts.append(f"{artifact['name']} did not pass verification")
        if artifact["fallback_tensors"]:
            texts.append(
                f"{artifact['name']}: {artifact['fallback_tensors']} tensors are not in the type "
                "asked for, since their rows do not divide; "
                f"{write.fixed(artifact['bits_per_weight'], 2)} bits per weight in fact"
            )
    return list(dict.fromkeys(texts))


def _evaluation(report: Mapping[str, Any]) -> str:
    evaluation = report["evaluation"]
    if evaluation is None:
        return "Quality was not measured."
    n = sequences(report)
    return (
        f"Quality on {evaluation['text']} (sha256 {evaluation['sha256'][:12]}): "
        f"{evaluation['tokens']:,} tokens in {n} sequences of {evaluation['sequence_length']}, "
        f"{evaluation['removed_as_leaked']} removed because they were in the calibration text. "
        "± is one standard error over sequences. KL is to the dense model before quantization."
    )


def _search(report: Mapping[str, Any]) -> list[str]:
    search = report["search"]
    if search is None:
        return []
    gone = write.blocks(search["segments"], search["dropped"], report["model"]["blocks"])
    facts = [
        f"{gone}: chosen by {search['method']}",
        f"judged by {search['criterion'] or 'nothing'} KL",
        f"regret {write.number(search['regret'])}",
        f"stability {write.number(search['stability'])}",
        f"{write.number(search['forward_equivalents'])} forward equivalents",
        f"{write.fixed(search['seconds'], 1)} s",
    ]
    parts = ["## Which blocks went", ", ".join(facts) + "."]
    key = "kl_healed" if search["criterion"] == "healed" else "kl_raw"
    judged = [window for window in search["windows"] if window[key] is not None]
    if judged:
        best = sorted(judged, key=lambda window: window[key])[:WINDOWS_SHOWN]
        rows = [
            (
                f"{window['first']}-{window['last']}",
                write.fixed(window["kl_raw"], 3),
                write.fixed(window["kl_healed"], 3),
            )
            for window in best
        ]
        parts.append(write.table(("blocks", "KL of the cut", "KL after the refit"), rows))
        parts.append(f"The best {len(best)} of {len(judged)} windows; all are in report.json.")
    return parts


def _heal(report: Mapping[str, Any]) -> list[str]:
    heal = report["heal"]
    if heal is None:
        return []
    trained = ", ".join(str(block) for block in heal["trained_blocks"]) or "none"
    rows = [
        ("cut", write.fixed(heal["kl_cut"], 3)),
        ("closed-form refit", write.fixed(heal["kl_refit"], 3)),
        ("tuned", write.fixed(heal["kl_tuned"], 3)),
    ]
    return [
        "## How the cut was mended",
        f"Method: {heal['method']}; blocks trained (ids of the dense model): {trained}; "
        f"{write.fixed(heal['seconds'], 1)} s.",
        write.table(("step", "KL to dense"), rows),
    ]


def _artifacts(report: Mapping[str, Any]) -> list[str]:
    if not report["artifacts"]:
        return []
    rows = [
        (
            artifact["name"],
            artifact["variant"],
            artifact["target"],
            artifact["path"],
            f"{write.mib(artifact['bytes'])} ({write.megabytes(artifact['bytes'])})",
            write.fixed(artifact["bits_per_weight"], 2),
            "yes" if artifact["verified"] else "NO",
            artifact["sha256"][:12],
        )
        for artifact in report["artifacts"]
    ]
    header = ("file", "what", "target", "path", "size", "bits/weight", "verified", "sha256")
    return ["## Files", write.table(header, rows)]


def _bench(report: Mapping[str, Any]) -> list[str]:
    bench = report["bench"]
    if bench is None:
        return ["## Speed", "The speed was not measured."]
    settings, device = bench["settings"], bench["device"]
    rows = []
    for run in bench["runs"]:
        test, summary = run["test"], run["summary"]
        rows.append(
            (
                run["artifact"],
                f"{run['runtime']} {run['runtime_version']}, {run['backend']}",
                f"{test['prompt']}+{test['generate']} at {test['depth']}",
                write.interval(summary.get("prefill_tps")),
                write.interval(summary.get("decode_tps")),
                write.interval(summary.get("ttft_ms")),
                write.fixed(run["load_ms"], 0),
                write.fixed(run["peak_rss_mib"], 1),
                write.mib(run["bytes_per_token"]),
                write.percent(run["mbu"]),
            )
        )
    header = (
        "file",
        "runtime",
        "prompt+generate at depth",
        "prefill tok/s",
        "decode tok/s",
        "first token ms",
        "load ms",
        "peak memory MiB",
        "read per token",
        "share of bandwidth",
    )
    bandwidth = settings["memory_bandwidth_gb_s"]
    facts = [
        str(device.get("name") or device.get("cpu_model") or "unknown device"),
        f"{settings['threads']} threads",
        f"batch {settings['batch']}",
        f"{settings['warmup_rounds']} warm-up rounds, then {settings['rounds']} that count, "
        "all files in each round in a random order",
        f"power mode {settings['power_mode'] or 'unknown'}",
        "memory bandwidth "
        + (NOT_MEASURED if bandwidth is None else f"{write.fixed(bandwidth, 1)} GB/s"),
    ]
    return [
        "## Speed",
        "; ".join(facts) + ".",
        write.table(header, rows),
        f"{STATISTICS_NOTE} {MEMORY_NOTE}",
    ]


def _samples(report: Mapping[str, Any]) -> list[str]:
    samples = report.get("samples", [])
    if not samples:
        return []
    parts = ["## The same prompt, before and after"]
    for sample in samples:
        lines = [("Prompt", "prompt"), ("Dense", "dense"), ("Pruned", "healed")]
        for title, key in lines:
            by = f" ({sample[f'{key}_by']})" if f"{key}_by" in sample else ""
            parts.append(f"**{title}**{by}\n\n{_quote(sample[key])}")
    return parts


def _costs(report: Mapping[str, Any]) -> list[str]:
    if not report["seconds"]:
        return []
    memory = report["peak_memory_mib"]
    rows = [
        (stage, f"{seconds:,.1f}", write.fixed(memory.get(stage), 0))
        for stage, seconds in report["seconds"].items()
    ]
    parts = ["## What it cost", write.table(("stage", "seconds", "peak memory MiB"), rows)]
    environment = [f"{key} {value}" for key, value in report["environment"].items()]
    if environment:
        parts.append(
            f"clp-edge {report['version']}, seed {report['seed']}; {', '.join(environment)}."
        )
    return parts


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.strip().splitlines() or [""])
