"""What the installed onnxruntime-genai builder can write, read from its source without running it.

The builder chooses a class by comparing config.architectures[0] with names, and prints the pairs of
precision and execution provider that it has. Both are read here, so a newer builder's families need
no change of ours.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from clp_edge.errors import ClpEdgeError, MissingDependencyError

PIP_LINE = "pip install 'clp-edge[onnx]'"
_PACKAGES = ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml")
_PAIRS = re.compile(r"execution provider combinations are: ([^\"\n]+)")


@dataclass(frozen=True)
class Builder:
    """The installed builder."""

    version: str
    architectures: frozenset[str]
    """Class names such as "LlamaForCausalLM"."""
    pairs: frozenset[tuple[str, str]]
    """(precision, execution provider), lower case."""


def installed() -> Builder:
    """Read the installed builder; MissingDependencyError where it or what it imports is absent."""
    for package in ("onnxruntime_genai", "onnxruntime", "onnx", "onnx_ir"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(f"{package} is not installed", PIP_LINE)
    spec = importlib.util.find_spec("onnxruntime_genai")
    assert spec is not None
    places = spec.submodule_search_locations or []
    found = [Path(place) / "models" / "builder.py" for place in places]
    source = next((path for path in found if path.is_file()), None)
    if source is None:
        raise MissingDependencyError("this onnxruntime-genai has no model builder", PIP_LINE)
    return read_builder(source, _version())


def _version() -> str:
    for package in _PACKAGES:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


@functools.cache
def read_builder(source: Path, version: str) -> Builder:
    """The architectures and pairs that a builder.py names.

    Raises ClpEdgeError where it is written so differently that nothing is found.
    """
    text = source.read_text(encoding="utf-8")
    names = {
        str(other.value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Compare) and "config.architectures" in ast.unparse(node.left)
        for other in node.comparators
        if isinstance(other, ast.Constant)
    }
    said = _PAIRS.search(text)
    pairs = {
        (words[0].lower(), words[1].lower())
        for pair in (said[1] if said else "").split(",")
        if len(words := pair.split()) == 2
    }
    if not names or not pairs:
        raise ClpEdgeError(
            f"onnxruntime-genai {version} is not understood: its builder names no architectures",
            "install the tested version: pip install onnxruntime-genai==0.18.0",
        )
    return Builder(version, frozenset(names), frozenset(pairs))
