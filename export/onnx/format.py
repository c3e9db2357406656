"""ONNX as a row of the formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.export.base import (
    DEFAULT_OPTIONS,
    Artifact,
    Exporter,
    ExportOptions,
    ExportPlan,
    Target,
)
from clp_edge.export.onnx.targets import TARGETS
from clp_edge.progress import Progress
from clp_edge.segment import Segment

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GenaiExporter:
    """A folder opened for onnxruntime-genai's builder, which reads it anew for each target."""

    folder: Path
    metadata: dict[str, Any]
    threads: int
    workdir: Path | None
    provider: str = "cpu"

    def export(self, target: Target, destination: Path, *, progress: Progress) -> Artifact:
        from clp_edge.export.onnx.genai import export

        return export(
            self.folder,
            target,
            destination,
            metadata=self.metadata,
            threads=self.threads,
            progress=progress,
            workdir=self.workdir,
            provider=self.provider,
        )


class OnnxFormat:
    """See `clp_edge.export.base.Format`."""

    def targets(self) -> tuple[Target, ...]:
        return TARGETS

    def requires(self) -> ClpEdgeError | None:
        from clp_edge.export.onnx.builder import installed
        from clp_edge.export.onnx.provider import problem

        try:
            installed()
        except ClpEdgeError as error:
            return error
        return problem("cpu")  # in every package; another provider is plan()'s to try

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
        from clp_edge.export.onnx.plan import plan
        from clp_edge.export.onnx.provider import problem

        if dropped is not None:
            blocks = int(config.num_hidden_layers) - len(set(dropped))
        planned = plan(config, tokenizer, target, blocks=blocks, provider=options.provider)
        refused: ClpEdgeError | None = _refused(options)
        if refused is None and not planned.problems:
            refused = problem(options.provider)
        if refused is None:
            return planned
        return replace(planned, problems=(*planned.problems, refused))

    def forbids(self, config: Any, segment: Segment) -> str | None:
        return None  # the builder writes each block's kind out

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
        refused = _refused(options)
        if refused is not None:
            raise refused
        return nullcontext(GenaiExporter(folder, metadata, threads, workdir, options.provider))

    def companions(self, folder: Path, file_name: str) -> dict[str, str]:
        return {}  # the folder holds all that onnxruntime-genai needs


def _refused(options: ExportOptions) -> UsageError | None:
    """The builder chooses the type of each matrix itself."""
    if options == replace(DEFAULT_OPTIONS, provider=options.provider):
        return None
    return UsageError(
        "ONNX targets know no types of single matrices", "use those options with GGUF targets only"
    )


FORMAT = OnnxFormat()
