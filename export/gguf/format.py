"""GGUF as a row of the formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_edge.errors import ClpEdgeError, MissingDependencyError
from clp_edge.export.base import (
    DEFAULT_OPTIONS,
    Exporter,
    ExportOptions,
    ExportPlan,
    Target,
)
from clp_edge.export.gguf.targets import TARGETS
from clp_edge.segment import Segment

if TYPE_CHECKING:
    import torch


class GgufFormat:
    """See `clp_edge.export.base.Format`."""

    def targets(self) -> tuple[Target, ...]:
        return TARGETS

    def requires(self) -> ClpEdgeError | None:
        from clp_edge.runtimes import llama_cpp_available

        available, reason = llama_cpp_available()
        return None if available else MissingDependencyError("llama.cpp cannot be used", reason)

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
        from clp_edge.export.gguf.plan import plan

        return plan(
            config,
            tokenizer,
            target,
            tokenizer_gguf=tokenizer_gguf,
            blocks=blocks,
            dropped=dropped,
            metadata=metadata,
            calibrated=calibrated,
            options=options,
        )

    def forbids(self, config: Any, segment: Segment) -> str | None:
        from clp_edge.export.gguf.cuts import allowed

        return allowed(config, segment)

    def nearest(self, config: Any, segment: Segment) -> list[Segment]:
        from clp_edge.export.gguf.cuts import nearest_allowed

        return nearest_allowed(config, segment)

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
        from clp_edge.export.gguf.exporter import GgufExporter

        return GgufExporter(
            folder,
            metadata=metadata,
            threads=threads,
            workdir=workdir,
            calibration=calibration,
            options=options,
        )

    def companions(self, folder: Path, file_name: str) -> dict[str, str]:
        from clp_edge.export.gguf.usage import modelfile, modelfile_name
        from clp_edge.models.source import folder_tokenizer

        return {modelfile_name(file_name): modelfile(file_name, folder_tokenizer(folder))}


FORMAT = GgufFormat()
