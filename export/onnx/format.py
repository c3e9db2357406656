"""ONNX as a row of the formats."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clp_edge.errors import ClpEdgeError
from clp_edge.export.base import Artifact, Exporter, ExportPlan, Target
from clp_edge.export.onnx.targets import TARGETS
from clp_edge.progress import Progress
from clp_edge.segment import Segment


@dataclass(frozen=True)
class GenaiExporter:
    """A folder opened for onnxruntime-genai's builder, which reads it anew for each target."""

    folder: Path
    metadata: dict[str, Any]
    threads: int
    workdir: Path | None

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
        )


class OnnxFormat:
    """See `clp_edge.export.base.Format`."""

    def targets(self) -> tuple[Target, ...]:
        return TARGETS

    def requires(self) -> ClpEdgeError | None:
        from clp_edge.export.onnx.builder import installed

        try:
            installed()
        except ClpEdgeError as error:
            return error
        return None

    def plan(
        self,
        config: Any,
        tokenizer: Any,
        target: Target,
        *,
        tokenizer_gguf: Path | None = None,
        blocks: int | None = None,
        dropped: Iterable[int] | None = None,
    ) -> ExportPlan:
        from clp_edge.export.onnx.plan import plan

        if dropped is not None:
            blocks = int(config.num_hidden_layers) - len(set(dropped))
        return plan(config, tokenizer, target, blocks=blocks)

    def forbids(self, config: Any, segment: Segment) -> str | None:
        return None  # the builder writes each block's kind out

    def nearest(self, config: Any, segment: Segment) -> list[Segment]:
        return [segment]

    def open(
        self, folder: Path, *, metadata: dict[str, Any], threads: int, workdir: Path | None = None
    ) -> AbstractContextManager[Exporter]:
        return nullcontext(GenaiExporter(folder, metadata, threads, workdir))


FORMAT = OnnxFormat()
