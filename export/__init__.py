"""Write a Hugging Face folder in a format that a runtime opens, and prove the file right.

target = resolve("gguf-q4")
plan(config, tokenizer, target).problems            # before any work
export(folder, target, Path("model.Q4_K_M.gguf"), metadata={}, threads=4, progress=silent)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_edge.export.base import (
    DEFAULT_OPTIONS,
    Artifact,
    Exporter,
    ExportOptions,
    ExportPlan,
    Format,
    Target,
)
from clp_edge.export.targets import all_targets, format_of, resolve
from clp_edge.progress import Progress

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_OPTIONS",
    "Artifact",
    "ExportOptions",
    "ExportPlan",
    "Exporter",
    "Format",
    "Target",
    "all_targets",
    "export",
    "format_of",
    "plan",
    "resolve",
]


def plan(
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
    """What `target` would be for this model (with `blocks` blocks, or without the blocks
    `dropped`) and all that stands in its way.

    Args: transformers' config and tokenizer; `tokenizer_gguf` the keys a GGUF source brought along.
    `metadata`, `calibrated` and `options` as in `clp_edge.export.base.Format.plan`.
    Never raises for an unsupported thing: `problems` lists it.
    """
    return format_of(target).plan(
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


def export(
    folder: Path,
    target: Target,
    destination: Path,
    *,
    metadata: dict[str, Any],
    threads: int,
    progress: Progress,
    workdir: Path | None = None,
    calibration: torch.Tensor | None = None,
    options: ExportOptions = DEFAULT_OPTIONS,
) -> Artifact:
    """Write `folder` as one `target`; for several, open the format and keep the exporter.

    See `clp_edge.export.base.Format.open` and `Exporter.export` for arguments and errors.
    """
    opened = format_of(target).open(
        folder,
        metadata=metadata,
        threads=threads,
        workdir=workdir,
        calibration=calibration,
        options=options,
    )
    with opened as exporter:
        return exporter.export(target, destination, progress=progress)
