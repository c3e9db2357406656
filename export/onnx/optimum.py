"""The portable ONNX graph by Optimum, as a row of the formats of its own.

optimum-onnx asks for transformers below 4.58 (PITFALLS 16), so it lives in an environment of its
own; elsewhere every target here says in one line what to install. The graph is plain ONNX with past
key values: `ORTModelForCausalLM` loads it, and so does any runtime that keeps the cache itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_edge.errors import (
    ClpEdgeError,
    MissingDependencyError,
    PreflightError,
    UnsupportedModelError,
    UsageError,
)
from clp_edge.export.base import (
    DEFAULT_OPTIONS,
    Artifact,
    Exporter,
    ExportOptions,
    ExportPlan,
    Target,
)
from clp_edge.export.onnx.targets import OPTIMUM_TARGETS
from clp_edge.ort_packages import version_of
from clp_edge.progress import Progress
from clp_edge.segment import Segment

if TYPE_CHECKING:
    import torch

INSTALL = (
    "it has an environment of its own: python3 -m venv optimum && "
    "optimum/bin/pip install 'clp-edge[optimum]', then optimum/bin/clp-edge"
)
LOG_NAME = "optimum.log"
_BUILD = "clp_edge.export.onnx.optimum_build:build"
_BUILD_SHARE = 0.6
_WRONG_CACHE = ("phi3",)
"""Seen in optimum-onnx 0.1.0: model types whose graph is right and whose runtime class is not."""
_MAY_GROW = "products whose inputs have outliers stay floats, so the folder may be larger"
_TASK = "text-generation-with-past"


@dataclass(frozen=True)
class OptimumExporter:
    """A folder opened for Optimum, which reads it anew for each target."""

    folder: Path
    metadata: dict[str, Any]
    threads: int
    workdir: Path | None

    def export(self, target: Target, destination: Path, *, progress: Progress) -> Artifact:
        """See `clp_edge.export.base.Exporter`."""
        from clp_edge.export.onnx.folder import open_source, proven, strings, unproven
        from clp_edge.export.onnx.optimum_verify import far_reaching, verify
        from clp_edge.export.onnx.provider import prove
        from clp_edge.export.onnx.reference import make_reference

        if (missing := unusable()) is not None:
            raise PreflightError([missing])
        config, hf = open_source(self.folder)
        if problems := FORMAT.plan(config, hf, target).problems:
            raise PreflightError(list(problems))
        computes = prove("cpu")
        said = strings(self.metadata)
        reference = make_reference(self.folder, config, hf)
        kept = far_reaching(reference) if target.quantization == "int8" else []
        with unproven(destination) as partial:
            self._build(target, partial, kept, said, progress)
            progress(_BUILD_SHARE, 1.0, f"verifying {target.name} against torch")
            measured = verify(
                partial,
                target,
                config=config,
                hf=hf,
                reference=reference,
                kept=kept,
                metadata=said,
                threads=self.threads,
            )
            measured["provider"] = computes
            artifact = proven(partial, destination, target, measured, source=self.folder)
        progress(1.0, 1.0, f"{destination.name} verified")
        return artifact

    def _build(
        self,
        target: Target,
        partial: Path,
        kept: list[str],
        metadata: dict[str, str],
        progress: Progress,
    ) -> None:
        from clp_edge.export.onnx.folder import build_timeout_s
        from clp_edge.runtimes.process import ChildProcess

        arguments = {
            "folder": str(self.folder),
            "destination": str(partial),
            "kind": target.quantization,
            "kept": kept,
            "metadata": metadata,
            "threads": self.threads,
        }

        def report(part: tuple[float, str]) -> None:
            progress(_BUILD_SHARE * part[0], 1.0, part[1])

        log = None if self.workdir is None else self.workdir / LOG_NAME
        progress(0.0, 1.0, "starting Optimum")
        with ChildProcess("Optimum", timeout_s=build_timeout_s(self.folder)) as child:
            try:
                child.ask("run", _BUILD, arguments, on_part=report)
            finally:
                if log is not None and child.log_path.is_file():
                    log.parent.mkdir(parents=True, exist_ok=True)
                    log.write_bytes(child.log_path.read_bytes())


class OptimumFormat:
    """See `clp_edge.export.base.Format`."""

    def targets(self) -> tuple[Target, ...]:
        return OPTIMUM_TARGETS

    def requires(self) -> ClpEdgeError | None:
        from clp_edge.export.onnx.provider import problem

        return unusable() or problem("cpu")

    def plan(
        self,
        config: Any,
        tokenizer: Any,
        target: Target,
        *,
        tokenizer_gguf: Path | None = None,
        blocks: int | None = None,
        dropped: Iterable[int] | None = None,
        metadata: Mapping[str, Any] | None = None,
        calibrated: bool = False,
        options: ExportOptions = DEFAULT_OPTIONS,
    ) -> ExportPlan:
        if dropped is not None:
            blocks = int(config.num_hidden_layers) - len(set(dropped))
        found = unusable() or _refused(options) or unknown_family(config)
        if found is not None:
            return ExportPlan(target, 0, 0.0, 0, (found,), ())
        from clp_edge.export.onnx.optimum_plan import predicted

        sized = predicted(config, tokenizer, target, blocks)
        notes = (_MAY_GROW,) if target.quantization == "int8" else ()
        return ExportPlan(
            target,
            sized.folder_bytes,
            sized.bits_per_weight,
            0,
            (),
            notes,
            read_bytes=sized.read_bytes,
        )

    def forbids(self, config: Any, segment: Segment) -> str | None:
        return None  # the graph is traced from the cut model

    def nearest(self, config: Any, segment: Segment) -> list[Segment]:
        return [segment]

    def open(
        self,
        folder: Path,
        *,
        metadata: dict[str, Any],
        threads: int,
        workdir: Path | None = None,
        calibration: torch.Tensor | None = None,
        options: ExportOptions = DEFAULT_OPTIONS,
    ) -> AbstractContextManager[Exporter]:
        if (refused := _refused(options)) is not None:
            raise refused
        return nullcontext(OptimumExporter(folder, metadata, threads, workdir))


def unusable() -> ClpEdgeError | None:
    """Why Optimum cannot be used in this environment, with the line that makes one."""
    if importlib.util.find_spec("optimum") is None or version_of("optimum-onnx") is None:
        return MissingDependencyError("optimum-onnx is not installed here", INSTALL)
    transformers = version_of("transformers") or "0"
    major, minor = (int(part) for part in transformers.split(".")[:2])
    if (major, minor) >= (4, 58):
        return MissingDependencyError(
            f"optimum-onnx needs transformers below 4.58, here is {transformers}", INSTALL
        )
    return None


def unknown_family(config: Any) -> ClpEdgeError | None:
    """Whether Optimum has no exporter for the model type."""
    import optimum.exporters.onnx.model_configs  # noqa: F401 (it registers the families)
    from optimum.exporters.tasks import TasksManager

    kind = str(config.model_type)
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(
            kind, "onnx", library_name="transformers"
        )
    except KeyError:
        tasks = {}
    version = version_of("optimum-onnx")
    if kind in _WRONG_CACHE and config.num_key_value_heads != config.num_attention_heads:
        return UnsupportedModelError(
            f"ORTModelForCausalLM of optimum-onnx {version} makes a cache of "
            f"{config.num_attention_heads} heads for {kind}, the model has "
            f"{config.num_key_value_heads}",
            "take an onnx target of onnxruntime-genai",
        )
    if _TASK in tasks:
        return None
    return UnsupportedModelError(f"optimum-onnx {version} has no exporter for {kind} with a cache")


def _refused(options: ExportOptions) -> UsageError | None:
    if options.provider != "cpu":
        return UsageError(
            f"--ep {options.provider} is not for Optimum's graphs: they name no provider",
            "leave --ep out, or take an onnx target of onnxruntime-genai",
        )
    if options != replace(DEFAULT_OPTIONS, provider="cpu"):
        return UsageError(
            "ONNX targets know no types of single matrices",
            "use those options with GGUF targets only",
        )
    return None


FORMAT = OptimumFormat()
