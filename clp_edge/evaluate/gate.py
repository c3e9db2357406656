"""A quality that was asked for, judged on the record of the file that ships.

What was not measured does not pass: a gate that lets an unknown through is none.

>>> gate = QualityGate(max_ppl_ratio=1.2)
>>> gate.failures(record)                                                    # doctest: +SKIP
('perplexity is 1.46 times the dense model\\'s (1.43 to 1.50), and at most 1.2 was asked for',)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from clp_edge.errors import UsageError
from clp_edge.records import (
    GateVerdictRecord,
    QualityRecord,
    SanityRecord,
    TaskRecord,
    from_plain,
)

SANITY = "sanity"
LEAST_KL = 1e-6
"""nats; a limit that allows less allows nothing"""


@dataclass(frozen=True)
class QualityGate:
    """The limits; None is no limit. Judged by the measured value, which the message gives with its
    interval."""

    max_ppl_ratio: float | None = None
    max_kl: float | None = None
    """nats"""
    min_retention: float | None = None
    """chance-corrected, of every task's own metric, 1 is all"""

    def __post_init__(self) -> None:
        limits = (
            ("--max-ppl-ratio", self.max_ppl_ratio),
            ("--max-kl", self.max_kl),
            ("--min-retention", self.min_retention),
        )
        for flag, limit in limits:
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise UsageError(f"{flag} {limit:g} is no limit", "give a number above 0")
        if self.min_retention is not None and self.min_retention > 1:
            raise UsageError(
                f"--min-retention {self.min_retention:g} asks for more than the dense model has",
                "give a share between 0 and 1, such as 0.9",
            )

    @property
    def wanted(self) -> bool:
        """Whether there is any limit."""
        return (self.max_ppl_ratio, self.max_kl, self.min_retention) != (None, None, None)

    def failures(self, record: QualityRecord) -> tuple[str, ...]:
        """What is not reached, one plain sentence each; empty where all is."""
        return (*self._ratio(record), *self._kl(record), *self._retention(record))

    def judge(self, files: Mapping[str, QualityRecord]) -> GateVerdictRecord:
        """What each of the files that ship misses."""
        return GateVerdictRecord(
            max_ppl_ratio=self.max_ppl_ratio,
            max_kl=self.max_kl,
            min_retention=self.min_retention,
            misses={name: self.failures(record) for name, record in files.items()},
        )

    @property
    def allowed_kl(self) -> float:
        """The KL (nats) at which the strictest limit should be reached; infinite without a limit.

        On text of the dense model's own distribution the mean NLL rises by exactly the KL, so a
        perplexity ratio is exp(KL). For retention, exp(-KL) is no more than a place to begin.
        """
        limits = [math.inf if self.max_kl is None else self.max_kl]
        if self.max_ppl_ratio is not None:
            limits.append(math.log(self.max_ppl_ratio))
        if self.min_retention is not None:
            limits.append(-math.log(self.min_retention))
        return max(min(limits), LEAST_KL)

    def share(self, record: QualityRecord) -> float:
        """How much of what is allowed the file uses up: at most 1 where it passes, of several
        limits the worst; infinite where something was not measured."""
        shares = [0.0]
        if self.max_ppl_ratio is not None:
            ratio = record.ppl_ratio
            lost = math.inf if ratio is None or ratio <= 0 else math.log(ratio)
            shares.append(_part(lost, math.log(self.max_ppl_ratio)))
        if self.max_kl is not None:
            shares.append(math.inf if record.kl is None else _part(record.kl, self.max_kl))
        if self.min_retention is not None:
            kept = retention_of(record)
            lost = math.inf if kept is None or kept <= 0 else -math.log(kept)
            shares.append(_part(lost, -math.log(self.min_retention)))
        # the sentences decide, the share only says by how much
        return max([*shares, 1.0 + LEAST_KL]) if self.failures(record) else min(max(shares), 1.0)

    def _ratio(self, record: QualityRecord) -> tuple[str, ...]:
        limit, value = self.max_ppl_ratio, record.ppl_ratio
        if limit is None or (value is not None and value <= limit):
            return ()
        if value is None:
            return ("the perplexity ratio was not measured",)
        around = _interval(record.ppl_ratio_low, record.ppl_ratio_high)
        return (
            f"perplexity is {value:.4g} times the dense model's{around}, and at most {limit:g} was "
            "asked for",
        )

    def _kl(self, record: QualityRecord) -> tuple[str, ...]:
        limit, value = self.max_kl, record.kl
        if limit is None or (value is not None and value <= limit):
            return ()
        if value is None:
            return ("the KL to the dense model was not measured",)
        error = f" (standard error {record.kl_se:.2g})" if record.kl_se is not None else ""
        return (
            f"KL to the dense model is {value:.4g} nats{error}, and at most {limit:g} was asked "
            "for",
        )

    def _retention(self, record: QualityRecord) -> tuple[str, ...]:
        if self.min_retention is None:
            return ()
        tasks = {
            name: from_plain(task, TaskRecord)
            for name, task in record.tasks.items()
            if name != SANITY
        }
        if not tasks:
            return ("retention was not measured: no task was asked",)
        failures = []
        judged = 0
        for name, task in tasks.items():
            metric = task.metrics[task.metric]
            if metric.retention is None:
                continue
            judged += 1
            if metric.retention < self.min_retention:
                around = _interval(metric.retention_low, metric.retention_high)
                failures.append(
                    f"{name} keeps {metric.retention:.3g} of the dense model's {task.metric} "
                    f"beyond chance{around}, and at least {self.min_retention:g} was asked for"
                )
        if not judged:
            names = ", ".join(tasks)
            failures.append(f"retention cannot be judged: the dense model is at chance in {names}")
        return tuple(failures)


def retention_of(record: QualityRecord) -> float | None:
    """The least that is kept of any task beyond chance; None where none can be judged."""
    kept = []
    for name, task in record.tasks.items():
        if name != SANITY:
            found = from_plain(task, TaskRecord)
            value = found.metrics[found.metric].retention
            kept += [] if value is None else [value]
    return min(kept, default=None)


def _part(value: float, limit: float) -> float:
    """value of limit; no less than nothing."""
    return max(value, 0.0) / max(limit, LEAST_KL)


def sanity_of(record: QualityRecord) -> SanityRecord | None:
    """The prompts' record of a row, or None where it was not asked."""
    found = record.tasks.get(SANITY)
    return from_plain(found, SanityRecord) if found is not None else None


def _interval(low: float | None, high: float | None) -> str:
    return f" ({low:.4g} to {high:.4g})" if low is not None and high is not None else ""
