"""Two benches beside each other: two devices, or two days.

They were not measured in the same rounds, so nothing cancels: the ratio is that of two medians, and
its interval is that of two intervals divided by each other, low by high and high by low. If each
holds its median with confidence 1 - a and 1 - b, the ratio's holds with 1 - a - b at least
(Bonferroni). It is far wider than a paired one, and it can say nothing of what else differed: every
setting that did is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clp_edge.bench.outcome import SPEEDUPS
from clp_edge.records import BenchRecord, RunRecord

UNPAIRED = (
    "unpaired: the two were not measured in the same rounds, so heat, load and drift between them "
    "are in the ratio; only files of one bench are compared round by round"
)


@dataclass(frozen=True)
class UnpairedRatio:
    """Second over first, above 1 is faster; `low` to `high` with `confidence` at least."""

    median: float
    low: float
    high: float
    confidence: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.low <= 1.0 <= self.high


@dataclass(frozen=True)
class Compared:
    """One artifact and test that both benches have."""

    artifact: str
    other_artifact: str
    runtime: str
    test: str
    first: dict[str, float]
    """metric -> median in the first bench"""
    second: dict[str, float]
    ratios: dict[str, UnpairedRatio]
    """prefill, decode, ttft"""


@dataclass(frozen=True)
class Comparison:
    """What two benches have in common, what differs in how they were taken, what has no match."""

    rows: tuple[Compared, ...]
    differences: tuple[str, ...]
    unmatched: tuple[str, ...]
    note: str = UNPAIRED


def compare(first: BenchRecord, second: BenchRecord) -> Comparison:
    """Match by artifact, runtime and test; else by variant, target, runtime and test."""
    left = [run for run in first.runs if run.status == "ok"]
    right = [run for run in second.runs if run.status == "ok"]
    rows, taken = [], set[int]()
    unmatched = []
    for run in left:
        index = next(_matches(run, right, taken), None)
        if index is None:
            unmatched.append(f"only in the first: {_words(run)}")
            continue
        taken.add(index)
        rows.append(_compared(run, right[index]))
    unmatched += [
        f"only in the second: {_words(run)}" for i, run in enumerate(right) if i not in taken
    ]
    for which, record in (("first", first), ("second", second)):
        unmatched += [
            f"failed in the {which}: {_words(run)}: {run.reason}"
            for run in record.runs
            if run.status != "ok"
        ]
    return Comparison(tuple(rows), tuple(_differences(first, second)), tuple(unmatched))


def _matches(run: RunRecord, others: list[RunRecord], taken: set[int]) -> Iterator[int]:
    keys = (
        lambda one: (one.artifact, one.runtime, one.test),
        lambda one: (one.variant, one.target, one.runtime, one.test),
    )
    for key in keys:
        found = [i for i, o in enumerate(others) if i not in taken and key(o) == key(run)]
        # By kind alone only where there is no choice: two dense files of a type are not the same.
        if len(found) == 1 or (found and key is keys[0]):
            yield found[0]


def _words(run: RunRecord) -> str:
    return f"{run.artifact} in {run.runtime}, {run.test.name}"


def _compared(first: RunRecord, second: RunRecord) -> Compared:
    ratios = {}
    for name, (metric, lower_is_better) in SPEEDUPS.items():
        a, b = first.summary.get(metric), second.summary.get(metric)
        if a is None or b is None:
            continue
        up, down = (a, b) if lower_is_better else (b, a)
        doubt = 2.0 - (a.confidence or 0.0) - (b.confidence or 0.0)
        ratios[name] = UnpairedRatio(
            up.median / down.median, up.low / down.high, up.high / down.low, max(0.0, 1.0 - doubt)
        )
    medians = [{name: s.median for name, s in run.summary.items()} for run in (first, second)]
    return Compared(
        artifact=first.artifact,
        other_artifact=second.artifact,
        runtime=first.runtime,
        test=first.test.name,
        first=medians[0],
        second=medians[1],
        ratios=ratios,
    )


def _differences(first: BenchRecord, second: BenchRecord) -> Iterator[str]:
    """How they were taken, wherever that is not the same."""
    one, two = first.settings, second.settings
    facts = [
        ("device", first.device.get("name"), second.device.get("name")),
        ("processor", first.device.get("cpu_model"), second.device.get("cpu_model")),
        ("operating system", first.device.get("os"), second.device.get("os")),
        ("kernel", first.device.get("kernel"), second.device.get("kernel")),
        ("power mode", one.power_mode, two.power_mode),
        ("taken", first.taken, second.taken),
        ("threads", one.threads, two.threads),
        ("processors", one.cpus, two.cpus),
        ("rounds", one.rounds, two.rounds),
        ("delay, s", one.delay_s, two.delay_s),
        ("waiting of threads", one.waiting, two.waiting),
        (
            "busy share before, after the wait",
            _share(one.busy_share_after_wait),
            _share(two.busy_share_after_wait),
        ),
        *(
            (f"version of {name}", first.versions.get(name), second.versions.get(name))
            for name in sorted(first.versions.keys() | second.versions.keys())
        ),
    ]
    runtimes = [
        {run.runtime: (run.runtime_version, run.backend, run.gpu_layers) for run in record.runs}
        for record in (first, second)
    ]
    facts += [
        (f"{name} (version, backend, GPU layers)", runtimes[0][name], runtimes[1][name])
        for name in sorted(runtimes[0].keys() & runtimes[1].keys())
    ]
    for name, a, b in facts:
        if a != b:
            yield f"{name}: {_said(a)} and {_said(b)}"


def _share(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _said(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, tuple):
        return ", ".join("none" if one is None else str(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items()) or "the default"
    return str(value)
