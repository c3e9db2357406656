"""The probes that go along with a bench: energy, memory and heat of known devices."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from clp_edge.bench.probes import Probes
from clp_edge.bench.probes.builds import ASKED, builds_of
from clp_edge.bench.probes.memory import mapped_mib, private_mib
from clp_edge.bench.probes.nvml import open_nvml
from clp_edge.bench.probes.thermal import Watch, look, throttled
from clp_edge.errors import RuntimeDiedError
from clp_edge.runtimes import Timing
from tests.bench.test_probes import plant
from tests.bench.trees import FakeNvml, orin_nano, packages

RAIL = "sys/class/hwmon/hwmon1/curr1_input"
PACKAGE = "sys/class/powercap/intel-rapl:0/energy_uj"


class Device:
    """Time and power of a device that is not there; every tenth of a second is read."""

    def __init__(self, root: Path, *, nvml: FakeNvml | None = None) -> None:
        self.root, self.fake, self.now = root, nvml, 0.0
        if (root / RAIL).exists():
            (root / RAIL).write_text("400\n")
        opened = None if nvml is None else open_nvml(nvml)[0]
        self.probes = Probes(
            root, nvml=opened, clock=lambda: self.now, sleep=self.idle, threaded=False
        )
        self.session = SimpleNamespace(pid=4242, info=SimpleNamespace(backend="CPU"))

    def idle(self, seconds: float) -> None:
        self.run(seconds, 0.4)

    def run(self, seconds: float, amperes: float) -> None:
        """Pass time at 5 V and so many amperes on each sensor that there is."""
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            if (self.root / RAIL).exists():
                (self.root / RAIL).write_text(f"{round(amperes * 1000)}\n")
            if (self.root / PACKAGE).exists():
                step = round(5 * amperes * 0.1 * 1e6)
                (self.root / PACKAGE).write_text(f"{int((self.root / PACKAGE).read_text()) + step}")
            if self.fake is not None:
                self.fake.millijoules += round(5 * amperes * 0.1 * 1e3)
                self.fake.milliwatts = round(5000 * amperes)
            self.probes.meter.tick()

    def measure(self, name: str, amperes: float, *, rounds: int = 6) -> None:
        """Rounds of 1 s of prompt at twice the current, then 2 s that give 20 tokens."""
        for _ in range(rounds):
            with self.probes.around(name, self.session) as window:
                self.run(1.0, 2 * amperes)
                self.run(2.0, amperes)
                window.timed(Timing(64, 20, 0, 1.0, 1001.0, 2.0))
            self.run(0.5, 0.4)


def test_the_energy_of_a_token_is_that_of_decode_alone_gross_and_net(tmp_path):
    device = Device(orin_nano(tmp_path))
    device.probes.before()
    device.measure("dense", 2.0)
    device.measure("healed", 1.0)
    dense, healed = device.probes.energy("dense"), device.probes.energy("healed")
    # 10 W for 2 s over 20 tokens, and 2 W of it were there before; the prompt's 20 W do not count,
    # but for the slope of one reading (0.05 s) that joins the two levels
    assert dense.gross is not None
    assert dense.net is not None
    assert healed.gross is not None
    slope = 10 * 0.05 / 20
    assert dense.gross.median == pytest.approx(1.0, abs=1.1 * slope)
    assert dense.gross.median - dense.net.median == pytest.approx(2.0 * 2 / 20, abs=1e-6)
    assert healed.gross.median == pytest.approx(0.5, abs=0.6 * slope)
    assert (dense.gross.n, len(dense.j_per_token), dense.reason) == (6, 6, None)
    assert dense.idle_watts == pytest.approx(2.0)
    assert dense.watts == pytest.approx(10.0, rel=0.03)
    assert (dense.source, dense.covers) == ("INA3221 VDD_IN", "the whole module")
    assert dense.period_s == 0.1
    assert "decode alone" in device.probes.describe()


def test_a_gpu_run_is_nvmls_counter_and_the_processors(tmp_path):
    device = Device(packages(tmp_path, energy_uj=7), nvml=FakeNvml())
    device.probes.before()
    device.session.info.backend = "CUDA, 12 of 30 layers"
    device.measure("dense", 2.0)
    found = device.probes.energy("dense")
    assert found.source == "NVML energy counter + RAPL"
    assert found.gross is not None
    assert found.gross.median == pytest.approx(2.0, abs=0.01)  # 10 W on each of them
    assert "GPU 0 (NVIDIA GeForce RTX 3050)" in found.covers
    assert "package" in found.covers


def test_nvmls_power_is_sampled_where_there_is_no_counter(tmp_path):
    fake = FakeNvml(without=("nvmlDeviceGetTotalEnergyConsumption",))
    device = Device(tmp_path, nvml=fake)
    device.probes.before()
    device.session.info.backend = "CUDA"
    device.measure("dense", 2.0)
    found = device.probes.energy("dense")
    assert (found.source, "mean of the last second" in found.note) == ("NVML power", True)
    assert found.gross is not None
    assert found.gross.median == pytest.approx(1.0, abs=0.03)


def test_no_source_gives_a_reason_and_no_wait(tmp_path):
    device = Device(tmp_path)
    device.probes.before()
    assert device.now == 0.0
    device.measure("dense", 1.0)
    found = device.probes.energy("dense")
    assert (found.gross, found.net, found.j_per_token) == (None, None, ())
    assert found.reason == "no RAPL energy counter in sysfs"
    assert device.probes.describe().startswith("not measured: ")
    assert device.probes.energy("never run").reason == "no run was measured"


def test_a_decode_too_short_for_the_readings_is_not_measured(tmp_path):
    device = Device(orin_nano(tmp_path))
    device.probes.before()
    with device.probes.around("dense", device.session) as window:
        device.run(0.3, 1.0)
        window.timed(Timing(8, 4, 0, 0.1, 100.0, 0.2))
    assert device.probes.energy("dense").reason == "0.20 s are too short for readings every 0.1 s"


def test_a_run_that_dies_counts_for_nothing(tmp_path):
    device = Device(orin_nano(tmp_path))
    device.probes.before()
    with suppress(RuntimeDiedError), device.probes.around("dense", device.session):
        device.run(2.0, 9.0)
        raise RuntimeDiedError("llama.cpp died", "signal 6")
    assert device.probes.energy("dense").gross is None
    device.measure("dense", 1.0)
    found = device.probes.energy("dense")
    assert found.gross is not None
    assert found.gross.n == 6


def test_unified_memory_is_what_memavailable_lost(tmp_path):
    device = Device(orin_nano(tmp_path))
    device.session.info.backend = "CUDA"
    with device.probes.opening("dense", tmp_path / "dense.gguf"):
        plant(tmp_path, {"proc/meminfo": f"MemAvailable: {6000000 - 300 * 1024} kB\n"})
    with device.probes.around("dense pp8 tg4", device.session) as window:
        device.run(1.0, 1.0)
        plant(tmp_path, {"proc/meminfo": f"MemAvailable: {6000000 - 350 * 1024} kB\n"})
        device.run(1.0, 1.0)
        plant(tmp_path, {"proc/meminfo": f"MemAvailable: {6000000 - 320 * 1024} kB\n"})
        window.timed(Timing(8, 4, 0, 0.1, 100.0, 1.5))
    found = device.probes.memory("dense", device.session)
    assert found.unified_mib == pytest.approx(350.0)
    assert (found.gpu_mib, "one memory" in found.gpu_source) == (None, True)


def test_gpu_memory_is_the_processs_or_the_difference(tmp_path):
    fake = FakeNvml()
    device = Device(tmp_path, nvml=fake)
    device.session.info.backend = "CUDA"
    with device.probes.around("dense", device.session) as window:
        device.run(1.0, 1.0)
        fake.of_process = 512 * 2**20
        device.run(1.0, 1.0)
        fake.of_process = 100 * 2**20
        device.run(1.0, 1.0)
        window.timed(Timing(8, 4, 0, 0.1, 100.0, 2.5))
    found = device.probes.memory("dense", device.session)
    assert (found.gpu_mib, found.gpu_source) == (512.0, "the process, by NVML")

    hidden = FakeNvml(pid=1)  # a container: the process has another number outside
    device = Device(tmp_path, nvml=hidden)
    device.session.info.backend = "CUDA"
    with device.probes.opening("dense", tmp_path / "dense.gguf"):
        hidden.used += 250 * 2**20
    found = device.probes.memory("dense", device.session)
    assert (found.gpu_mib, "lost by opening" in found.gpu_source) == (250.0, True)
    device.session.info.backend = "CPU"
    assert device.probes.memory("dense", device.session).gpu_mib is None


def test_mapped_weights_are_told_from_private_memory(tmp_path):
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"x")
    rows = [
        f"7f00-7f10 r--s 00000000 08:01 77 {weights}",
        "Size:  90000 kB",
        "Rss:   51200 kB",
        "7f20-7f30 r--p 00000000 08:01 78 /usr/lib/libc.so.6",
        "Rss:   2048 kB",
        f"7f40-7f50 r--s 00010000 08:01 77 {weights}",
        "Rss:   1024 kB",
        "7f60-7f70 rw-p 00000000 00:00 0 ",
        "Rss:   4096 kB",
    ]
    status = "Name:\tpython\nRssAnon:\t   40960 kB\nRssFile:\t 54272 kB\nRssShmem:\t 1024 kB\n"
    plant(tmp_path, {"proc/9/smaps": "\n".join(rows) + "\n", "proc/9/status": status})
    assert mapped_mib(tmp_path, 9, weights) == 51.0
    assert mapped_mib(tmp_path, 9, tmp_path) == 51.0  # a folder's files lie under it
    assert mapped_mib(tmp_path, 9, tmp_path / "other.gguf") == 0.0
    assert mapped_mib(tmp_path, 8, weights) is None
    assert private_mib(tmp_path, 9) == 41.0
    assert private_mib(tmp_path, 8) is None


def test_heat_before_and_after_and_what_slowed_a_jetson_down(tmp_path):
    device = Device(orin_nano(tmp_path))
    device.probes.before()
    device.measure("dense", 1.0, rounds=1)
    heat, warnings = device.probes.after()
    assert heat.before == {"cpu-thermal": 51.5}  # the GPU's sensor is switched off
    assert (heat.throttled, warnings) == ((), [])  # 27 events of before, and the fan turns
    assert heat.cpu_mhz is not None
    assert heat.cpu_mhz.median == pytest.approx(1510.4)

    device = Device(tmp_path)
    device.probes.before()
    plant(
        tmp_path,
        {
            "sys/class/hwmon/hwmon0/oc3_event_cnt": "30\n",
            "sys/class/thermal/cooling_device1/cur_state": "1\n",
            "sys/class/thermal/thermal_zone0/temp": "97000\n",
        },
    )
    device.measure("dense", 1.0, rounds=1)
    heat, (warning,) = device.probes.after()
    assert "throttled by instantaneous over-current (3 times)" in warning
    assert "cpu-throttle-alert" in warning
    assert "pwm-fan" not in warning
    assert "cpu-thermal is at 97 degrees C" in warning
    assert heat.after["cpu-thermal"] == 97.0


def test_nvmls_reasons_for_slowing_down_are_warned_about(tmp_path):
    fake = FakeNvml()
    device = Device(tmp_path, nvml=fake)
    device.probes.before()
    fake.reasons = 0x1 | 0x20
    device.measure("dense", 1.0, rounds=1)
    heat, (warning,) = device.probes.after()
    assert "GPU 0: temperature (software)" in warning
    assert heat.after == {"GPU 0": 61.0}


def test_a_laptops_throttle_counts_and_a_falling_clock(tmp_path):
    base = "sys/devices/system/cpu"
    counts = f"{base}/cpu0/thermal_throttle/package_throttle_count"
    plant(tmp_path, {counts: "5\n", f"{base}/cpu0/cpufreq/scaling_cur_freq": "3000000\n"})
    before, watch = look(tmp_path), Watch(tmp_path, None)
    for khz in [3_000_000] * 4 + [2_400_000] * 8:
        plant(tmp_path, {f"{base}/cpu0/cpufreq/scaling_cur_freq": f"{khz}\n"})
        watch.look()
    plant(tmp_path, {counts: "9\n"})
    lines = throttled(before, look(tmp_path), watch)
    assert lines == [
        "the processor's package throttled (4 times)",
        "the processor's clock fell from 3000 to 2400 MHz",
    ]


def test_the_builds_of_the_runtimes_are_named_or_the_reason():
    found = builds_of(["onnxruntime", "torch", "onnxruntime"])
    assert list(found) == ["onnxruntime"]
    assert "providers: " in found["onnxruntime"] or "not known" in found["onnxruntime"]


def test_a_broken_library_costs_its_line_alone(monkeypatch):
    monkeypatch.setitem(ASKED, "llama.cpp", "os:abort")
    assert "not known" in builds_of(["llama.cpp"])["llama.cpp"]


def test_the_thread_follows_a_real_run(tmp_path):
    probes = Probes(orin_nano(tmp_path), sleep=lambda seconds: None, period_s=0.01)
    probes.before()
    import time

    session = SimpleNamespace(pid=None, info=SimpleNamespace(backend="CPU"))
    with probes.around("dense", session) as window:
        begin = time.perf_counter()
        time.sleep(0.3)
        window.timed(Timing(8, 10, 0, 0.1, 100.0, time.perf_counter() - begin))
    probes.after()
    found = probes.energy("dense")
    assert found.gross is not None, found.reason
    assert found.gross.median == pytest.approx(6.0 * 0.3 / 10, rel=0.2)
    assert found.net is None  # no time was given to the idle power
