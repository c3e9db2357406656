"""ONNX Runtime's packages: which break each other, which provider computes, and what cures it.

`get_available_providers()` is a list that was made when the wheel was built: it names CUDA on a
machine without a GPU, and on one whose GPU the wheel has no code for (PITFALLS 18). So a provider
is asked to compute: one product, which cuBLAS may answer, and one sign changed, which takes code of
ONNX Runtime's own. Both clp-edge doctor and the preflight of an export judge by this module.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clp_edge.errors import ClpEdgeError, MissingDependencyError

PROCESSOR, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Packages that break each other in one environment: without a GPU, for CUDA, for DirectML.
ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
GENAI = ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml")
_KEEP = {PROCESSOR: 0, CUDA: 1, "DmlExecutionProvider": 2}

# -(a @ b) of two 2 x 2 matrices; a test makes it again with the onnx package.
MODEL = (
    "CAgSADpiChEKAWEKAWISAW0iBk1hdE11bAoLCgFtEgFjIgNOZWcSAWdaEwoBYRIOCgwIARIICgIIAgoCCAJaEwoBYhIO"
    "CgwIARIICgIIAgoCCAJiEwoBYxIOCgwIARIICgIIAgoCCAJCBAoAEA0="
)
NOT_BUILT_IN = "the package was built without it"
NOT_LOADED = "it does not load, and the processor computes instead"
NO_CODE = "the package has no code for this GPU"
_LEFT_OUT = re.compile(r"fallback to (the )?CPU EP")
_NO_KERNEL = re.compile(r"no kernel image|CUDA failure 209", re.I)
_LIBRARIES = {CUDA: "cuda", "TensorrtExecutionProvider": "tensorrt"}
_LACKING = re.compile(r"^(\S+\.so[.\d]*): cannot open shared object file")


def version_of(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def fault_on(provider: str) -> str:
    """Why "CUDAExecutionProvider" (or another) does not compute here, in a line; "" where it does.

    To be called in a process of its own: a broken library may end it.
    """
    import numpy
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return NOT_BUILT_IN
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if provider != PROCESSOR:
        # one that cannot load is left out in silence, and the processor answers instead
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    x = numpy.full((2, 2), 3.0, dtype=numpy.float32)
    try:
        model = base64.b64decode(MODEL)
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
        (found,) = session.run(None, {"a": x, "b": x})
    except Exception as error:  # onnxruntime's own classes, which differ between releases
        said = str(error) or type(error).__name__
        if _LEFT_OUT.search(said):
            return lacking(Path(onnxruntime.__file__).parent, provider) or NOT_LOADED
        return NO_CODE if _NO_KERNEL.search(said) else " ".join(said.split())
    if provider not in session.get_providers():
        return lacking(Path(onnxruntime.__file__).parent, provider) or NOT_LOADED
    return "" if (found == -18.0).all() else f"it makes {found[0, 0]} of -18"


def lacking(package: Path, provider: str) -> str:
    """The shared library that keeps the provider's own from loading, as "X is missing", or ""."""
    file = package / "capi" / f"libonnxruntime_providers_{_LIBRARIES.get(provider, '')}.so"
    if not file.is_file():
        return ""
    try:
        ctypes.CDLL(str(file))
    except OSError as error:
        match = _LACKING.match(str(error))
        return f"{match[1]} is missing" if match else ""
    return ""


def clash(
    twins: tuple[str, ...], keep: str, *, version: Callable[[str], str | None] = version_of
) -> ClpEdgeError | None:
    """The error of packages that are installed together and break each other."""
    here = [twin for twin in twins if version(twin)]
    if len(here) < 2:
        return None
    both = " and ".join(f"{twin} {version(twin)}" for twin in here)
    return ClpEdgeError(
        f"{both} are both installed and break each other",
        f"pip uninstall -y {' '.join(here)} && pip install {keep}",
    )


def install_line(package: str, *, jetson: str | None) -> str:
    """How a package of ONNX Runtime comes onto this machine."""
    if jetson:
        # PyPI's aarch64 GPU wheel has no code for the Orin's sm_87 (PITFALLS 18).
        return f"install NVIDIA's {package} wheel for your JetPack (PyPI's has no Jetson GPU code)"
    return f"pip install {package}"


def gpu_cure(here: str, keep: str, fault: str, *, jetson: str | None, version: str | None) -> str:
    """What makes a GPU provider run: `here` is the package that is installed, `keep` the right one,
    `fault` what `fault_on` said."""
    line = install_line(keep, jetson=jetson)
    if here != keep:  # the GPU package beside the plain one would break both
        return f"pip uninstall -y {here}, then {line}"
    if jetson:
        return line
    if fault == NO_CODE:
        return f"take another {here} than {version}, or build it for this GPU from source"
    if "cudnn" in fault.lower():
        wanted = re.search(r"\.so\.(\d+)", fault)
        return (
            f"install cuDNN{f' {wanted[1]}' if wanted else ''} and put its folder into "
            "LD_LIBRARY_PATH"
        )
    return f"install the CUDA and cuDNN that {here} {version} was built for"


def provider_problem(
    provider: str,
    fault: str,
    *,
    jetson: str | None,
    version: Callable[[str], str | None] = version_of,
) -> ClpEdgeError | None:
    """What stands in the way of building for `provider`; `fault` is what `fault_on` said there."""
    place = _KEEP[provider]
    for twins in (ONNXRUNTIME, GENAI):
        if (both := clash(twins, twins[place], version=version)) is not None:
            return both
    if not fault:
        return None
    here = next((twin for twin in ONNXRUNTIME if version(twin)), None)
    keep = ONNXRUNTIME[place]
    if here is None:
        return MissingDependencyError(
            f"{keep} is not installed", install_line(keep, jetson=jetson if place else None)
        )
    said = f"{provider} does not compute here ({fault}; {here} {version(here)})"
    if provider == PROCESSOR:
        return ClpEdgeError(said, f"pip install --force-reinstall {here}")
    if provider != CUDA:
        return ClpEdgeError(said, "export for --ep cpu here, or on a machine where it works")
    cure = gpu_cure(here, keep, fault, jetson=jetson, version=version(here))
    return ClpEdgeError(said, f"{cure}; or export for --ep cpu")
