from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from clp_edge.doctor import (
    CORE,
    PROBES,
    Answer,
    Diagnosis,
    Row,
    examine,
    multiply_on,
    run_probe,
)
from tests.bench.test_probes import ORIN_PROCESSOR, plant
from tests.bench.trees import orin_nano

GOOD = {
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "safetensors": "0.6.2",
    "numpy": "2.4.6",
    "gguf": "0.19.0",
    "tokenizers": "0.22.1",
    "jinja2": "3.1.6",
    "accelerate": "1.15.0",
    "psutil": "7.2.2",
    "rich": "15.0.0",
    "typer": "0.29.2",
    "msgspec": "0.21.1",
}
ANSWERS = {
    "torch": Answer({"version": "2.13.0+cpu", "cuda": None, "gpus": []}),
    "onnxruntime": Answer({"version": "1.23.0", "providers": ["CPUExecutionProvider"]}),
    "onnxruntime-genai": Answer({"version": "0.10.0"}),
    "triton": Answer({"version": "3.5.0"}),
    "kernels": Answer({"kernels": "torch reference (no CUDA device)", "cause": "", "cure": ""}),
}
RUNS = Answer({"fault": ""})
PROVIDERS = [f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt", "Azure")]
CODE_TO_NAME = {code: name for name, code in PROBES.items()}
CODE_TO_NAME |= {multiply_on(provider): provider for provider in PROVIDERS}


def look(
    root: Path,
    versions: dict[str, str] | None = None,
    answers: dict[str, Answer] | None = None,
    llama: tuple[bool, str] = (True, "llama-cpp-python 0.3.36, backend CPU"),
) -> Diagnosis:
    installed = GOOD | (versions or {})
    heard = ANSWERS | dict.fromkeys(PROVIDERS, RUNS) | (answers or {})
    return examine(
        root=root,
        folder=root,
        version=lambda package: installed.get(package) or None,
        probe=lambda code: heard[CODE_TO_NAME[code]],
        llama=lambda: llama,
        demo=lambda: None,
    )


@pytest.fixture
def orin(tmp_path) -> Path:
    return plant(
        tmp_path,
        {
            "proc/cpuinfo": "\n".join(ORIN_PROCESSOR.format(i) for i in range(6)),
            "proc/meminfo": "MemTotal:        7802416 kB\n",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        },
    )


@pytest.fixture
def workstation(tmp_path) -> Path:
    information = "proc/driver/nvidia/gpus/0000:01:00.0/information"
    return plant(tmp_path, {information: "Model: \t\t NVIDIA GeForce RTX 3050\n"})


def test_a_machine_with_the_core_is_ready_and_each_missing_extra_has_its_line(tmp_path):
    found = look(tmp_path)
    assert found.ready
    assert all(found.row(name).status == "ok" for name in GOOD)
    assert found.row("llama-cpp-python") == Row(
        "llama-cpp-python",
        "missing",
        "not installed: no GGUF can be quantized or verified",
        "pip install llama-cpp-python",
    )
    assert found.row("onnxruntime").cure == "pip install onnxruntime"
    assert found.row("onnxruntime-genai").cure == "pip install onnxruntime-genai"
    assert found.row("demo model").cure == "pip install 'clp-edge[demo]'"
    assert "not needed without a CUDA device" in found.row("triton").detail
    assert found.row("cuda").status == "missing"


@pytest.mark.parametrize(
    ("package", "version", "status"),
    [
        ("transformers", "4.56.2", "broken"),
        ("transformers", "4.57.0", "ok"),
        ("transformers", "6.0.0", "broken"),
        ("transformers", "5.99.1.dev0", "ok"),
        ("torch", "2.3.1", "broken"),
        ("torch", "2.10.0a0+nv25.9", "ok"),
        ("gguf", "", "missing"),
    ],
)
def test_versions_are_held_against_their_range(tmp_path, package, version, status):
    found = look(tmp_path, {package: version})
    assert found.row(package).status == status
    assert found.ready == (status == "ok")
    if status != "ok" and package != "torch":
        assert found.row(package).cure.startswith(f"pip install '{package}>=")


def test_the_ranges_are_those_of_the_packaging():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    declared = set(re.findall(r'"([^"]+)"', block[1]))
    ours = set()
    for needed in CORE:
        line = f"{needed.package}>={'.'.join(map(str, needed.minimum))}"
        below = needed.below and f",<{'.'.join(map(str, needed.below))}"
        ours.add(line + (below or ""))
    assert ours == declared


@pytest.mark.parametrize(
    ("name", "twins"),
    [
        ("onnxruntime", ("onnxruntime", "onnxruntime-gpu")),
        ("onnxruntime-genai", ("onnxruntime-genai", "onnxruntime-genai-cuda")),
    ],
)
def test_pitfall_18_both_onnx_runtimes_at_once_are_an_error(tmp_path, name, twins):
    found = look(tmp_path, dict.fromkeys(twins, "1.20.0"))
    row = found.row(name)
    assert row.status == "broken"
    assert f"{twins[0]} 1.20.0 and {twins[1]} 1.20.0 are both installed" in row.detail
    assert row.cure == f"pip uninstall -y {twins[0]} {twins[1]} && pip install {twins[0]}"
    assert not found.ready
    alone = look(tmp_path, {twins[1]: "1.20.0"})
    assert alone.row(name).status == "ok"
    assert alone.row(name).detail.startswith(twins[1])


GPU_BUILD = {"onnxruntime": Answer({"version": "1.23.0", "providers": PROVIDERS})}
DOES_NOT_LOAD = Answer({"fault": "it does not load, and the processor computes instead"})


def test_pitfall_18_each_listed_provider_is_run(tmp_path, workstation):
    """The list is that of the build: CUDA stands in it without a GPU, Azure always."""
    versions = {"onnxruntime-gpu": "1.23.0"}
    dead = {
        "CUDAExecutionProvider": DOES_NOT_LOAD,
        "TensorrtExecutionProvider": Answer(None, "its process died of signal 6"),
    }
    row = look(workstation, versions, GPU_BUILD | dead).row("onnxruntime")
    assert row.status == "missing"
    assert row.detail == (
        "onnxruntime-gpu 1.23.0, runs on CPU; CUDA is listed and does not run: it does not load, "
        "and the processor computes instead; Tensorrt is listed and does not run: its process died "
        "of signal 6; no GPU is used"
    )
    assert row.cure == "install the CUDA and cuDNN that onnxruntime-gpu 1.23.0 was built for"
    good = look(workstation, versions, GPU_BUILD).row("onnxruntime")
    assert good == Row("onnxruntime", "ok", "onnxruntime-gpu 1.23.0, runs on CPU, CUDA, Tensorrt")


def test_a_machine_without_a_gpu_does_not_miss_cuda(tmp_path):
    row = look(
        tmp_path,
        {"onnxruntime-gpu": "1.23.0"},
        GPU_BUILD | {"CUDAExecutionProvider": DOES_NOT_LOAD},
    ).row("onnxruntime")
    assert (row.status, row.cure) == ("ok", "")
    assert "CUDA is listed and does not run" in row.detail


def test_onnxruntime_that_cannot_even_use_the_processor_is_broken(tmp_path):
    wrong = {"CPUExecutionProvider": Answer({"fault": "it makes 17.0 of 18"})}
    row = look(tmp_path, {"onnxruntime": "1.23.0"}, wrong).row("onnxruntime")
    assert (row.status, row.cure) == ("broken", "pip install onnxruntime")
    assert "it makes 17.0 of 18" in row.detail


def test_pitfall_18_the_plain_package_on_a_gpu_is_taken_away_first(workstation):
    row = look(workstation, {"onnxruntime": "1.23.0"}).row("onnxruntime")
    assert row.status == "ok"
    assert row.detail == "onnxruntime 1.23.0, runs on CPU; no GPU is used"
    assert row.cure == "pip uninstall -y onnxruntime, then pip install onnxruntime-gpu"


def test_pitfall_18_on_an_orin_the_wheel_without_its_code_is_named(orin):
    no_kernel = Answer({"fault": "no kernel image is available for execution on the device"})
    row = look(
        orin, {"onnxruntime-gpu": "1.23.0"}, GPU_BUILD | {"CUDAExecutionProvider": no_kernel}
    ).row("onnxruntime")
    assert row.status == "missing"
    assert "no kernel image" in row.detail
    assert row.cure.startswith("install NVIDIA's onnxruntime-gpu wheel for your JetPack")


def test_the_multiplication_runs_for_real():
    pytest.importorskip("onnxruntime")
    assert run_probe(multiply_on("CPUExecutionProvider")) == RUNS
    listed = run_probe(PROBES["onnxruntime"]).found
    assert listed is not None
    if "CUDAExecutionProvider" not in listed["providers"]:
        answer = run_probe(multiply_on("CUDAExecutionProvider"))
        assert answer == Answer({"fault": "the package was built without it"})


def test_a_library_that_does_not_run_is_broken_not_a_crash(tmp_path):
    dead = Answer(None, "its process died of signal 11")
    found = look(
        tmp_path,
        {"triton": "3.5.0", "llama-cpp-python": "0.3.36"},
        {"torch": dead, "triton": dead},
        llama=(False, "llama.cpp died:\n libllama.so: cannot open"),
    )
    for name in ("torch", "triton"):
        assert found.row(name).status == "broken"
        assert "signal 11" in found.row(name).detail
    row = found.row("llama-cpp-python")
    assert row.status == "broken"
    assert row.detail == "0.3.36 does not run: llama.cpp died: libllama.so: cannot open"
    assert not found.ready


def test_on_a_jetson_the_cures_are_jetson_lines(orin):
    found = look(orin)
    line = found.row("llama-cpp-python").cure
    assert line == (
        "CUDACXX=/usr/local/cuda/bin/nvcc "
        'CMAKE_ARGS="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=87 -DGGML_CUDA_NO_VMM=ON" '
        "pip install llama-cpp-python --no-binary llama-cpp-python"
    )
    assert "NVIDIA Jetson Orin Nano" in found.row("processor").detail
    assert "cannot use it" in found.row("cuda").detail  # torch from PyPI does not see its GPU
    assert found.row("cuda").status == "missing"
    assert found.ready  # the processor still works
    assert "JetPack" in found.row("cuda").cure
    assert "JetPack" in found.row("onnxruntime").cure
    plant(orin, {"proc/meminfo": "MemTotal:       31000000 kB\n"})
    large = look(orin).row("llama-cpp-python").cure
    assert "-DCMAKE_CUDA_ARCHITECTURES=87" in large
    assert "NO_VMM" not in large


def test_with_a_gpu_a_processor_build_is_told_how_to_use_it(workstation):
    gpu = Answer({"version": "2.13", "cuda": "13.0", "gpus": ["NVIDIA GeForce RTX 3050 (sm_86)"]})
    versions = {"llama-cpp-python": "0.3.36"}
    found = look(workstation, versions, {"torch": gpu})
    assert found.row("cuda").detail == "NVIDIA GeForce RTX 3050 (sm_86), torch for CUDA 13.0"
    row = found.row("llama-cpp-python")
    assert row.status == "ok"
    assert "the GPU is not used" in row.detail
    assert '"-DGGML_CUDA=on"' in row.cure
    built = look(workstation, versions, {"torch": gpu}, llama=(True, "0.3.36, backend CUDA"))
    assert built.row("llama-cpp-python").cure == ""
    assert found.row("triton").cure == "pip install 'clp-edge[kernels]'"


def test_a_gpu_that_only_torch_sees_counts(tmp_path):
    gpu = Answer({"version": "2.13", "cuda": "13.0", "gpus": ["NVIDIA H100 (sm_90)"]})
    found = look(tmp_path, answers={"torch": gpu})
    assert found.row("onnxruntime").cure == "pip install onnxruntime-gpu"
    assert "-DGGML_CUDA=on" in found.row("llama-cpp-python").cure


def test_a_jetson_shows_its_jetpack_power_rail_and_temperature(tmp_path):
    found = look(orin_nano(tmp_path))
    detail = found.row("processor").detail
    assert "JetPack 6 (Jetson Linux 36.4.3)" in detail
    assert "jetson_clocks off" in detail
    assert found.row("power") == Row("power", "ok", "processor: INA3221 VDD_IN (the whole module)")
    assert found.row("temperature").detail == (
        "cpu-thermal 52 degrees C is the hottest; nothing slows it down now"
    )
    plant(tmp_path, {"sys/class/thermal/cooling_device1/cur_state": "1\n"})
    row = look(tmp_path).row("temperature")
    assert "slowed down by cpu-throttle-alert" in row.detail
    assert "cool down" in row.cure


def test_a_machine_without_sensors_says_what_is_not_measured(tmp_path):
    found = look(tmp_path)
    assert found.row("power") == Row(
        "power", "missing", "processor: not measured, no RAPL energy counter in sysfs"
    )
    assert found.row("temperature").status == "missing"
    assert found.ready


def test_little_memory_is_said(tmp_path):
    plant(tmp_path, {"proc/meminfo": "MemTotal:  2000000 kB\n"})
    row = look(tmp_path).row("memory")
    assert row.status == "missing"
    assert "--preset quick" in row.cure


def test_children_answer_die_and_fail_in_their_own_words():
    assert run_probe("print('noise'); print('{\"version\": \"1\"}')").found == {"version": "1"}
    assert run_probe("import os; os.abort()").reason == "its process died of signal 6"
    assert (
        run_probe("raise ImportError('libcudart.so.12')").reason == "ImportError: libcudart.so.12"
    )
    assert run_probe("pass").reason == "exit code 0"
    assert "answered 'hello'" in run_probe("print('hello')").reason


def test_a_child_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr("clp_edge.doctor.CHILD_TIMEOUT_S", 0.3)
    start = time.monotonic()
    assert "no answer" in run_probe("import time; time.sleep(30)").reason
    assert time.monotonic() - start < 10


def test_this_machine_is_examined_for_real():
    found = examine()
    assert found.row("python").status == "ok"
    assert found.row("torch").status == "ok"
    assert found.row("disk").detail.endswith(str(Path.cwd()))
    assert len({row.name for row in found.rows}) == len(found.rows)
    assert all(row.detail and "\n" not in row.detail + row.cure for row in found.rows)


def test_which_kernels_run_and_why(tmp_path, monkeypatch):
    assert look(tmp_path).row("kernels").detail == "torch reference (no CUDA device)"
    forced = Answer({"kernels": "", "cause": "triton is not installed", "cure": "pip install it"})
    found = look(tmp_path, answers={"kernels": forced})
    assert found.row("kernels") == Row(
        "kernels", "broken", "triton is not installed", "pip install it"
    )
    dead = look(tmp_path, answers={"kernels": Answer(None, "ImportError: x")})
    assert "ImportError" in dead.row("kernels").detail
    assert look(tmp_path, {"torch": ""}).row("kernels").detail == "not known without torch"
    monkeypatch.setenv("CLP_EDGE_KERNELS", "cutlass")
    heard = run_probe(PROBES["kernels"]).found
    assert heard is not None
    assert "cutlass" in heard["cause"]
    monkeypatch.setenv("CLP_EDGE_KERNELS", "torch")
    heard = run_probe(PROBES["kernels"]).found
    assert heard is not None
    assert heard["kernels"] == "torch reference (CLP_EDGE_KERNELS=torch)"
