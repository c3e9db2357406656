"""A small report with round figures that the tests change as they need. No figure was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clp_edge.records import (
    ArtifactRecord,
    BenchRecord,
    BenchSettingsRecord,
    EvaluationRecord,
    HealRecord,
    ModelRecord,
    QualityRecord,
    RatioRecord,
    Report,
    RunRecord,
    SampleRecord,
    SearchRecord,
    Span,
    SpeedupRecord,
    SummaryRecord,
    TestRecord,
    Variant,
    WindowRecord,
)
from clp_edge.report import build_report

TARGET = "gguf-q4_k_m"
TEST = TestRecord(prompt=512, generate=128, depth=0)


def quality(perplexity: float | None, kl: float, agreement: float) -> QualityRecord:
    return QualityRecord(
        perplexity=perplexity,
        perplexity_se=0.6,
        kl=kl,
        kl_se=0.01,
        top1_agreement=agreement,
        tasks={},
    )


def artifact(name: str, variant: Variant, size: int, target: str = TARGET) -> ArtifactRecord:
    return ArtifactRecord(
        name=name,
        target=target,
        variant=variant,
        path=f"gguf/{name}.gguf",
        bytes=size,
        bits_per_weight=6.2,
        fallback_tensors=0,
        sha256="ab" * 32,
        verified=True,
        verify={},
    )


def summary(median: float, width: float, n: int = 6) -> SummaryRecord:
    return SummaryRecord(median, median - width, median + width, n)


def run(name: str, variant: Variant, decode: float) -> RunRecord:
    return RunRecord(
        artifact=name,
        variant=variant,
        target=TARGET,
        runtime="llama.cpp",
        runtime_version="1.0",
        backend="CPU",
        test=TEST,
        status="ok",
        reason=None,
        prefill_tps=(decode * 4,) * 6,
        decode_tps=(decode,) * 6,
        ttft_ms=(1000.0,) * 6,
        summary={
            "prefill_tps": summary(decode * 4, 2.0),
            "decode_tps": summary(decode, 1.0),
            "ttft_ms": summary(1000.0, 5.0),
        },
        load_ms=100.0,
        peak_rss_mib=decode * 2,
        peak_gpu_mib=None,
        j_per_token=None,
        bytes_per_token=90_000_000,
        ideal_decode_tps=200.0,
        mbu=decode / 200.0,
    )


def ratio(median: float, low: float, high: float, ideal: float | None) -> RatioRecord:
    return RatioRecord(100.0, 100.0 * median, median, low, high, ideal)


MODEL = ModelRecord(
    source="models/Tiny-30.gguf", architecture="llama", blocks=30, parameters=1_000_000
)
SEARCH = SearchRecord(
    method="exact",
    criterion="healed",
    segment=Span(12, 17),
    segments=(Span(12, 17),),
    dropped=(12, 13, 14, 15, 16, 17),
    kl_raw=0.75,
    kl_healed=0.33,
    windows=(
        WindowRecord(12, 17, kl_raw=0.75, kl_healed=0.33),
        WindowRecord(3, 8, kl_raw=3.5, kl_healed=None),
        WindowRecord(13, 18, kl_raw=0.72, kl_healed=0.4),
    ),
    regret=0.0,
    stability=1.0,
    forward_equivalents=14.2,
    seconds=30.0,
)
HEAL = HealRecord(
    method="endpoints",
    trained_blocks=(11, 18),
    kl_cut=0.75,
    kl_refit=0.33,
    kl_tuned=None,
    seconds=60.0,
)
SPEEDUP = SpeedupRecord(
    target=TARGET,
    runtime="llama.cpp",
    test=TEST,
    before="tiny-dense",
    after="tiny-healed",
    confidence=0.96875,
    n=6,
    prefill=ratio(1.22, 1.20, 1.24, 1.25),
    decode=ratio(1.16, 1.12, 1.20, 1.15),
    ttft=ratio(1.21, 1.19, 1.23, None),
)
BENCH = BenchRecord(
    device={"name": "A laptop"},
    settings=BenchSettingsRecord(
        threads=4,
        batch=1,
        rounds=6,
        warmup_rounds=3,
        power_mode=None,
        memory_bandwidth_gb_s=30.0,
    ),
    runs=(run("tiny-dense", "dense", 60.0), run("tiny-healed", "healed", 69.6)),
    speedup=(SPEEDUP,),
)
DENSE = artifact("tiny-dense", "dense", 100 * 2**20)
HEALED = artifact("tiny-healed", "healed", 84 * 2**20)
SAMPLE = SampleRecord("Once", dense="upon a time", healed="upon a | table")


def parts(**changes: Any) -> dict[str, Any]:
    """Everything that `build_report` takes, with changes."""
    return {
        "command": "clp-edge compress --target gguf-q4",
        "model": MODEL,
        "seed": 0,
        "evaluation": EvaluationRecord(
            text="held-back text",
            sha256="cd" * 32,
            tokens=16_384,
            sequence_length=512,
            removed_as_leaked=0,
        ),
        "search": SEARCH,
        "heal": HEAL,
        "quality": {
            "dense": quality(20.0, 0.0, 1.0),
            "pruned": quality(60.0, 0.8, 0.6),
            "healed": quality(26.0, 0.3, 0.75),
            "tiny-dense": quality(23.1, 0.05, 0.9),
            "tiny-healed": quality(29.8, 0.35, 0.72),
        },
        "artifacts": (DENSE, HEALED),
        "bench": BENCH,
        "seconds": {"search": 30.0, "heal": 60.0},
        "peak_memory_mib": {"search": 900.0, "heal": None},
        "environment": {"python": "3.11", "torch": "2.13"},
        "samples": (SAMPLE,),
        "warnings": (),
        **changes,
    }


def sample_report(**changes: Any) -> Report:
    """The sample, built from its changed parts."""
    return build_report(**parts(**changes))


def with_decode(decode: RatioRecord) -> BenchRecord:
    """The sample's bench with another speed-up of decode."""
    return replace(BENCH, speedup=(replace(SPEEDUP, decode=decode),))


def died(reason: str) -> BenchRecord:
    """The sample's bench in which the healed file was not timed."""
    failed = replace(BENCH.runs[1], status="failed", reason=reason, summary={}, decode_tps=())
    return replace(BENCH, runs=(BENCH.runs[0], failed), speedup=())
