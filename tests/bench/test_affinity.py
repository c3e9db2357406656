"""Which processors a bench runs on, from a tree of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from clp_edge.bench.affinity import CPUS, choose_cpus, parse_cpus


def machine(root: Path, cpus: dict[int, tuple[int, int]], file: str = "cpu_capacity") -> Path:
    """cpu -> (core, capacity)."""
    for cpu, (core, capacity) in cpus.items():
        folder = root / CPUS / f"cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology" / "core_id").write_text(f"{core}\n")
        (folder / "topology" / "physical_package_id").write_text("0\n")
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(f"{capacity}\n")
    return root


def test_one_processor_of_each_core_before_a_second(tmp_path: Path) -> None:
    root = machine(tmp_path, {0: (0, 0), 1: (0, 0), 2: (1, 0), 3: (1, 0)})
    assert choose_cpus(2, allowed={0, 1, 2, 3}, root=root) == (0, 2)
    assert choose_cpus(3, allowed={0, 1, 2, 3}, root=root) == (0, 1, 2)
    assert choose_cpus(2, allowed={1, 3}, root=root) == (1, 3)
    assert choose_cpus(5, allowed={0, 1, 2, 3}, root=root) is None


@pytest.mark.parametrize("file", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_the_large_cores_first(tmp_path: Path, file: str) -> None:
    cores = {0: (0, 400), 1: (1, 400), 2: (2, 1024), 3: (3, 1024)}
    root = machine(tmp_path, cores, file)
    assert choose_cpus(2, allowed=range(4), root=root) == (2, 3)
    assert choose_cpus(3, allowed=range(4), root=root) == (0, 2, 3)


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "0-99999"])
def test_lists_of_processors(text: str) -> None:
    assert parse_cpus("0-2, 4,4") == (0, 1, 2, 4)
    with pytest.raises(ValueError, match=r"."):
        parse_cpus(text)
