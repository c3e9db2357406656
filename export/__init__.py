"""Write a Hugging Face folder in a format that a runtime opens, and prove the file right.

>>> target = resolve("gguf-q4")
>>> plan(config, tokenizer, target).problems                                # doctest: +SKIP
()
>>> made = export(folder, target, Path("model.Q4_K_M.gguf"), metadata={}, threads=4,
...               progress=silent)                                          # doctest: +SKIP
>>> made.verified                                                           # doctest: +SKIP
True
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clp_edge.export.base import Artifact, ExportPlan
from clp_edge.export.targets import Target, all_targets, resolve
from clp_edge.progress import Progress

__all__ = ["Artifact", "ExportPlan", "Target", "all_targets", "export", "plan", "resolve"]


def plan(
    config: Any,
    tokenizer: Any,
    target: Target,
    *,
    tokenizer_gguf: Path | None = None,
    blocks: int | None = None,
) -> ExportPlan:
    """What `target` would be for this model (with `blocks` blocks) and all that stands in its way.

    Args: transformers' config and tokenizer; `tokenizer_gguf` the keys a GGUF source brought along.
    Never raises for an unsupported thing: `problems` lists it.
    """
    from clp_edge.export.gguf.plan import plan as plan_gguf

    return plan_gguf(config, tokenizer, target, tokenizer_gguf=tokenizer_gguf, blocks=blocks)


def export(
    folder: Path,
    target: Target,
    destination: Path,
    *,
    metadata: dict[str, Any],
    threads: int,
    progress: Progress,
    workdir: Path | None = None,
    f16: Path | None = None,
) -> Artifact:
    """Write `folder` as `target` to `destination`, which is replaced only by a verified file.

    See `clp_edge.export.gguf.exporter.export` for arguments and errors.
    """
    from clp_edge.export.gguf.exporter import export as export_gguf

    return export_gguf(
        folder,
        target,
        destination,
        metadata=metadata,
        threads=threads,
        progress=progress,
        workdir=workdir,
        f16=f16,
    )
