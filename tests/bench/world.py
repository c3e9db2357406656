"""A bench of sessions that cost nothing: known speeds in, and a clock that only they move."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clp_edge.bench.runner import BenchItem, BenchSettings, run_bench
from clp_edge.errors import RuntimeDiedError
from clp_edge.records import BandwidthRecord
from clp_edge.runtimes import ArtifactInfo, Timing

BANDWIDTH = BandwidthRecord(
    gb_per_s=10.0,
    fastest_gb_per_s=12.0,
    buffer_bytes=1 << 20,
    cache_bytes=1 << 10,
    threads=2,
    passes=9,
)


@dataclass
class World:
    """What happened, in order; time moves only when a session runs."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    opened: list[tuple[str, int, int]] = field(default_factory=list)
    how: list[dict[str, Any]] = field(default_factory=list)
    tests: list[tuple[int, int, int]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    now: float = 0.0
    slow_start: int = 0
    slowness: float = 1.0


class FakeSession:
    def __init__(self, world: World, name: str, speed: float, dies_at: int | None, backend: str):
        self.world, self.name, self.speed, self.dies_at = world, name, speed, dies_at
        self.runs = 0
        about = ("fake", "1.0", backend, "llama", 5, 1024, 320, 12.5, 1000, 2, "asked for")
        self.info = ArtifactInfo(*about)

    def time_once(self, *, prompt: int, generate: int, depth: int = 0, seed: int = 0) -> Timing:
        self.runs += 1
        self.world.calls.append((self.name, seed))
        self.world.tests.append((prompt, generate, depth))
        if self.runs == self.dies_at:
            raise RuntimeDiedError(f"llama.cpp died while it ran {self.name}", "signal 6")
        # Every run of the world is slower than the last one: drift that hits all alike.
        drift = 1.0 + 0.001 * seed
        if self.runs <= self.world.slow_start:
            drift *= 2.0 + self.runs % 2
        drift *= self.world.slowness
        prefill = prompt / (10 * self.speed) * drift
        decode = generate / self.speed * drift
        self.world.now += prefill + decode
        each = (decode / generate * 1e3,) * generate
        return Timing(prompt, generate, depth, prefill, prefill * 1000 + 5, decode, each)

    def peak_rss_mib(self) -> float:
        return self.speed + 100.0

    def close(self) -> None:
        self.world.closed.append(self.name)


def bench(world: World, specs: list[tuple], settings: BenchSettings, folder: Path, **extra):
    """specs: (name, variant, target, speed, dies_at, backend)."""
    known = {spec[0]: spec for spec in specs}

    def open_artifact(path: Path, *, threads: int | None, context: int, **how: Any) -> FakeSession:
        world.how.append(how)
        name, _, _, speed, dies_at, backend = known[path.stem]
        if dies_at == 0:
            raise RuntimeDiedError(f"llama.cpp could not load {name}")
        world.opened.append((name, threads or 0, context))
        return FakeSession(world, name, speed, dies_at, backend)

    items = [
        BenchItem(spec[0], folder / f"{spec[0]}.gguf", spec[1], spec[2]) for spec in known.values()
    ]
    return run_bench(
        items,
        settings,
        open_artifact=open_artifact,
        measure_bandwidth=lambda threads: BANDWIDTH,
        clock=lambda: world.now,
        root=folder,
        **extra,
    )


DENSE = ("dense", "dense", "gguf-q4_0", 50.0, None, "CPU")


HEALED = ("healed", "healed", "gguf-q4_0", 60.0, None, "CPU")
