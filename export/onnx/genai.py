"""plan -> build -> verify -> rename, for a folder that onnxruntime-genai opens.

The builder runs in a child process on the Hugging Face folder, after the cut: its mixed recipes
depend on where a block stands (PITFALLS 17).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from clp_edge.errors import PreflightError
from clp_edge.export.base import Artifact, Target
from clp_edge.export.onnx.folder import build_timeout_s, open_source, proven, strings, unproven
from clp_edge.export.onnx.plan import plan
from clp_edge.export.onnx.provider import prove
from clp_edge.export.onnx.reference import make_reference
from clp_edge.export.onnx.targets import RECIPES
from clp_edge.export.onnx.verify import verify
from clp_edge.progress import Progress
from clp_edge.runtimes.process import ChildProcess

LOG_NAME = "builder.log"
_BUILD = "clp_edge.export.onnx.build:build"
_BUILD_SHARE = 0.6


def export(
    folder: Path,
    target: Target,
    destination: Path,
    *,
    metadata: dict[str, Any],
    threads: int,
    progress: Progress,
    workdir: Path | None = None,
    provider: str = "cpu",
) -> Artifact:
    """Write `folder` as `target` into the folder `destination`, replaced only by a verified one.

    Args: `metadata` goes into the graph (names without a dot become clp_edge.NAME); with a
    `workdir` the builder's log stays there as builder.log; `provider` cpu, cuda or dml.
    Returns an Artifact whose bytes are all files of the folder and whose sha256 is that of
    `folder_digest`. Raises: PreflightError with all problems before any work; VerificationError
    (the folder then keeps its .partial name); RuntimeDiedError; ClpEdgeError.
    """
    config, hf = open_source(folder)
    if problems := plan(config, hf, target, provider=provider).problems:
        raise PreflightError(list(problems))
    computes = prove(provider)
    said = strings(metadata)
    with unproven(destination) as partial:
        _build(folder, partial, target, said, provider, threads, progress, workdir)
        progress(_BUILD_SHARE, 1.0, f"verifying {target.name} against torch")
        measured = verify(
            partial,
            target,
            folder=folder,
            config=config,
            hf=hf,
            reference=make_reference(folder, config, hf),
            metadata=said,
            threads=threads,
        )
        measured["provider"] = computes
        artifact = proven(partial, destination, target, measured, source=folder)
    progress(1.0, 1.0, f"{destination.name} verified")
    return artifact


def _build(
    folder: Path,
    partial: Path,
    target: Target,
    metadata: dict[str, str],
    provider: str,
    threads: int,
    progress: Progress,
    workdir: Path | None,
) -> None:
    recipe = RECIPES[target.quantization]
    arguments = {
        "folder": str(folder),
        "destination": str(partial),
        "precision": recipe.precision,
        "provider": provider,
        "options": dict(recipe.options),
        "metadata": metadata,
        "threads": threads,
    }

    def report(part: tuple[float, str]) -> None:
        progress(_BUILD_SHARE * part[0], 1.0, part[1])

    progress(0.0, 1.0, "starting onnxruntime-genai's builder")
    with ChildProcess("onnxruntime-genai's builder", timeout_s=build_timeout_s(folder)) as child:
        try:
            child.ask("run", _BUILD, arguments, on_part=report)
        finally:
            if workdir is not None and child.log_path.is_file():
                workdir.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(child.log_path, workdir / LOG_NAME)
