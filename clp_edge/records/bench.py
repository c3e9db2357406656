"""What the bench leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class TestRecord:
    """llama-bench's words: tokens of the prompt, tokens made, tokens already in the cache."""

    __test__ = False  # no test class, whatever pytest thinks of the name

    prompt: int
    generate: int
    depth: int

    @property
    def name(self) -> str:
        """As llama-bench writes it: pp512 tg128, and the depth where there is one."""
        deep = f" @ d{self.depth}" if self.depth else ""
        return f"pp{self.prompt} tg{self.generate}{deep}"


@dataclass(frozen=True)
class SummaryRecord:
    """A median, its interval, how many samples it is of and the confidence they attain."""

    median: float
    low: float
    high: float
    n: int
    confidence: float | None = None
    """what the interval attains, not what was asked for"""


@dataclass(frozen=True)
class EnergyRecord:
    """Energy for each generated token: the decode part of the rounds alone, without the prompt.

    It is what everyone on `covers` drew in that time. Net is gross less the idle power, which was
    measured before the first artifact was opened.
    """

    reason: str | None
    """why it was not measured; None where it was"""
    source: str = ""
    covers: str = ""
    note: str = ""
    j_per_token: tuple[float, ...] = ()
    """gross, a value for each round in which it could be read"""
    gross: SummaryRecord | None = None
    net: SummaryRecord | None = None
    watts: float | None = None
    """mean power while decoding"""
    idle_watts: float | None = None
    period_s: float | None = None
    """between two readings"""


@dataclass(frozen=True)
class MemoryRecord:
    """What the runtime's process took, MiB; None where it cannot be read."""

    private_mib: float | None = None
    """no file's memory: buffers, the KV cache, copied weights"""
    mapped_weights_mib: float | None = None
    """resident pages of the artifact's own files: page cache, which the system may take back"""
    gpu_mib: float | None = None
    unified_mib: float | None = None
    """a Jetson's one memory: by how much MemAvailable fell (page cache does not count in it)"""
    gpu_source: str = ""
    """how gpu_mib was found, or why it was not"""


@dataclass(frozen=True)
class ContextMemoryRecord:
    """What a model file takes in memory when so many positions are in its cache; read off the file,
    so exact: the runtime's own buffers come on top."""

    context: int
    """tokens in the cache"""
    weight_bytes: int
    """the file's"""
    kv_bytes: int
    """keys and values, at 2 bytes a number where the file does not say otherwise"""

    @property
    def total(self) -> int:
        """Weights and cache, bytes."""
        return self.weight_bytes + self.kv_bytes


@dataclass(frozen=True)
class HeatRecord:
    """Temperatures by zone (degrees C) before and after, and what slowed the device down."""

    before: dict[str, float]
    after: dict[str, float]
    throttled: tuple[str, ...] = ()
    cpu_mhz: SummaryRecord | None = None
    """the fastest processor's clock during the rounds"""


@dataclass(frozen=True)
class RunRecord:
    """The timings of one artifact in one test: one value a round, in the same order everywhere."""

    artifact: str
    variant: str
    target: str
    runtime: str
    runtime_version: str
    backend: str
    test: TestRecord
    status: Literal["ok", "failed", "skipped"]
    reason: str | None
    prefill_tps: tuple[float, ...]
    decode_tps: tuple[float, ...]
    ttft_ms: tuple[float, ...]
    summary: dict[str, SummaryRecord]
    load_ms: float | None
    peak_rss_mib: float | None
    peak_gpu_mib: float | None
    j_per_token: float | None
    """gross; the median over the rounds of what `energy` tells"""
    bytes_per_token: int | None
    ideal_decode_tps: float | None
    mbu: float | None
    energy: EnergyRecord | None = None
    memory: MemoryRecord | None = None
    gpu_layers: int | None = None
    """layers that the GPU computes, of `layers` (the blocks and the head); None: no such choice"""
    layers: int | None = None
    backend_reason: str | None = None
    """why it computes there"""
    token_ms: tuple[tuple[float, ...], ...] = ()
    """of each generated token, a list a round; of long runs, of some rounds, evenly spread"""


@dataclass(frozen=True)
class RatioRecord:
    """A speed-up taken round by round; above 1 is faster, whatever the unit."""

    before: float
    after: float
    median: float
    low: float
    high: float
    ideal: float | None
    """the ratio of the bytes that decode reads, or of the operations of the prefill"""
    bounds: dict[str, float] = field(default_factory=dict)
    """by what bounds the speed -> the ratio that it allows; "bytes" is the ideal of decode"""


@dataclass(frozen=True)
class SpeedupRecord:
    """The healed artifact against the dense one of the same target and runtime."""

    target: str
    runtime: str
    test: TestRecord
    before: str
    after: str
    confidence: float
    """attained by the intervals"""
    n: int
    prefill: RatioRecord
    decode: RatioRecord
    ttft: RatioRecord


@dataclass(frozen=True)
class BandwidthRecord:
    """Read bandwidth of the memory: GB/s (10^9 bytes) of the median and of the fastest pass."""

    gb_per_s: float
    fastest_gb_per_s: float
    buffer_bytes: int
    cache_bytes: int
    threads: int
    passes: int


@dataclass(frozen=True)
class BenchSettingsRecord:
    """How the speed was taken."""

    threads: int
    batch: int
    rounds: int
    warmup_rounds: int
    power_mode: str | None
    memory_bandwidth_gb_s: float | None
    memory_bandwidth: BandwidthRecord | None = None
    busy_share_before: float | None = None
    """of all processors' time that others took, at the first look"""
    busy_share_after_wait: float | None = None
    busy_share_of_others: tuple[float | None, ...] = ()
    """in each round; None where it cannot be read"""
    waited_for_calm_s: float | None = None
    waiting: dict[str, str] = field(default_factory=dict)
    """the variables by which threads wait at barriers, as the children saw them"""
    time_budget_s: float | None = None
    seed: int | None = None
    order: tuple[tuple[str, ...], ...] = ()
    """the artifacts of each round (with the test, where there are several), as they were timed"""
    seconds: float | None = None
    memory: str = ""
    """what peak memory means here"""
    cpus: tuple[int, ...] | None = None
    """the processors that every child was pinned to; None: not pinned"""
    delay_s: float = 0.0
    """slept before each measurement, for cooling"""
    timed: str = ""
    """what lies inside of the timed parts"""
    energy: str = ""
    """what the energy covers, or why it was not measured"""


@dataclass(frozen=True)
class BenchRecord:
    """The latency suite's results."""

    device: dict[str, Any]
    """the machine as its files describe it; its keys depend on the machine"""
    settings: BenchSettingsRecord
    runs: tuple[RunRecord, ...]
    speedup: tuple[SpeedupRecord, ...]
    warnings: tuple[str, ...] = ()
    heat: HeatRecord | None = None
    taken: str | None = None
    """when, UTC, as 2026-11-25T03:00:00Z"""
    versions: dict[str, str] = field(default_factory=dict)
    """of clp-edge and of Python; those of the runtimes are in the runs"""
