"""The sample enlarged to what a long run leaves: every window, a gate's path, rungs, rival files.

The curves are formulas; no figure was measured.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from clp_edge.records import GateRecord, Report, RungRecord, Span, TuningRecord, WindowRecord
from tests.report.sample import (
    BENCH,
    DENSE,
    HEAL,
    HEALED,
    MODEL,
    SAMPLE,
    SEARCH,
    artifact,
    parts,
    quality,
    run,
    sample_report,
    summary,
)

STEPS = 120
ROUNDS = 6
PROMPT = "What is the capital of France, and what is it known for?"
LONG = (
    "The capital of France is Paris. It is a city renowned for its historical landmarks, "
    "culture, and the iconic Eiffel Tower.\n\n1. The Louvre\n2. Notre-Dame"
)


def windows() -> tuple[WindowRecord, ...]:
    """One for each start: high at the ends, lowest at 12."""
    found = []
    for first in range(25):
        away = (first - 12) / 12
        raw = 0.75 + 3.2 * away**2 + 0.08 * math.sin(first)
        healed = 0.33 + 1.4 * away**2 if abs(away) < 0.7 else None
        found.append(WindowRecord(first, first + 5, raw, healed, kl_raw_se=0.05 + 0.1 * away**2))
    return tuple(found)


def gate() -> GateRecord:
    """Three starts that run to 12, and one that stays elsewhere."""
    paths, losses = [], []
    for start, end in ((3.0, 12.0), (9.0, 12.1), (20.0, 12.3), (23.0, 19.0)):
        fade = [math.exp(-step / 25) for step in range(STEPS)]
        paths.append(tuple(end + (start - end) * share for share in fade))
        losses.append(tuple(0.7 + abs(end - 12) * 0.2 + 1.5 * share for share in fade))
    return GateRecord(Span(12, 17), (Span(12, 17), Span(19, 24)), tuple(paths), tuple(losses), 14.2)


def tokens(speed: float, count: int = 128) -> tuple[tuple[float, ...], ...]:
    """Rounds of tokens that slow down with depth, each ninetieth of them a slow one."""
    return tuple(
        tuple(
            (1e3 / speed) * (1 + place / 900 + 0.02 * math.sin(7 * place + n))
            + (9.0 if (place + 31 * n) % 90 == 0 else 0.0)
            for place in range(count)
        )
        for n in range(ROUNDS)
    )


def large_report(**changes: Any) -> Report:
    """The enlarged sample with changes."""
    known = parts()["quality"]
    smaller = artifact("tiny-dense-q3", "dense", 83 * 2**20, target="gguf-q3_k_m")
    decode = {"tiny-dense": 60.0, "tiny-healed": 69.6, "tiny-dense-q3": 66.0}
    variants = {"tiny-healed": "healed"}
    runs = []
    for name, speed in decode.items():
        timed = run(name, variants.get(name, "dense"), speed)  # type: ignore[arg-type]
        rounds = tuple(speed + math.sin(3 * n + speed) for n in range(ROUNDS))
        runs.append(
            replace(
                timed,
                decode_tps=rounds,
                token_ms=tokens(speed),
                summary={**timed.summary, "decode_tps": summary(speed, 1.0, ROUNDS)},
            )
        )
    history = tuple(TuningRecord(step, 0.33 - 0.05 * (1 - 0.97**step)) for step in range(0, 101, 5))
    values: dict[str, Any] = {
        "model": replace(MODEL, parameters=134_515_008, parameters_after=113_275_008),
        "search": replace(SEARCH, windows=windows(), gate=gate(), method="gate"),
        "heal": replace(
            HEAL,
            kl_tuned=0.28,
            history=history,
            rungs=(
                RungRecord("refit", 0.75, 0.33, True, 4.0),
                RungRecord("endpoints", 0.33, 0.28, True, 56.0),
                RungRecord("everything", 0.28, 0.29, False, 80.0),
            ),
            notes=("the head was left as it is: it is tied",),
        ),
        "quality": {
            **known,
            "tiny-dense-q3": quality(27.0, 0.21, 0.8),
            "tiny-healed": replace(
                known["tiny-healed"], ppl_ratio=1.49, ppl_ratio_low=1.45, ppl_ratio_high=1.53
            ),
        },
        "artifacts": (DENSE, HEALED, smaller),
        "bench": replace(BENCH, runs=tuple(runs)),
        "samples": (
            SAMPLE,
            replace(SAMPLE, prompt=PROMPT, dense=LONG, healed=LONG[:90], dense_by="tiny-dense"),
        ),
        "warnings": ("the machine was busy while the speed was taken",),
        **changes,
    }
    return sample_report(**values)
