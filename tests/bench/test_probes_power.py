"""Where joules come from: a Jetson's rails, NVML, RAPL; and why there are none."""

from __future__ import annotations

import os

import pytest

from clp_edge.bench.probes import probe
from clp_edge.bench.probes.files import ProbeFaultError
from clp_edge.bench.probes.meter import Meter, integral
from clp_edge.bench.probes.nvml import open_nvml
from clp_edge.bench.probes.power import find_sources
from clp_edge.bench.probes.rapl import find as find_rapl
from clp_edge.bench.probes.source import Source
from tests.bench.test_probes import plant
from tests.bench.trees import (
    AGX_ORIN,
    AGX_THOR,
    ORIN_NANO,
    FakeNvml,
    agx_orin,
    agx_thor,
    clocks,
    orin_nano,
    packages,
    rails,
    release,
)


@pytest.mark.parametrize(
    ("tree", "options", "model", "l4t", "jetpack", "watts", "source"),
    [
        (orin_nano, {"major": 35, "revision": "4.1"}, ORIN_NANO, "35.4.1", "5", 6.0, "VDD_IN"),
        (orin_nano, {}, ORIN_NANO, "36.4.3", "6", 6.0, "VDD_IN"),
        (orin_nano, {"major": 38, "revision": "4.0"}, ORIN_NANO, "38.4.0", "7", 6.0, "VDD_IN"),
        (agx_orin, {"major": 35, "revision": "3.1"}, AGX_ORIN, "35.3.1", "5", 11.0, None),
        (agx_orin, {}, AGX_ORIN, "36.3.0", "6", 11.0, None),
        (agx_thor, {}, AGX_THOR, "38.2.0", "7", 23.0, "VIN"),
    ],
)
def test_pitfall_20_a_jetsons_power_is_read_off_its_rails(
    tmp_path, tree, options, model, l4t, jetpack, watts, source
):
    tree(tmp_path, **options)
    card = probe(tmp_path)
    assert (card.jetson_model, card.l4t, card.jetpack) == (model, l4t, jetpack)
    found = find_sources(tmp_path, None, "not asked")
    for backend in ("CPU", "CUDA", "BLAS"):
        (rail,), reason = found.of(backend)
        assert rail.read() == pytest.approx(watts)
        assert reason == ""
    names = source or "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert rail.name.split(maxsplit=1)[1] == names
    if source is None:
        assert "sum of rails" in rail.note


def test_jetpack_4_has_its_rails_in_iio(tmp_path):
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    plant(
        tmp_path,
        {
            "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
            **release(32, "7.3"),
            f"{folder}/rail_name_0": "POM_5V_IN\n",
            f"{folder}/in_power0_input": "2875\n",
            f"{folder}/rail_name_1": "POM_5V_GPU\n",
            f"{folder}/in_voltage1_input": "5000\n",
            f"{folder}/in_current1_input": "100\n",
        },
    )
    (rail,), _ = find_sources(tmp_path, None, "").of("CUDA")
    assert rail.read() == pytest.approx(2.875)
    assert probe(tmp_path).jetpack == "4"


def test_a_missing_rail_gives_no_smaller_total(tmp_path):
    agx_orin(tmp_path)
    (tmp_path / "sys/class/hwmon/hwmon3/in2_label").unlink()
    sources, reason = find_sources(tmp_path, None, "").of("CPU")
    assert sources == ()
    assert "no known total" in reason
    assert "VDD_CPU_CV" not in reason
    assert "VDD_GPU_SOC" in reason


def test_a_board_without_rails_says_so(tmp_path):
    plant(tmp_path, {"proc/device-tree/model": f"{ORIN_NANO}\0"})
    assert find_sources(tmp_path, None, "").of("CPU") == ((), "no INA3221 power rails in sysfs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_rail_that_may_not_be_read_says_so(tmp_path):
    orin_nano(tmp_path)
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").chmod(0)
    sources, reason = find_sources(tmp_path, None, "").of("CPU")
    assert sources == ()
    assert "curr1_input may not be read by this user" in reason


def test_permission_errors_become_reasons(tmp_path, monkeypatch):
    """As root no file is unreadable, so the system's answer is given here."""
    orin_nano(tmp_path / "board")
    packages(tmp_path / "laptop", energy_uj=5)
    locked = {"curr1_input", "energy_uj"}
    path_type = type(tmp_path)
    plain = path_type.read_text

    def read_text(self, *arguments, **options):
        if self.name in locked:
            raise PermissionError(13, "Permission denied")
        return plain(self, *arguments, **options)

    monkeypatch.setattr(path_type, "read_text", read_text)
    sources, reason = find_sources(tmp_path / "board", None, "").of("CPU")
    assert (sources, "may not be read by this user" in reason) == ((), True)
    sources, reason = find_sources(tmp_path / "laptop", None, "").of("CPU")
    assert (sources, "root may read it" in reason) == ((), True)


def test_x86_without_anything_says_why(tmp_path):
    found = find_sources(tmp_path, None, "nvidia-ml-py is not installed")
    assert found.every == ()
    assert found.of("CPU") == ((), "no RAPL energy counter in sysfs")
    assert found.of("CUDA") == ((), "nvidia-ml-py is not installed")
    assert "Metal" in found.of("Metal")[1]


def test_rapl_adds_packages_and_memory_and_unwraps(tmp_path):
    packages(tmp_path, energy_uj=262_143_000_000, memory_uj=1_000_000)
    source, _ = find_rapl(tmp_path)
    assert source is not None
    assert source.read() == 0.0
    packages(tmp_path, energy_uj=671_150, memory_uj=1_500_000)  # wrapped: 328,850 + 671,150 uJ
    assert source.read() == pytest.approx(1.0 + 0.5)
    packages(tmp_path, energy_uj=1_671_150, memory_uj=1_500_000)
    assert source.read() == pytest.approx(2.5)
    assert "memory" in source.covers


def test_a_counter_that_starts_again_without_a_known_range_is_no_measurement(tmp_path):
    packages(tmp_path, energy_uj=9_000_000)
    (tmp_path / "sys/class/powercap/intel-rapl:0/max_energy_range_uj").unlink()
    source, _ = find_rapl(tmp_path)
    assert source is not None
    packages_file = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    packages_file.write_text("5\n")
    with pytest.raises(ProbeFaultError, match="range is not known"):
        source.read()


def test_nvmls_counter_comes_before_its_power(tmp_path):
    nvml, _ = open_nvml(FakeNvml())
    assert nvml is not None
    (board,), _ = find_sources(tmp_path, nvml, "").of("CUDA")
    assert (board.kind, board.read()) == ("joules", 1000.0)
    older, _ = open_nvml(FakeNvml(without=("nvmlDeviceGetTotalEnergyConsumption",)))
    (board,), _ = find_sources(tmp_path, older, "").of("CUDA")
    assert (board.kind, board.read()) == ("watts", 12.0)
    both = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage")
    none, _ = open_nvml(FakeNvml(without=both))
    assert find_sources(tmp_path, none, "").of("CUDA") == (
        (),
        "GPU 0 tells no power (nvmlDeviceGetPowerUsage: Not Supported)",
    )


def test_a_run_on_the_gpu_adds_the_processor_where_it_can_be_read(tmp_path):
    packages(tmp_path, energy_uj=5)
    nvml, _ = open_nvml(FakeNvml())
    found = find_sources(tmp_path, nvml, "")
    assert [source.name for source in found.of("CUDA")[0]] == ["NVML energy counter", "RAPL"]
    assert [source.name for source in found.of("CPU")[0]] == ["RAPL"]


def test_nvml_that_does_not_answer_gives_its_reason():
    assert open_nvml(FakeNvml(without=("nvmlInit",))) == (
        None,
        "NVML does not answer (nvmlInit: Not Supported)",
    )


def test_the_card_takes_gpus_from_nvml_and_the_power_mode_from_its_query(tmp_path):
    nvml, _ = open_nvml(FakeNvml())
    card = probe(tmp_path / "laptop", nvml=nvml)
    assert (card.gpus, card.gpu_driver) == (("NVIDIA GeForce RTX 3050",), "550.54.15")
    assert card.gpu_memory_mib == (4096,)
    board = orin_nano(tmp_path / "board")
    assert probe(board).power_mode is None
    said = probe(board, nvpmodel=lambda: "NV Power Mode: MAXN_SUPER\n2\n")
    assert said.power_mode == "MAXN_SUPER (nvpmodel 2)"
    assert (said.jetson_clocks, card.jetson_clocks) == (False, None)
    plant(board, clocks(1510400, 1510400))
    assert probe(board).jetson_clocks is True


def test_jetpack_5_may_leave_the_word_jetson_out(tmp_path):
    plant(
        tmp_path,
        {
            "proc/device-tree/model": "NVIDIA Orin Nano Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
            **release(35, "3.1"),
            **rails("sys/class/hwmon/hwmon1", ("VDD_IN", 5000, 1000)),
        },
    )
    assert probe(tmp_path).jetson_model == "NVIDIA Orin Nano Developer Kit"


class Time:
    """A clock that stands still until it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def ticked(meter: Meter, time: Time, seconds: float) -> None:
    for _ in range(round(seconds / 0.1)):
        time.now = round(time.now + 0.1, 6)
        meter.tick()


def test_power_is_integrated_by_trapezoids_and_a_counter_by_its_difference():
    time = Time()
    ramp = Source("ramp", "", "watts", lambda: 10.0 * time.now)
    counter = Source("counter", "", "joules", lambda: 500.0 + 5.0 * time.now**2)
    meter = Meter((ramp, counter), clock=time)
    meter.tick()
    ticked(meter, time, 3.0)
    # ends that lie between two readings; the integral of 10 t from 0.55 to 2.25
    exact = 5 * (2.25**2 - 0.55**2)
    assert meter.joules(0, 0.55, 2.25) == pytest.approx(exact, rel=1e-9)
    assert meter.joules(1, 0.55, 2.25) == pytest.approx(exact, rel=2e-3)
    assert integral([(0.0, 7.0), (2.0, 7.0)], 0.5, 1.5) == pytest.approx(7.0)


def test_holes_and_short_windows_are_no_measurement():
    time = Time()
    broken = [False]

    def read() -> float:
        if broken[0]:
            raise ProbeFaultError("in1_input is not there")
        return 5.0

    meter = Meter((Source("rail", "", "watts", read),), clock=time)
    meter.tick()
    ticked(meter, time, 1.0)
    with pytest.raises(ProbeFaultError, match=r"0\.30 s are too short"):
        meter.joules(0, 0.2, 0.5)
    broken[0] = True
    ticked(meter, time, 1.0)
    with pytest.raises(ProbeFaultError, match=r"too few readings.*is not there"):
        meter.joules(0, 0.5, 1.8)
    broken[0] = False
    ticked(meter, time, 1.0)
    with pytest.raises(ProbeFaultError, match=r"no reading for 1\.1 s"):
        meter.joules(0, 0.5, 2.5)
    meter.forget(2.0)
    assert meter.joules(0, 2.2, 2.9) == pytest.approx(3.5)


def test_the_thread_reads_at_its_period():
    import time

    meter = Meter((Source("rail", "", "watts", lambda: 5.0),), period_s=0.01)
    meter.start()
    meter.tick()
    start = time.monotonic()
    time.sleep(0.3)
    end = time.monotonic()
    meter.tick()
    meter.stop()
    assert 8 <= meter.count(start, end) <= 40
    assert meter.joules(0, start, end) == pytest.approx(5.0 * (end - start))
