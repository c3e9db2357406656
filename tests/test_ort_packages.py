"""PITFALLS 18: a provider has to compute, and what keeps it from that is said with its cure."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys

import pytest

from clp_edge.jetson import jetson_model
from clp_edge.ort_packages import (
    CUDA,
    GENAI,
    MODEL,
    NO_CODE,
    NOT_BUILT_IN,
    NOT_LOADED,
    ONNXRUNTIME,
    PROCESSOR,
    clash,
    fault_on,
    lacking,
    provider_problem,
)

ORIN = "NVIDIA Jetson Orin Nano Developer Kit"


def problem(provider, fault, installed, *, jetson=None):
    """What is said where these packages are installed; None where nothing stands in the way."""
    return provider_problem(provider, fault, jetson=jetson, version=installed.get)


def test_the_model_is_a_product_and_a_sign_changed():
    onnx = pytest.importorskip("onnx")
    made = onnx.load_from_string(base64.b64decode(MODEL))
    onnx.checker.check_model(made, full_check=True)
    assert [node.op_type for node in made.graph.node] == ["MatMul", "Neg"]


def test_the_processor_computes_and_what_is_not_built_in_says_so():
    library = pytest.importorskip("onnxruntime")
    assert fault_on(PROCESSOR) == ""
    assert fault_on("QuantumExecutionProvider") == NOT_BUILT_IN
    if CUDA not in library.get_available_providers():
        assert fault_on(CUDA) == NOT_BUILT_IN


class FakeOptions:
    log_severity_level = 2

    def add_session_config_entry(self, *_):
        pass


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available", NO_CODE),
        ("CUDA failure 209: unknown", NO_CODE),
        ("fallback to CPU EP has been explicitly disabled", NOT_LOADED),
        # after an exception of the provider onnxruntime tries again with the processor by itself
        ("explicitly added the CPU EP, but also disabled fallback to the CPU EP", NOT_LOADED),
        ("out of\nmemory", "out of memory"),
    ],
)
def test_what_onnxruntime_says_is_read(monkeypatch, said, fault):
    library = pytest.importorskip("onnxruntime")

    def refuse(*_, **__):
        raise RuntimeError(said)

    monkeypatch.setattr(library, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(library, "SessionOptions", FakeOptions)
    monkeypatch.setattr(library, "InferenceSession", refuse)
    assert fault_on(CUDA) == fault


@pytest.mark.parametrize(
    ("providers", "number", "fault"),
    [([CUDA], -18.0, ""), ([PROCESSOR], -18.0, NOT_LOADED), ([CUDA], 18.0, "it makes 18.0 of -18")],
)
def test_a_wrong_number_or_another_provider_is_a_fault(monkeypatch, providers, number, fault):
    library = pytest.importorskip("onnxruntime")
    import numpy

    class Session:
        def __init__(self, *_, **__):
            pass

        def run(self, *_):
            return [numpy.full((2, 2), number, dtype=numpy.float32)]

        def get_providers(self):
            return providers

    monkeypatch.setattr(library, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(library, "SessionOptions", FakeOptions)
    monkeypatch.setattr(library, "InferenceSession", Session)
    assert fault_on(CUDA) == fault


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="makes a shared library"
)
def test_the_library_that_is_missing_is_named(tmp_path):
    """As onnxruntime-gpu without CUDA: its provider's file asks for a library that is not there."""
    place = tmp_path / "capi"
    place.mkdir()
    made = place / "libonnxruntime_providers_cuda.so"
    assert lacking(tmp_path, CUDA) == ""
    dependency = tmp_path / "libcudnn_of_a_test.so.9"
    for output, more in (
        (dependency, ["-Wl,-soname,libcudnn_of_a_test.so.9"]),
        (made, ["-Wl,--no-as-needed", str(dependency)]),
    ):
        command = ["cc", "-shared", "-fPIC", "-x", "c", "/dev/null", "-x", "none", *more]
        subprocess.run([*command, "-o", str(output)], check=True)
    dependency.unlink()
    assert lacking(tmp_path, CUDA) == "libcudnn_of_a_test.so.9 is missing"
    assert lacking(tmp_path, "DmlExecutionProvider") == ""


def test_each_fault_has_its_cure():
    gpu = {"onnxruntime-gpu": "1.31.1", "onnxruntime-genai-cuda": "0.18.0"}
    assert problem(CUDA, "", gpu) is None
    assert str(problem(CUDA, "libcudnn.so.9 is missing", gpu)) == (
        "CUDAExecutionProvider does not compute here (libcudnn.so.9 is missing; onnxruntime-gpu "
        "1.31.1); install cuDNN 9 and put its folder into LD_LIBRARY_PATH; or export for --ep cpu"
    )
    assert problem(CUDA, "libcublasLt.so.13 is missing", gpu).cure.startswith(
        "install the CUDA and cuDNN that onnxruntime-gpu 1.31.1 was built for"
    )
    assert "build it for this GPU from source" in problem(CUDA, NO_CODE, gpu).cure
    plain = {"onnxruntime": "1.32.0", "onnxruntime-genai": "0.18.0"}
    assert problem(CUDA, NOT_BUILT_IN, plain).cure.startswith(
        "pip uninstall -y onnxruntime, then pip install onnxruntime-gpu"
    )
    broken = problem(PROCESSOR, "it makes 0.0 of -18", plain)
    assert broken.cure == "pip install --force-reinstall onnxruntime"
    assert problem(PROCESSOR, "No module named 'onnxruntime'", {}).cure == "pip install onnxruntime"
    assert problem(CUDA, "No module", {}, jetson=ORIN).cure.startswith("install NVIDIA's")


def test_on_an_orin_the_wheel_without_its_code_is_replaced():
    gpu = {"onnxruntime-gpu": "1.31.1"}
    found = problem(CUDA, NO_CODE, gpu, jetson=ORIN)
    assert NO_CODE in found.cause
    assert found.cure.startswith("install NVIDIA's onnxruntime-gpu wheel for your JetPack")


@pytest.mark.parametrize("twins", [ONNXRUNTIME, GENAI])
def test_packages_that_break_each_other_stand_in_the_way_of_everything(twins):
    both = dict.fromkeys(twins[:2], "1.0")
    for provider, keep in ((PROCESSOR, twins[0]), (CUDA, twins[1])):
        found = problem(provider, "", both)
        assert f"{twins[0]} 1.0 and {twins[1]} 1.0 are both installed" in found.cause
        assert found.cure.endswith(f"pip install {keep}")
    assert clash(twins, twins[0], version={twins[1]: "1.0"}.get) is None


def test_a_jetson_is_known_by_its_device_tree(tmp_path):
    assert jetson_model(tmp_path) is None
    place = tmp_path / "proc" / "device-tree"
    place.mkdir(parents=True)
    (place / "model").write_text(f"{ORIN}\0")
    assert jetson_model(tmp_path) == ORIN
    (place / "model").write_text("Raspberry Pi 5\0")
    assert jetson_model(tmp_path) is None
