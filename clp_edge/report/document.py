"""report.json, schema 1: built, checked, and the one source of everything else that is rendered.

Its keys are a contract with whoever reads the file: they may grow, not change. `validate` is called
before anything is written; a null means "not measured", never 0.

>>> validate({})                                                       # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
clp_edge.report.document.ReportError: the report is not of schema 1: schema is missing...
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import clp_edge
from clp_edge.errors import ClpEdgeError
from clp_edge.report.schema import Choice, ListOf, MapOf, Nullable, Record, problems
from clp_edge.report.verdict import verdict

SCHEMA = 1
_NUMBER = Nullable(float)
_SEGMENT = Record({"first": int, "last": int})
_TEST = Record({"prompt": int, "generate": int, "depth": int})
_SUMMARY = Record(
    {"median": float, "low": float, "high": float, "n": int},
    {"confidence": float},  # what the interval attains, not what was asked for
)
_RATIO = Record(
    {
        "before": float,
        "after": float,
        "median": float,
        "low": float,
        "high": float,
        "ideal": _NUMBER,
    },
    {"bounds": MapOf(float)},  # by what bounds the speed; "ideal" is the one of bytes
)
_METRICS = ("prefill_tps", "decode_tps", "ttft_ms")

_MODEL = Record({"source": str, "architecture": str, "blocks": int, "parameters": int})
_EVALUATION = Record(
    {
        "text": str,
        "sha256": str,
        "tokens": int,
        "sequence_length": int,
        "removed_as_leaked": int,
    }
)
_SEARCH = Record(
    {
        "method": str,
        "criterion": Nullable(Choice(("raw", "healed"))),
        "segments": ListOf(_SEGMENT),
        "dropped": ListOf(int),
        "kl_raw": _NUMBER,
        "kl_healed": _NUMBER,
        "windows": ListOf(
            Record({"first": int, "last": int, "kl_raw": _NUMBER, "kl_healed": _NUMBER})
        ),
        "regret": _NUMBER,
        "stability": _NUMBER,
        "forward_equivalents": _NUMBER,
        "seconds": float,
    },
    {"segment": _SEGMENT},
)
_HEAL = Record(
    {
        "method": str,
        "trained_blocks": ListOf(int),
        "kl_cut": _NUMBER,
        "kl_refit": _NUMBER,
        "kl_tuned": _NUMBER,
        "seconds": float,
    }
)
_QUALITY = Record(
    {
        "perplexity": _NUMBER,
        "perplexity_se": _NUMBER,
        "kl": _NUMBER,
        "kl_se": _NUMBER,
        "top1_agreement": _NUMBER,
        "tasks": dict,
    }
)
_ARTIFACT = Record(
    {
        "name": str,
        "target": str,
        "variant": Choice(("dense", "healed", "control")),
        "path": str,
        "bytes": int,
        "bits_per_weight": _NUMBER,
        "fallback_tensors": int,
        "sha256": str,
        "verified": bool,
        "verify": dict,
    }
)
_RUN = Record(
    {
        "artifact": str,
        "variant": str,
        "target": str,
        "runtime": str,
        "runtime_version": str,
        "backend": str,
        "test": _TEST,
        "status": Choice(("ok", "failed", "skipped")),
        "reason": Nullable(str),
        "prefill_tps": ListOf(float),
        "decode_tps": ListOf(float),
        "ttft_ms": ListOf(float),
        "summary": MapOf(_SUMMARY),
        "load_ms": _NUMBER,
        "peak_rss_mib": _NUMBER,
        "peak_gpu_mib": _NUMBER,
        "j_per_token": _NUMBER,
        "bytes_per_token": Nullable(int),
        "ideal_decode_tps": _NUMBER,
        "mbu": _NUMBER,
    }
)
_SPEEDUP = Record(
    {
        "target": str,
        "runtime": str,
        "test": _TEST,
        "before": str,
        "after": str,
        "confidence": float,
        "n": int,
        "prefill": _RATIO,
        "decode": _RATIO,
        "ttft": _RATIO,
    }
)
_BENCH = Record(
    {
        "device": dict,
        "settings": Record(
            {
                "threads": int,
                "batch": int,
                "rounds": int,
                "warmup_rounds": int,
                "power_mode": Nullable(str),
                "memory_bandwidth_gb_s": _NUMBER,
            }
        ),
        "runs": ListOf(_RUN),
        "speedup": ListOf(_SPEEDUP),
    },
    {"warnings": ListOf(str)},
)
REPORT = Record(
    {
        "schema": Choice((SCHEMA,)),
        "command": str,
        "version": str,
        "model": _MODEL,
        "seed": int,
        "verdict": str,
        "evaluation": Nullable(_EVALUATION),
        "search": Nullable(_SEARCH),
        "heal": Nullable(_HEAL),
        "quality": MapOf(_QUALITY),
        "artifacts": ListOf(_ARTIFACT),
        "bench": Nullable(_BENCH),
        "seconds": MapOf(float),
        "peak_memory_mib": MapOf(_NUMBER),
        "environment": dict,
    },
    {
        "samples": ListOf(
            Record(
                {"prompt": str, "dense": str, "healed": str},
                {"dense_by": str, "healed_by": str},  # the rows of `quality` that wrote them
            )
        ),
        "warnings": ListOf(str),
    },
)


class ReportError(ClpEdgeError):
    """A report departs from the contract."""


def build_report(
    *,
    command: str,
    model: Mapping[str, Any],
    seed: int,
    evaluation: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    heal: Mapping[str, Any] | None = None,
    quality: Mapping[str, Mapping[str, Any]] | None = None,
    artifacts: Sequence[Mapping[str, Any]] = (),
    bench: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    peak_memory_mib: Mapping[str, float | None] | None = None,
    environment: Mapping[str, Any] | None = None,
    samples: Sequence[Mapping[str, str]] = (),
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Put the parts together, add the verdict, and return a report that passed `validate`.

    Values become plain JSON: dataclasses to objects, paths to text, numpy scalars to numbers, NaN
    and infinity to null. Raises ReportError where a part departs from the contract.
    """
    report = plain(
        {
            "schema": SCHEMA,
            "command": command,
            "version": clp_edge.__version__,
            "model": model,
            "seed": seed,
            "verdict": "",
            "evaluation": evaluation,
            "search": search,
            "heal": heal,
            "quality": quality or {},
            "artifacts": artifacts,
            "bench": bench,
            "seconds": seconds or {},
            "peak_memory_mib": peak_memory_mib or {},
            "environment": environment or {},
            "samples": samples,
            "warnings": warnings,
        }
    )
    validate(report)
    report["verdict"] = verdict(report)
    return report


def validate(report: Mapping[str, Any]) -> None:
    """Raise ReportError, naming the first departures, unless the report keeps the contract."""
    found = list(problems(report, REPORT))
    if not found:
        found = list(_contradictions(report))
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ReportError(
            f"the report is not of schema {SCHEMA}: {', '.join(found[:5])}{more}",
            "if clp-edge wrote it, this is a mistake in clp-edge: please report it",
        )


def plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [plain(member) for member in value]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    item = getattr(value, "item", None)  # numpy scalars and arrays of one
    if not isinstance(value, float) and callable(item):
        return plain(item())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    raise ReportError(f"a report cannot hold a {type(value).__name__}")


def _contradictions(report: Mapping[str, Any]) -> list[str]:
    """What the shape alone does not show."""
    found = []
    names = [artifact["name"] for artifact in report["artifacts"]]
    if len(set(names)) != len(names):
        found.append("two artifacts have the same name")
    search = report["search"]
    if search is not None:
        cut = [i for s in search["segments"] for i in range(s["first"], s["last"] + 1)]
        if search["segments"] and sorted(cut) != sorted(search["dropped"]):
            found.append("search.dropped does not list the blocks of search.segments")
    bench = report["bench"] or {"runs": [], "speedup": []}
    measured = set()
    for index, run in enumerate(bench["runs"]):
        where = f"bench.runs[{index}]"
        if run["status"] != "ok":
            if not run["reason"]:
                found.append(f"{where} is {run['status']} without a reason")
            continue
        measured.add(run["artifact"])
        if len({len(run[name]) for name in _METRICS}) != 1:
            found.append(f"{where} has lists of different lengths")
        if missing := [name for name in _METRICS if name not in run["summary"]]:
            found.append(f"{where}.summary lacks {', '.join(missing)}")
    for index, pair in enumerate(bench["speedup"]):
        for side in ("before", "after"):
            if pair[side] not in measured:
                found.append(f"bench.speedup[{index}].{side} was not measured: {pair[side]!r}")
    return found
