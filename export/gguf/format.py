"""GGUF as a row of the formats."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from clp_edge.errors import ClpEdgeError, MissingDependencyError
from clp_edge.export.base import Exporter, ExportPlan, Target
from clp_edge.export.gguf.targets import TARGETS
from clp_edge.segment import Segment


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
    ) -> ExportPlan:
        from clp_edge.export.gguf.plan import plan

        return plan(
            config,
            tokenizer,
            target,
            tokenizer_gguf=tokenizer_gguf,
            blocks=blocks,
            dropped=dropped,
        )

    def forbids(self, config: Any, segment: Segment) -> str | None:
        from clp_edge.export.gguf.cuts import allowed

        return allowed(config, segment)

    def nearest(self, config: Any, segment: Segment) -> list[Segment]:
        from clp_edge.export.gguf.cuts import nearest_allowed

        return nearest_allowed(config, segment)

    def open(
        self, folder: Path, *, metadata: dict[str, Any], threads: int, workdir: Path | None = None
    ) -> AbstractContextManager[Exporter]:
        from clp_edge.export.gguf.exporter import GgufExporter

        return GgufExporter(folder, metadata=metadata, threads=threads, workdir=workdir)


FORMAT = GgufFormat()
