"""The gate says in plain words what is not reached, and lets nothing unmeasured through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clp_edge.errors import UsageError
from clp_edge.evaluate.gate import QualityGate
from clp_edge.records import MetricRecord, QualityRecord, TaskRecord, to_plain

RECORD = QualityRecord(
    perplexity=44.7,
    perplexity_se=3.0,
    kl=0.41,
    kl_se=0.01,
    top1_agreement=0.7,
    tasks={},
    ppl_ratio=1.46,
    ppl_ratio_low=1.43,
    ppl_ratio_high=1.5,
)


def task(retention: float | None, low: float = 0.7, high: float = 0.95) -> Any:
    metric = MetricRecord(
        value=0.5,
        se=0.02,
        low=0.45,
        high=0.55,
        chance=0.25,
        at_chance=False,
        retention=retention,
        retention_low=None if retention is None else low,
        retention_high=None if retention is None else high,
        dense_at_chance=retention is None,
        hits="01",
    )
    return to_plain(TaskRecord("choices", 2, "acc_norm", {"acc_norm": metric}))


@pytest.mark.parametrize(
    "gate", [QualityGate(), QualityGate(max_ppl_ratio=1.46, max_kl=0.41), QualityGate(max_kl=1)]
)
def test_what_is_reached_passes(gate: QualityGate) -> None:
    assert gate.failures(RECORD) == ()


def test_each_failure_is_said_with_its_interval() -> None:
    gate = QualityGate(max_ppl_ratio=1.2, max_kl=0.3, min_retention=0.9)
    record = replace(
        RECORD, tasks={"easy": task(0.8), "fine": task(0.95), "sanity": {"passed": 1, "total": 4}}
    )
    assert gate.failures(record) == (
        "perplexity is 1.46 times the dense model's (1.43 to 1.5), and at most 1.2 was asked for",
        "KL to the dense model is 0.41 nats (standard error 0.01), and at most 0.3 was asked for",
        "easy keeps 0.8 of the dense model's acc_norm beyond chance (0.7 to 0.95), and at least "
        "0.9 was asked for",
    )


def test_what_was_not_measured_does_not_pass() -> None:
    nothing = replace(RECORD, kl=None, ppl_ratio=None)
    gate = QualityGate(max_ppl_ratio=9, max_kl=9, min_retention=0.1)
    assert len(gate.failures(nothing)) == 3
    assert "no task was asked" in gate.failures(nothing)[2]
    only_sane = replace(RECORD, tasks={"sanity": {"passed": 4, "total": 4, "answers": []}})
    assert "no task was asked" in QualityGate(min_retention=0.1).failures(only_sane)[0]


def test_a_task_that_the_dense_model_guesses_judges_nothing() -> None:
    gate = QualityGate(min_retention=0.9)
    guessed = replace(RECORD, tasks={"hard": task(None)})
    assert gate.failures(guessed) == (
        "retention cannot be judged: the dense model is at chance in hard",
    )
    assert gate.failures(replace(RECORD, tasks={"hard": task(None), "easy": task(0.95)})) == ()


def test_a_record_without_an_interval_is_judged_by_its_value() -> None:
    record = replace(RECORD, ppl_ratio_low=None, ppl_ratio_high=None)
    said = QualityGate(max_ppl_ratio=1.2).failures(record)[0]
    assert said.startswith("perplexity is 1.46 times the dense model's, and")


@pytest.mark.parametrize(
    ("limits", "flag"),
    [
        ({"max_ppl_ratio": 0}, "--max-ppl-ratio 0"),
        ({"max_kl": -1}, "--max-kl -1"),
        ({"max_kl": float("nan")}, "--max-kl nan"),
        ({"min_retention": 1.5}, "--min-retention 1.5"),
    ],
)
def test_limits_that_are_none(limits: dict[str, float], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        QualityGate(**limits)
