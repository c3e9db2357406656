"""What a whole bench says of energy, memory and heat on a board that is not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clp_edge.bench import costs
from clp_edge.bench.formats import as_jsonl, as_markdown
from clp_edge.bench.probes import Probes
from clp_edge.bench.runner import run_bench
from clp_edge.bench.settings import BenchItem, BenchSettings
from clp_edge.records import BenchRecord, MemoryRecord, from_plain, to_plain
from clp_edge.runtimes import ArtifactInfo, Timing
from tests.bench.trees import orin_nano
from tests.bench.world import BANDWIDTH

RAIL = "sys/class/hwmon/hwmon1/curr1_input"


class Board:
    """An Orin Nano whose time passes in runs alone: 2 W idle, 10 W (dense) or 8 W (healed)."""

    def __init__(self, root: Path, *, rails: bool) -> None:
        self.root, self.now = orin_nano(root), 0.0
        if rails:
            (root / RAIL).write_text("400\n")
        else:
            (root / RAIL).unlink()
        self.probes = Probes(
            root, clock=lambda: self.now, sleep=lambda s: self.run(s, 2.0), threaded=False
        )

    def run(self, seconds: float, watts: float) -> None:
        if (self.root / RAIL).exists():
            (self.root / RAIL).write_text(f"{round(watts / 5 * 1000)}\n")
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            self.probes.meter.tick()

    def bench(self) -> BenchRecord:
        items = [
            BenchItem("dense", self.root / "dense.gguf", "dense", "t"),
            BenchItem("healed", self.root / "healed.gguf", "healed", "t"),
        ]
        return run_bench(
            items,
            BenchSettings(prompt=8, generate=20, rounds=6, threads=1, time_budget_s=None),
            open_artifact=lambda path, **how: Session(self, 10.0 if "dense" in path.name else 8.0),
            root=self.root,
            measure_bandwidth=lambda threads: BANDWIDTH,
            probes=self.probes,
            clock=lambda: self.now,
            sleep=lambda seconds: None,
        )


class Session:
    """A runtime that draws so many watts while it runs."""

    def __init__(self, board: Board, watts: float) -> None:
        self.board, self.watts = board, watts
        self.info = ArtifactInfo("fake", "1", "CUDA", "llama", 5, 1024, 320, 12.5, 1000)

    def time_once(self, *, prompt: int, generate: int, depth: int = 0, seed: int = 0) -> Timing:
        self.board.run(1.0, self.watts)
        self.board.run(0.1 * generate, self.watts)
        return Timing(prompt, generate, depth, 1.0, 1001.0, 0.1 * generate)

    def peak_rss_mib(self) -> float:
        return 64.0

    def close(self) -> None:
        pass


def test_a_bench_on_a_jetson_tells_the_energy_of_a_token(tmp_path):
    record = Board(tmp_path, rails=True).bench()
    dense, healed = record.runs
    assert dense.j_per_token == pytest.approx(10.0 * 0.1)
    assert healed.j_per_token == pytest.approx(8.0 * 0.1)
    assert dense.energy is not None
    assert dense.energy.net is not None
    assert dense.energy.net.median == pytest.approx(8.0 * 0.1)
    assert record.device["jetpack"] == "6"
    assert record.device["builds"] == {}
    told = "\n".join(costs.lines(record))
    assert "energy by INA3221 VDD_IN (the whole module; the carrier board is not in it)" in told
    assert "decode alone, without the prompt" in told
    assert "energy of dense: 1.000 J a token (1.000 to 1.000), net of 2.0 W idle 0.800" in told
    assert "temperature: cpu-thermal 52 to 52 degrees C" in told
    assert told in as_markdown(record).replace("\n- ", "\n")
    row = json.loads(as_jsonl(record).splitlines()[0])
    assert (row["j_per_token"], row["j_per_token_net"]) == pytest.approx((1.0, 0.8))
    assert from_plain(to_plain(record), BenchRecord) == record


def test_a_jetson_without_its_rail_says_not_measured_and_why(tmp_path):
    record = Board(tmp_path, rails=False).bench()
    assert [run.j_per_token for run in record.runs] == [None, None]
    assert record.settings.energy.startswith("not measured: a power rail is not readable")
    assert "curr1_input is not there" in costs.lines(record)[0]
    assert len([line for line in costs.lines(record) if "energy" in line]) == 1


def test_parts_of_memory_that_are_not_known_are_left_out():
    found = MemoryRecord(41.2, 105.0, 512.0, None, "the process, by NVML")
    assert costs.memory_words(found) == (
        "41 MiB private, 105 MiB of mapped weights (page cache), "
        "512 MiB on the GPU (the process, by NVML)"
    )
    assert costs.memory_words(MemoryRecord()) == ""
