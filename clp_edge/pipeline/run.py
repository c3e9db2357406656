"""What the stages of one run share: plan, output folder, results so far, the dense model."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from clp_edge import data
from clp_edge.config import CompressConfig
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.source import load_model
from clp_edge.models.surgery import remove_blocks
from clp_edge.pipeline.folder import OutputFolder
from clp_edge.pipeline.preflight import Plan
from clp_edge.progress import Observer
from clp_edge.segment import Segment


@dataclass
class Run:
    """One run over one output folder. Models are loaded when a stage needs them, and let go."""

    config: CompressConfig
    plan: Plan
    observer: Observer
    folder: OutputFolder
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """what each stage returned"""
    _dense: Any = None

    def model(self) -> Any:
        """The dense model, loaded when it is first needed."""
        if self._dense is None:
            self._dense = load_model(
                self.plan.source, dtype=self.plan.compute, device=self.plan.device
            )
        return self._dense

    def body(self) -> Anatomy:
        """The dense model taken apart."""
        return dissect(self.model())

    def let_go(self) -> None:
        """Free the dense model before a child process needs the memory."""
        self._dense = None
        gc.collect()

    def pruned(self) -> Any:
        """The dense model without the segment, sharing its tensors."""
        model = self.model()
        shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
        pruned = copy.deepcopy(model, memo=dict(shared))
        remove_blocks(pruned, self.segment.blocks)
        return pruned

    @cached_property
    def calibration(self) -> data.Calibration:
        """What the calibrate stage left."""
        said = self.results["calibrate"]
        parts = load_file(str(self.folder.stage_folder("calibrate") / "calibration.safetensors"))
        return data.Calibration(
            fit=parts["fit"],
            select=parts["select"],
            report=parts["report"],
            origin=said["origin"],
            sha256=said["sha256"],
            fit_texts=tuple(said["fit_texts"]),
            select_texts=tuple(said["select_texts"]),
            report_texts=tuple(said["report_texts"]),
            report_sequences=tuple(said["report_sequences"]),
        )

    @cached_property
    def evaluation_ids(self) -> Tensor:
        """(sequences, tokens) int64, on the device."""
        folder = self.folder.stage_folder("text")
        return load_file(str(folder / "evaluation.safetensors"))["ids"].to(self.plan.device)

    @property
    def segment(self) -> Segment:
        """The blocks that go."""
        return Segment(**self.results["search"]["segment"])

    @property
    def variants(self) -> tuple[str, ...]:
        """Which models are written: the dense one only where it is compared with."""
        return ("dense", "healed") if self.config.bench.wanted else ("healed",)

    def relative(self, paths: Iterable[Path]) -> list[str]:
        """The files among these paths, relative to the output folder."""
        return sorted(os.path.relpath(p, self.plan.out) for p in paths if p.is_file())

    def ours_below(self, path: Path) -> list[Path]:
        """Files at or below a path that an earlier run of ours wrote there."""
        listed = (self.plan.out / name for name in self.folder.state["files"])
        return [f for f in listed if (f == path or path in f.parents) and f.is_file()]
