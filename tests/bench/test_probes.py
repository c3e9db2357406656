from __future__ import annotations

from pathlib import Path

import pytest

from clp_edge.bench.bandwidth import last_level_cache, read_bandwidth
from clp_edge.bench.probes import Load, busy_share, busy_warning, probe, wait_until_calm

ORIN_PROCESSOR = "processor\t: {}\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n"
LAPTOP_PROCESSOR = (
    "processor\t: {}\nmodel name\t: AMD Ryzen 7 5800U\nphysical id\t: 0\ncore id\t: {}\n"
)


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cache(cpu: int, index: int, level: int, size: str, shared: str, kind: str) -> dict[str, str]:
    folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    return {
        f"{folder}/level": f"{level}\n",
        f"{folder}/size": f"{size}\n",
        f"{folder}/shared_cpu_list": f"{shared}\n",
        f"{folder}/type": f"{kind}\n",
    }


@pytest.fixture
def orin(tmp_path) -> Path:
    return plant(
        tmp_path,
        {
            "proc/cpuinfo": "\n".join(ORIN_PROCESSOR.format(i) for i in range(6)),
            "proc/meminfo": "MemTotal:        7802416 kB\nMemAvailable:    6000000 kB\n",
            "proc/loadavg": "1.25 0.80 0.40 2/300 4000\n",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
            "var/lib/nvpmodel/status": "pmode:0002\n",
            "etc/nvpmodel.conf": (
                "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
                "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
            ),
            "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
            **cache(0, 0, 1, "64K", "0", "Data"),
            **cache(0, 3, 3, "2048K", "0-3", "Unified"),
            **cache(4, 3, 3, "2048K", "4-5", "Unified"),
        },
    )


def test_a_jetson_is_read_off_its_files(orin):
    card = probe(orin)
    assert card.name == card.jetson_model == "NVIDIA Jetson Orin Nano Developer Kit"
    assert card.cpu_model == "Cortex-A78AE"
    assert (card.cores, card.threads, card.memory_mib) == (6, 6, 7619)
    assert card.power_mode == "MAXN_SUPER (nvpmodel 2)"
    assert card.cpu_governor == "schedutil"
    assert card.last_level_cache_bytes == 4 << 20  # two clusters of 2 MiB
    assert card.gpus == ("NVIDIA Jetson Orin Nano Developer Kit (integrated)",)
    assert (card.os, card.kernel) == ("Ubuntu 22.04.5 LTS", "5.15.148-tegra")
    assert card.load_average_1m == 1.25


def test_a_laptop_with_two_threads_a_core_and_a_gpu(tmp_path):
    processors = [LAPTOP_PROCESSOR.format(i, i // 2) for i in range(16)]
    root = plant(
        tmp_path,
        {
            "proc/cpuinfo": "\n".join(processors),
            "proc/driver/nvidia/gpus/0000:01:00.0/information": (
                "Model: \t\t NVIDIA GeForce RTX 3050\nIRQ:   \t\t 70\n"
            ),
            "proc/driver/nvidia/version": (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n"
            ),
            "sys/firmware/acpi/platform_profile": "balanced\n",
        },
    )
    card = probe(root)
    assert (card.cpu_model, card.cores, card.threads) == ("AMD Ryzen 7 5800U", 8, 16)
    assert card.gpus == ("NVIDIA GeForce RTX 3050",)
    assert card.gpu_driver == "550.54.15"
    assert card.power_mode == "balanced"
    assert card.as_dict()["gpus"] == ["NVIDIA GeForce RTX 3050"]


def test_an_empty_tree_gives_nulls_not_crashes(tmp_path):
    card = probe(tmp_path)
    assert card.memory_mib is card.power_mode is card.jetson_model is None
    assert card.last_level_cache_bytes is card.load_average_1m is None
    assert card.gpus == ()
    assert card.cores >= 1
    assert busy_share(tmp_path, sleep=lambda seconds: None) is None


def test_a_busy_machine_is_warned_about(tmp_path):
    # user nice system idle iowait irq softirq steal guest guest_nice
    plant(tmp_path, {"proc/stat": "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 1 1 1\n"})

    def while_sleeping(seconds: float) -> None:
        plant(tmp_path, {"proc/stat": "cpu  130 0 50 860 60 0 0 0 0 0\n"})

    share = busy_share(tmp_path, sleep=while_sleeping)
    assert share == pytest.approx(0.30)
    assert busy_share(tmp_path, sleep=lambda seconds: None) is None  # no tick has passed


class Machine:
    """/proc/stat of a machine that is half busy for its first `busy_s` seconds."""

    def __init__(self, root: Path, busy_s: float) -> None:
        self.root, self.busy_s, self.now, self.idle, self.user = root, busy_s, 0.0, 0, 0
        self.sleep(0.0)

    def sleep(self, seconds: float) -> None:
        busy = max(0.0, min(seconds, self.busy_s - self.now))
        self.now += seconds
        self.user += round(100 * busy)
        self.idle += round(200 * seconds) - round(100 * busy)  # two processors
        plant(self.root, {"proc/stat": f"cpu  {self.user} 0 0 {self.idle} 0 0 0 0 0 0\n"})


def test_pitfall_27_a_passing_job_is_waited_for(tmp_path):
    said: list[str] = []
    machine = Machine(tmp_path, busy_s=4.0)
    load = wait_until_calm(tmp_path, sleep=machine.sleep, say=said.append)
    assert load.before == pytest.approx(0.5)
    assert load.after == pytest.approx(0.0)
    assert 4.0 <= load.waited_s <= 6.0
    assert machine.now == pytest.approx(load.waited_s + 0.4)
    assert len(said) == load.waited_s
    assert "50%" in said[0]
    text = busy_warning(load, 1.5)
    assert text is not None
    assert "50%" in text
    assert f"calm after a wait of {load.waited_s:.0f} s" in text


def test_pitfall_27_the_wait_is_bounded_and_the_load_is_said(tmp_path):
    machine = Machine(tmp_path, busy_s=1e9)
    load = wait_until_calm(tmp_path, sleep=machine.sleep)
    assert (load.waited_s, machine.now) == (20.0, pytest.approx(20.4))
    text = busy_warning(load, 1.5)
    assert text is not None
    assert "50% after a wait of 20 s (load average 1.5)" in text
    assert "close other programs" in text


def test_a_calm_machine_is_not_waited_for(tmp_path, tmp_path_factory):
    machine = Machine(tmp_path, busy_s=0.0)
    load = wait_until_calm(tmp_path, sleep=machine.sleep)
    assert (load, machine.now) == (Load(0.0, 0.0, 0.0), 0.4)
    assert busy_warning(load, 1.5) is None
    unknown = wait_until_calm(tmp_path_factory.mktemp("empty"), sleep=machine.sleep)
    assert (unknown, busy_warning(unknown, 1.5)) == (Load(None, None, 0.0), None)


def test_pitfall_21_the_buffer_is_four_caches_or_there_is_no_figure(orin, tmp_path_factory):
    plant(orin, cache(0, 3, 3, "20M", "0-5", "Unified"))  # replaces cluster 0: 20 MiB + 2 MiB
    assert last_level_cache(orin) == 22 << 20
    found = read_bandwidth(2, seconds=0.1, root=orin)
    assert found is not None
    assert found.buffer_bytes >= 4 * found.cache_bytes == 4 * (22 << 20)
    assert 0.05 < found.gb_per_s <= found.fastest_gb_per_s < 10_000
    assert (found.threads, found.passes >= 2) == (2, True)
    assert read_bandwidth(2, root=tmp_path_factory.mktemp("empty")) is None  # the cache is unknown
    plant(orin, {"proc/meminfo": "MemAvailable:  200000 kB\n"})
    assert read_bandwidth(2, root=orin) is None  # a quarter of it is less than the buffer
