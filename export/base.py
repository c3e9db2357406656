"""What every exporter hands back: a plan before the work, an artifact after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clp_edge.errors import ClpEdgeError
from clp_edge.export.targets import Target


@dataclass(frozen=True)
class ExportPlan:
    """What writing a target would give, and what stands in its way."""

    target: Target
    predicted_bytes: int
    """An estimate; 0 where the model is not supported."""
    bits_per_weight: float
    fallback_tensors: int
    problems: tuple[ClpEdgeError, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Artifact:
    """A file that was written, and verified before it got its name."""

    name: str
    target: str
    path: Path
    bytes: int
    bits_per_weight: float
    """Tensor bytes * 8 / parameters, read from the file."""
    fallback_tensors: int
    sha256: str
    verified: bool
    verify: dict[str, Any]
    """What was measured: kl, top1_agreement, ..."""
