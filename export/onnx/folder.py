"""What the ways to write an ONNX folder share: the source, the temporary name, the artifact.

A folder is written as NAME.partial and gets its name only when it was verified; one that fails its
verification keeps the other name (PITFALLS 25).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clp_edge
from clp_edge.durable import PARTIAL, settle, sha256_of
from clp_edge.errors import ClpEdgeError, VerificationError
from clp_edge.export.base import Artifact, Target
from clp_edge.export.onnx.contents import Graph

# A hung child is ended after this. The slowest recipe (k_quant_mixed) takes 100 s for 0.135 billion
# parameters on two busy cores, 740 s a billion; a Jetson's are slower.
_START_S = 600.0
_PER_BILLION_S = 7_200.0


def build_timeout_s(folder: Path) -> float:
    """Seconds that a builder may take for this folder: it grows with the parameters.

    >>> build_timeout_s(Path("no/such/folder"))
    600.0
    """
    return _START_S + _PER_BILLION_S * _parameters(folder) / 1e9


def open_source(folder: Path) -> tuple[Any, Any]:
    """(config, tokenizer) of a Hugging Face folder; ClpEdgeError where it is none."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        hf = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ClpEdgeError(
            f"{folder} is no Hugging Face model folder ({error})",
            "give a folder with config.json, tokenizer.json and safetensors files",
        ) from error
    return config, hf


@contextmanager
def unproven(destination: Path) -> Iterator[Path]:
    """The temporary name of a folder; after an error it is gone, unless it was found wrong."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
    except BaseException as error:
        if not isinstance(error, VerificationError):
            shutil.rmtree(partial, ignore_errors=True)
        raise


def proven(
    partial: Path, destination: Path, target: Target, measured: dict[str, Any], *, source: Path
) -> Artifact:
    """Give a verified folder its name, in place of an older one.

    Bytes are those of all files; the sha256 is `folder_digest`'s.
    """
    graph = Graph(partial)
    bits = 8.0 * graph.tensor_bytes() / _parameters(source)
    floats = graph.float_matrices() if target.quantization.startswith("int") else []
    digest, size = folder_digest(partial)
    if destination.is_dir():
        shutil.rmtree(destination)
    settle(partial, destination)
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


def folder_digest(folder: Path) -> tuple[str, int]:
    """(sha256 of the lines "sha256  name", sorted by name, as sha256sum prints them; bytes)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    total = sum(path.stat().st_size for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest(), total


def strings(metadata: dict[str, Any]) -> dict[str, str]:
    """What goes into the graph: ours and the caller's; names without a dot become clp_edge.NAME."""
    return {
        (key if "." in key else f"clp_edge.{key}"): str(value)
        for key, value in {"version": clp_edge.__version__, **metadata}.items()
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
