"""plan -> build -> verify -> rename, for a folder that onnxruntime-genai opens.

The builder runs in a child process on the Hugging Face folder, after the cut: its mixed recipes
depend on where a block stands (PITFALLS 17). The folder is written as NAME.partial and gets its
name only when it was verified; one that fails keeps the other name (PITFALLS 25).
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import clp_edge
from clp_edge.durable import PARTIAL, settle, sha256_of
from clp_edge.errors import (
    ClpEdgeError,
    PreflightError,
    RuntimeDiedError,
    VerificationError,
)
from clp_edge.export.base import Artifact, Target
from clp_edge.export.onnx.contents import Graph
from clp_edge.export.onnx.plan import plan
from clp_edge.export.onnx.reference import make_reference
from clp_edge.export.onnx.targets import EXECUTION_PROVIDERS, RECIPES
from clp_edge.export.onnx.verify import verify
from clp_edge.progress import Progress
from clp_edge.runtimes.process import ChildProcess, run_in_child

LOG_NAME = "builder.log"
_BUILD = "clp_edge.export.onnx.build:build"
_BUILD_TIMEOUT_S = 4 * 3_600.0
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
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        hf = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ClpEdgeError(
            f"{folder} is no Hugging Face model folder ({error})",
            "give a folder with config.json, tokenizer.json and safetensors files",
        ) from error
    if problems := plan(config, hf, target, provider=provider).problems:
        raise PreflightError(list(problems))
    computes = prove_provider(provider)
    said = _strings({"version": clp_edge.__version__, **metadata})
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
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
        graph = Graph(partial)
        floats = graph.float_matrices() if target.quantization.startswith("int") else []
        bits = 8.0 * graph.tensor_bytes() / _parameters(folder)
        digest, size = folder_digest(partial)
        if destination.is_dir():
            shutil.rmtree(destination)
        settle(partial, destination)
    except BaseException as error:
        if not isinstance(error, VerificationError):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    progress(1.0, 1.0, f"{destination.name} verified")
    return Artifact(
        name=destination.name,
        target=target.name,
        path=destination,
        bytes=size,
        bits_per_weight=bits,
        fallback_tensors=len(floats),
        sha256=digest,
        verified=True,
        verify=measured,
    )


def prove_provider(provider: str) -> str:
    """Have the provider multiply, in a child; PreflightError with the reason where it does not.

    What is built for a provider is verified on it, so it has to be here (PITFALLS 18).
    """
    name = EXECUTION_PROVIDERS[provider]
    try:
        return run_in_child("clp_edge.runtimes.ort:try_provider", what="a product", name=name)
    except RuntimeDiedError as error:
        cure = f"export for --ep cpu here, or on a machine where {name} works"
        raise PreflightError(
            [ClpEdgeError(f"{name} does not compute here ({error.cause})", cure)]
        ) from error


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
    with ChildProcess("onnxruntime-genai's builder", timeout_s=_BUILD_TIMEOUT_S) as child:
        try:
            child.ask("run", _BUILD, arguments, on_part=report)
        finally:
            if workdir is not None and child.log_path.is_file():
                workdir.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(child.log_path, workdir / LOG_NAME)


def folder_digest(folder: Path) -> tuple[str, int]:
    """(sha256 of the lines "sha256  name", sorted by name, as sha256sum prints them; bytes)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    total = sum(path.stat().st_size for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest(), total


def _strings(metadata: dict[str, Any]) -> dict[str, str]:
    return {
        (key if "." in key else f"clp_edge.{key}"): str(value)
        for key, value in metadata.items()
        if value is not None
    }


def _parameters(folder: Path) -> int:
    """How many numbers the folder's weights hold."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                count = 1
                for size in file.get_slice(name).get_shape():
                    count *= size
                total += count
    return total
