"""Open an artifact: pick the runtime by what the path is, start its child, hand back a session.

A runtime joins with one row in `RUNTIMES`: its name, the engine that the child builds, and the
test of the path. The engine has the methods of `Session` and an `info`.

    with open_artifact(Path("model.Q4_K_M.gguf"), threads=4) as session:
        session.generate(session.tokenize("The capital of France is"), 8)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import psutil

from clp_edge.errors import ClpEdgeError, RuntimeDiedError, UsageError
from clp_edge.runtimes.base import ArtifactInfo, Session, Timing
from clp_edge.runtimes.offload import GpuLayers, Offload, plan_offload, read_needs
from clp_edge.runtimes.process import ChildProcess, patience_s, run_in_child

KVType = Literal["f32", "f16"]
GPU_QUESTION = "clp_edge.runtimes.llama:gpu_memory"


@dataclass(frozen=True)
class Runtime:
    """One row of the registry."""

    name: str
    engine: str
    """"module:class" that the child builds with (path, threads, context, kv_type, batch) and what
    else the row says that it takes."""
    opens: Callable[[Path], bool]
    offloads: bool = False
    """Whether it takes `gpu_layers` and the `reason` for them."""
    device: bool = False
    """Whether it takes the `device` to compute on."""


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _is_genai_folder(path: Path) -> bool:
    return path.is_dir() and (path / "genai_config.json").is_file()


def _is_onnx_folder(path: Path) -> bool:
    return path.is_dir() and all((path / name).is_file() for name in ("model.onnx", "config.json"))


def _is_hf_folder(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").is_file()


RUNTIMES: tuple[Runtime, ...] = (
    Runtime("llama.cpp", "clp_edge.runtimes.llama:LlamaEngine", _is_gguf, offloads=True),
    # before torch's row: such folders may hold a config.json too
    Runtime("onnxruntime-genai", "clp_edge.runtimes.ort_genai:GenaiEngine", _is_genai_folder),
    Runtime("onnxruntime", "clp_edge.runtimes.ort:OrtEngine", _is_onnx_folder),
    Runtime("torch", "clp_edge.runtimes.hf:TorchEngine", _is_hf_folder, device=True),
)


class ChildSession:
    """A Session whose every method is one question to the child process."""

    def __init__(self, child: ChildProcess, info: ArtifactInfo) -> None:
        self._child = child
        self._info = info

    @property
    def info(self) -> ArtifactInfo:
        return self._info

    @property
    def pid(self) -> int:
        """The runtime's process id (for probes of memory and power)."""
        return self._child.pid

    @property
    def cpus(self) -> tuple[int, ...] | None:
        """The processors that the child may use; None where the system does not say."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        try:
            return tuple(sorted(os.sched_getaffinity(self.pid)))
        except OSError:
            return None

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        flags = {"add_special": add_special, "parse_special": parse_special}
        return self._child.ask("call", "tokenize", (text,), flags)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._child.ask("call", "detokenize", (_plain(ids),), {})

    def end_tokens(self) -> frozenset[int]:
        return self._child.ask("call", "end_tokens", (), {})

    def iter_logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        yield from self._child.stream("call", "iter_logits", (_plain(ids),), {})

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        whole = np.empty((len(ids), self._info.vocabulary), dtype=np.float32)
        row = 0
        for part in self.iter_logits(ids):
            whole[row : row + len(part)] = part
            row += len(part)
        if row != len(ids):
            raise ClpEdgeError(f"{self._info.runtime} gave logits for {row} of {len(ids)} tokens")
        return whole

    def generate(
        self, ids: Sequence[int], max_new_tokens: int, *, stop: Collection[int] = ()
    ) -> list[int]:
        arguments = (_plain(ids), max_new_tokens)
        return self._child.ask("call", "generate", arguments, {"stop": frozenset(stop)})

    def score(
        self, context: Sequence[int], choices: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        arguments = (_plain(context), [_plain(choice) for choice in choices])
        return self._child.ask("call", "choice_scores", arguments, {})

    def time_once(self, *, prompt: int, generate: int, depth: int = 0, seed: int = 0) -> Timing:
        sizes = {"prompt": prompt, "generate": generate, "depth": depth}
        if min(sizes.values()) < 0 or prompt + generate == 0:
            raise UsageError(f"cannot time {sizes}", "give a prompt or tokens to generate")
        return self._child.ask("call", "time_once", (), {**sizes, "seed": seed})

    def peak_rss_mib(self) -> float:
        return self._child.ask("call", "peak_rss_mib", (), {})

    def close(self) -> None:
        self._child.close()

    def __enter__(self) -> ChildSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _weight_bytes(path: Path) -> int:
    """The size of the file, or of the files that lie in the folder itself."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _plain(ids: Sequence[int]) -> list[int]:
    return [int(i) for i in ids]


def default_threads() -> int:
    """The physical cores this process may use, as llama-bench takes them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or allowed or 1, allowed or 1))


def open_artifact(
    path: Path,
    *,
    threads: int | None = None,
    context: int = 1024,
    kv_type: KVType = "f16",
    batch: int = 512,
    timeout_s: float | None = None,
    gpu_layers: GpuLayers = "auto",
    gpu_share: float = 1.0,
    device: str = "auto",
    cpus: Collection[int] | None = None,
) -> Session:
    """Open a .gguf file (llama.cpp) or a Hugging Face folder (torch) in a child process.

    Args: `threads` for prompt and generation alike, by default the physical cores; `context` in
    tokens; `kv_type` "f32" turns flash attention off and is for exact comparison; `batch` the most
    tokens computed at once; `timeout_s` how long one answer may take before the runtime counts as
    hung, by default `process.patience_s` of the artifact's size; `gpu_layers` for llama.cpp, where
    "auto" takes what `gpu_share` of the GPU's free memory holds (`offload`), and what cannot be
    done there is done on the processor, with the reason in the session's info; `device` for torch:
    auto, cpu or cuda; `cpus` the processors that the child is pinned to.
    Raises: UsageError when nothing opens the path; MissingDependencyError; RuntimeDiedError.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist", "give a .gguf file or a Hugging Face folder")
    runtime = next((row for row in RUNTIMES if row.opens(path)), None)
    if runtime is None:
        raise UsageError(
            f"{path} is no artifact that a runtime opens",
            "give a .gguf file or a Hugging Face folder with a config.json",
        )
    what = f"{runtime.name} on {path.name}"
    patience = patience_s(_weight_bytes(path)) if timeout_s is None else timeout_s
    arguments: dict[str, Any] = {
        "path": str(path),
        "threads": threads or default_threads(),
        "context": context,
        "kv_type": kv_type,
        "batch": min(batch, context),
        **({"device": device} if runtime.device else {}),
    }

    def start() -> ChildProcess:
        return ChildProcess(what, timeout_s=patience, cpus=cpus)

    if runtime.offloads:
        return _open_offloaded(start, runtime.engine, arguments, gpu_layers, gpu_share)
    return _make(start(), runtime.engine, arguments)


def _make(child: ChildProcess, engine: str, arguments: Mapping[str, Any]) -> ChildSession:
    """The session of a fresh child, which is closed when its engine cannot be built."""
    try:
        return ChildSession(child, child.ask("make", engine, dict(arguments)))
    except BaseException:
        child.close()
        raise


def _open_offloaded(
    start: Callable[[], ChildProcess],
    engine: str,
    arguments: Mapping[str, Any],
    asked: GpuLayers,
    share: float,
) -> ChildSession:
    """Try what the plan says, then less, then the processor; each try has a child of its own."""
    child = start()
    try:
        gpu = child.ask("run", GPU_QUESTION, {}) if asked != 0 else "--gpu-layers 0"
        if isinstance(gpu, str):
            plan = Offload(0, 0, gpu, (0,))
        else:
            sizes = {name: arguments[name] for name in ("context", "kv_type", "batch")}
            plan = plan_offload(
                read_needs(Path(arguments["path"]), **sizes), gpu, asked, share=share
            )
    except BaseException:
        child.close()
        raise
    reason = plan.reason
    for count in plan.ladder[:-1]:
        try:
            return _make(child, engine, {**arguments, "gpu_layers": count, "reason": reason})
        except RuntimeDiedError as error:
            reason = f"{reason}; {count} layers did not load ({error.cause})"
            child = start()
    return _make(child, engine, {**arguments, "gpu_layers": 0, "reason": reason})


def llama_cpp_available() -> tuple[bool, str]:
    """Whether llama.cpp runs here, and its version and backend or why not (with the pip line).

    Really loads the library, in a child process.
    """
    try:
        spec = "clp_edge.runtimes.llama:describe_library"
        return True, run_in_child(spec, what="llama.cpp", timeout_s=120.0)
    except ClpEdgeError as error:
        return False, str(error)
