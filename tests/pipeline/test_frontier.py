"""--frontier, --aim and the budget in the user's unit: usage, keys, sizes, and a whole tiny run."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clp_edge.bench.runner import BenchItem, BenchSettings
from clp_edge.config import (
    FRONTIER_TYPES,
    CompressConfig,
    CutConfig,
    FrontierConfig,
    GateConfig,
)
from clp_edge.errors import ClpEdgeError, PreflightError, QualityGateError, UsageError
from clp_edge.export.targets import resolve
from clp_edge.pipeline import compress, preflight
from clp_edge.pipeline.goals import goal_of, met
from clp_edge.pipeline.preflight import memory_bandwidth
from clp_edge.pipeline.sizing import blocks_to_drop, cached_bytes
from clp_edge.pipeline.stage import Ground, stage_keys
from clp_edge.pipeline.stages import STAGES, frontier
from clp_edge.pipeline.stages import bench as bench_stage
from clp_edge.progress import Quiet
from clp_edge.records import BandwidthRecord, BenchRecord
from tests.conftest import save_tiny_llama, write_words
from tests.pipeline.test_stage_keys import plan_of
from tests.report.sample import BENCH, SPEEDUP, artifact, ratio, run

BANDWIDTH = BandwidthRecord(10.0, 12.0, 1 << 28, 1 << 20, 2, 40)


def test_the_flags_mean_a_frontier_and_contradictions_are_wrong_usage() -> None:
    assert not CompressConfig.of().frontier.wanted
    assert CompressConfig.of(frontier=True).frontier.types == FRONTIER_TYPES
    assert CompressConfig.of(aim="TTFT").frontier == FrontierConfig(FRONTIER_TYPES, aim="ttft")
    few = CompressConfig.of(frontier_types=" Q4_K_M, q2_k,q4_k_m").frontier
    assert few.types == ("q4_k_m", "q2_k")
    for given, why in (
        ({"aim": "speed"}, "choose bytes, decode, ttft, memory"),
        ({"frontier_types": "q4_0,,q2_k"}, "empty name"),
        ({"keep_frontier": True}, "without --frontier"),
        ({"frontier": True, "bench": False}, "--no-bench"),
        ({"aim": "bytes", "gate": GateConfig(min_retention=0.9)}, "--max-kl"),
        ({"min_tps": 0.0}, "no speed"),
        ({"min_tps": 20.0, "min_speedup": 1.2}, "exclude each other"),
    ):
        with pytest.raises(UsageError, match=why):
            CompressConfig.of(**given)  # type: ignore[arg-type]


def reads(count: int) -> list[int]:
    """What a token reads of two files of a model of 10 blocks, bytes."""
    return [200_000_000 + 80_000_000 * (10 - count), 100_000_000]


def test_the_fewest_blocks_whose_ceiling_is_enough() -> None:
    # 10 GB/s over 1,000 MB is 10 tok/s; 12.5 need 800 MB at most: three blocks of 80 MB
    assert blocks_to_drop(CutConfig(min_tps=12.5), 10, reads, BANDWIDTH) == 3
    assert blocks_to_drop(CutConfig(min_tps=10.1), 10, reads, BANDWIDTH) == 1
    with pytest.raises(UsageError, match=r"allows 10\.0 tok/s without any cut, a ceiling"):
        blocks_to_drop(CutConfig(min_tps=9.0), 10, reads, BANDWIDTH)
    with pytest.raises(UsageError, match=r"without 8 of 10 blocks .* less than 40"):
        blocks_to_drop(CutConfig(min_tps=40.0), 10, reads, BANDWIDTH)
    with pytest.raises(UsageError, match="could not be measured"):
        blocks_to_drop(CutConfig(min_tps=12.0), 10, reads, None)
    cache = dataclasses.replace(BANDWIDTH, cache_bytes=2_000_000_000)
    with pytest.raises(UsageError, match=r"fits in the processor's cache .*--min-speedup"):
        blocks_to_drop(CutConfig(min_tps=12.0), 10, reads, cache)


def test_keys_and_values_that_a_token_reads() -> None:
    config = SimpleNamespace(num_attention_heads=9, num_key_value_heads=3, hidden_size=576)
    assert cached_bytes(config, 30, 100.0) == 2 * 2 * 3 * 64 * 30 * 100
    assert cached_bytes(SimpleNamespace(), 30, 100.0) == 0


def test_a_resumed_run_keeps_the_bandwidth_that_its_cut_follows_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(BANDWIDTH, gb_per_s=99.0)
    module = sys.modules[memory_bandwidth.__module__]
    monkeypatch.setattr(module, "read_bandwidth", lambda threads: other)
    config = CompressConfig.of(min_tps=12.0)
    assert memory_bandwidth(config, tmp_path) == other
    said = {"stages": {}, "memory_bandwidth": dataclasses.asdict(BANDWIDTH)}
    (tmp_path / "clp_edge.json").write_text(json.dumps(said))
    assert memory_bandwidth(config, tmp_path) == BANDWIDTH
    assert memory_bandwidth(dataclasses.replace(config, force=True), tmp_path) == other


def test_a_goal_is_decided_by_the_whole_interval() -> None:
    assert met(1.2, 1.2, 1.3) == "met"
    assert met(1.2, 1.0, 1.19) == "not met"
    assert met(1.2, 1.1, 1.3) == "undecided"
    assert met(1.2, 1.25, 1.3, sure=False) == "undecided"


def planned(**changes: Any) -> Any:
    one = SimpleNamespace(
        dense=SimpleNamespace(read_bytes=100_000_000, predicted_bytes=110_000_000),
        pruned=SimpleNamespace(read_bytes=80_000_000, predicted_bytes=90_000_000),
    )
    return SimpleNamespace(
        targets=(one,), bandwidth=BANDWIDTH, config=None, blocks=30, count=6, **changes
    )


FILES = (
    artifact("tiny-dense", "dense", 110_000_000),
    artifact("tiny-healed", "healed", 90_000_100),
)


def test_every_goal_is_checked_by_what_was_measured() -> None:
    size = goal_of(CompressConfig.of(max_bytes="90MB"), planned(), FILES, BENCH)
    assert (size.met, size.measured, size.predicted) == ("not met", 90_000_100, 90_000_000)
    assert goal_of(CompressConfig.of(max_bytes="91MB"), planned(), FILES, None).met == "met"
    faster = CompressConfig.of(min_speedup=1.1)
    found = goal_of(faster, planned(), FILES, BENCH)
    assert (found.met, found.predicted, found.low) == ("met", 1.25, 1.12)
    slow = dataclasses.replace(SPEEDUP, decode=ratio(1.05, 1.02, 1.08, 1.15))
    bench = dataclasses.replace(BENCH, speedup=(slow,))
    assert goal_of(faster, planned(), FILES, bench).met == "not met"
    few = dataclasses.replace(SPEEDUP, confidence=0.9)
    assert goal_of(faster, planned(), FILES, dataclasses.replace(BENCH, speedup=(few,))).met == (
        "undecided"
    )
    assert goal_of(faster, planned(), FILES, None).met == "not measured"
    tps = goal_of(CompressConfig.of(min_tps=60.0), planned(), FILES, BENCH)
    assert (tps.met, tps.measured, tps.file) == ("met", 69.6, "tiny-healed")
    assert tps.predicted == pytest.approx(125.0)
    assert "a ceiling" not in tps.note
    assert "the ceiling, 10.0 GB/s" in tps.note
    assert goal_of(CompressConfig.of(min_tps=80.0), planned(), FILES, BENCH).met == "not met"
    assert goal_of(CompressConfig.of(), planned(), FILES, BENCH) is None


def keys(config: CompressConfig) -> dict[str, str]:
    plan = plan_of(config)
    types = tuple(SimpleNamespace(target=resolve(name)) for name in config.frontier.types)
    plan = dataclasses.replace(plan, frontier=types)  # type: ignore[arg-type]
    stages = frontier.with_frontier(STAGES)
    return stage_keys(stages, config, plan, Ground.of(config, plan))


def test_the_comparison_enters_the_keys_of_its_own_stages_alone() -> None:
    base = CompressConfig.of(frontier_types="q8_0,q2_k")

    def again(**changes: Any) -> list[str]:
        other = keys(dataclasses.replace(base, **changes))
        return [name for name, key in keys(base).items() if other[name] != key]

    types = again(frontier=FrontierConfig(("q8_0",)))
    assert types == ["frontier", "frontier-quality", "bench", "choose"]
    assert again(frontier=dataclasses.replace(base.frontier, aim="bytes")) == ["choose"]
    assert again(frontier=dataclasses.replace(base.frontier, keep=True)) == ["choose"]
    assert again(gate=GateConfig(max_kl=0.1)) == ["choose"]
    assert again(bench=dataclasses.replace(base.bench, rounds=77)) == ["bench", "choose"]


def test_the_time_budget_grows_with_the_files() -> None:
    base = CompressConfig.of(frontier_types="q8_0,q2_k")
    plan = plan_of(base)
    types = tuple(SimpleNamespace(target=resolve(name)) for name in base.frontier.types)
    plan = dataclasses.replace(plan, frontier=types)  # type: ignore[arg-type]
    assert frontier.bench_inputs(base, plan).bench.budget_s == 2 * base.bench.budget_s


class Timed:
    """Stands for the bench: fixed speeds, the smaller the file the faster; keeps what it saw."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.die = False

    def __call__(
        self, items: Sequence[BenchItem], settings: BenchSettings, **_: Any
    ) -> BenchRecord:
        if self.die:
            raise KeyboardInterrupt
        self.calls.append([item.name for item in items])
        assert all(item.path.is_file() for item in items)
        runs = tuple(
            dataclasses.replace(
                run(item.name, item.variant, 1e7 / item.path.stat().st_size), target=item.target
            )
            for item in items
        )
        return dataclasses.replace(BENCH, runs=runs, speedup=())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier")
    save_tiny_llama(folder / "tiny", blocks=8)
    write_words(folder / "words.txt", seed=0, paragraphs=300)
    write_words(folder / "other.txt", seed=1, paragraphs=120)
    return folder


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    fake = Timed()
    monkeypatch.setattr(bench_stage, "run_bench", fake)
    return fake


def config(place: Path, out: str, **more: Any) -> CompressConfig:
    return CompressConfig.of(
        str(place / "tiny"), targets=("gguf-q8_0",), preset="quick", drop_blocks=2, heal="refit",
        calibration=str(place / "words.txt"), eval_text=str(place / "other.txt"),
        eval_tokens="3072", out=place / out, threads=1, **more,
    )  # fmt: skip


class Told(Quiet):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def go(asked: CompressConfig) -> tuple[Any, list[str]]:
    told = Told()
    return compress(asked, observer=told, plan=preflight(asked)), told.notes


@pytest.mark.llama
def test_a_whole_run_compares_deletes_and_resumes(place: Path, timed: Timed) -> None:
    asked = config(place, "out", frontier_types="q8_0,q4_0,f16", aim="bytes")
    with pytest.raises(PreflightError, match="add q4_k_m"):
        preflight(asked)
    asked = dataclasses.replace(asked, gate=GateConfig(max_kl=1000.0))
    timed.die = True
    with pytest.raises(KeyboardInterrupt):
        go(asked)
    beside = sorted(path.name for path in (place / "out" / "frontier").glob("*.gguf"))
    assert beside == [
        "tiny-clp25.F16.gguf", "tiny-clp25.Q4_0.gguf", "tiny.F16.gguf", "tiny.Q4_0.gguf",
    ]  # fmt: skip
    timed.die = False
    outcome, notes = go(asked)
    kept = [note for note in notes if note.endswith("done before, kept")]
    assert len(kept) == 9, "everything but the bench and the choice"
    (names,) = timed.calls
    assert names == [
        "dense Q8_0", "healed Q8_0", "dense Q4_0", "healed Q4_0", "dense F16", "healed F16",
    ]  # fmt: skip
    report = outcome.report
    assert {one.name for one in report.artifacts} == {"dense Q8_0", "healed Q8_0"}
    assert set(names) <= set(report.quality)
    assert report.quality["healed F16"].ppl_ratio_low is not None
    assert report.quality["dense F16"].kl < report.quality["dense Q4_0"].kl
    choice = report.frontier.choice
    assert choice.chosen == "healed Q4_0"
    assert report.frontier.kept == ("healed Q4_0",)
    assert report.quality_gate.misses == {"healed Q4_0": ()}
    assert (
        report.context_memory["healed Q8_0"].kv_bytes < report.context_memory["dense Q8_0"].kv_bytes
    )
    assert [path.name for path in (place / "out" / "frontier").glob("*.gguf")] == [
        "tiny-clp25.Q4_0.gguf"
    ]
    left = {p.relative_to(place / "out") for p in (place / "out" / "frontier").iterdir()}
    assert all("clp25.Q4_0" in path.name for path in left), "nothing stands beside deleted files"
    assert "Dense and pruned at equal bytes" in (place / "out" / "report.html").read_text()
    assert "--aim bytes" in (place / "out" / "report.md").read_text()
    again, _ = go(asked)
    assert again.reused
    assert len(timed.calls) == 1
    with pytest.raises(ClpEdgeError, match="finished run of another command"):
        go(dataclasses.replace(asked, frontier=dataclasses.replace(asked.frontier, aim="decode")))


@pytest.mark.llama
def test_where_nothing_passes_the_exit_code_is_4_and_keep_keeps(place: Path, timed: Timed) -> None:
    gate = GateConfig(max_kl=1e-9)
    asked = config(place, "none", frontier_types="q4_0", aim="ttft", gate=gate, keep_frontier=True)
    outcome, _ = go(asked)
    assert outcome.report.frontier.choice.chosen is None
    assert outcome.report.frontier.kept == ("dense Q4_0", "healed Q4_0")
    assert len(list((place / "none" / "frontier").glob("*.gguf"))) == 2
    with pytest.raises(QualityGateError, match="--aim ttft"):
        outcome.require()
    assert "chooses nothing" in outcome.report.verdict


@pytest.mark.llama
def test_a_type_that_fails_its_proof_is_left_out_and_told(
    place: Path, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clp_edge.errors import VerificationError
    from clp_edge.export.gguf.exporter import GgufExporter

    plain = GgufExporter.export

    def export(self: Any, target: Any, destination: Path, **more: Any) -> Any:
        if target.quantization == "Q4_0" and "clp" in destination.name:
            destination.with_name(f"{destination.name}.partial").write_bytes(b"wrong")
            raise VerificationError("KL is too large", "take another")
        return plain(self, target, destination, **more)

    monkeypatch.setattr(GgufExporter, "export", export)
    outcome, _ = go(config(place, "failed", frontier_types="q4_0"))
    assert [one.name for one in outcome.report.frontier.artifacts] == ["dense Q4_0"]
    assert outcome.report.frontier.failures == ("healed Q4_0 was left out: KL is too large",)
    assert outcome.report.frontier.failures[0] in outcome.report.warnings
    assert not list((place / "failed").rglob("*.partial"))


@pytest.mark.llama
def test_bad_types_are_found_before_any_work(place: Path) -> None:
    with pytest.raises(PreflightError, match="unknown target 'q4_k_x'"):
        preflight(config(place, "bad", frontier_types="q4_k_x"))
    with pytest.raises(PreflightError, match="no GGUF type"):
        preflight(config(place, "bad", frontier_types="onnx-int4"))
    assert not (place / "bad").exists()
