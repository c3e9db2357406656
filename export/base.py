"""What an export is made of: targets, the format that writes them, a plan before the work, an
artifact after it.

A format is one sub-package and one row in `clp_edge.registry.FORMATS`: it lists its targets, says
what it needs, plans without work, and opens a Hugging Face folder as an exporter that writes any
number of its targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from clp_edge.errors import ClpEdgeError
from clp_edge.progress import Progress
from clp_edge.segment import Segment

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ExportOptions:
    """What may be asked for beside the target. A format refuses what it does not know."""

    tensor_types: tuple[tuple[str, str], ...] = ()
    """(regular expression, type) pairs: matrices whose GGUF name contains a match get that type;
    the first pair that matches counts."""
    careful_blocks: tuple[int, ...] = ()
    """Blocks of the written model that get more bits, such as those beside the cut."""
    careful_head: bool = False
    """Whether the head gets more bits."""
    provider: str = "cpu"
    """The execution provider that ONNX is written for: "cpu", "cuda" or "dml"."""
    converter: str = "auto"
    """Who makes a GGUF file of the weights: "ours", "peer" (llama.cpp's own converter), or "auto",
    ours where it knows the family."""
    gpu_layers: int | Literal["auto"] = field(default="auto", compare=False)
    """Layers that llama.cpp computes on the GPU while a GGUF file is proved; it changes no file."""


DEFAULT_OPTIONS = ExportOptions()


@dataclass(frozen=True)
class Target:
    """One way to write a model."""

    name: str
    aliases: tuple[str, ...]
    format: str
    """Which format writes it: "gguf" or "onnx"."""
    quantization: str
    """The runtime's own name of the type, such as "Q4_K_M"."""
    file_suffix: str
    advice: str
    max_kl: float
    """A sanity limit on KL(torch float32 || file) in nats, no promise of quality."""
    needs_importance_matrix: bool = False
    extension: str = ""
    """Of the file; empty where the target is a folder."""

    def file_name(self, model: str) -> str:
        """The file or folder that holds this model."""
        return f"{model}.{self.file_suffix}{self.extension}"


@dataclass(frozen=True)
class ExportPlan:
    """What writing a target would give, and what stands in its way."""

    target: Target
    predicted_bytes: int
    """0 where the model is not supported. GGUF: to the byte, where the metadata was given."""
    bits_per_weight: float
    fallback_tensors: int
    problems: tuple[ClpEdgeError, ...]
    notes: tuple[str, ...]
    converter: str = ""
    """Who makes the file of the weights, where there is a choice."""
    read_bytes: int = 0
    """Weight bytes that one token reads; 0 where the format does not say: the whole file then."""


@dataclass(frozen=True)
class Artifact:
    """A file or folder that was written, and verified before it got its name."""

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


class Exporter(Protocol):
    """A Hugging Face folder opened for one format: what its targets share is made once."""

    def export(self, target: Target, destination: Path, *, progress: Progress) -> Artifact:
        """Write the folder as `target` to `destination`, replaced only by what was verified.

        Raises: PreflightError with all problems before any work; VerificationError (what was
        written then keeps its .partial name); RuntimeDiedError; ClpEdgeError.
        """
        ...


class Format(Protocol):
    """A row of `FORMATS`."""

    def targets(self) -> tuple[Target, ...]:
        """Every target of this format, best quality first."""
        ...

    def requires(self) -> ClpEdgeError | None:
        """Why nothing of this format can be written here, with the cure; None where it can.

        The runtime really runs; the answer takes seconds.
        """
        ...

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
        """What `target` would be for this model with `blocks` blocks, or without the blocks
        `dropped` where it is known which ones go, and what stands in its way.

        `metadata` as `open` will get it, where it is known already; `calibrated` whether `open`
        will get calibration text.
        Never raises for an unsupported thing: `problems` lists it.
        """
        ...

    def forbids(self, config: Any, segment: Segment) -> str | None:
        """Why this format cannot express the model without `segment`; None where it can."""
        ...

    def nearest(self, config: Any, segment: Segment) -> list[Segment]:
        """The nearest segments that it can express, for the error's cure."""
        ...

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
        """Open a folder. `metadata` goes into the files (names without a dot become
        clp_edge.NAME); intermediates are kept in `workdir`, or in a place that goes on leaving.
        `calibration` is text as ids (sequences, tokens), for what is chosen by what the model
        reads. Raises UsageError for `options` that the format does not know.
        """
        ...

    def companions(self, folder: Path, file_name: str) -> dict[str, str]:
        """Small text files that belong beside the artifact `file_name` made from `folder`: name ->
        content, such as what another program needs to open it.
        """
        ...
