"""plan -> write -> verify -> rename, for GGUF.

The F16 file comes first and is verified against torch; other types are quantized from it and
verified on their own. With a `workdir` the F16 file stays there with a note of what it was made
from, so a second target of the same folder does not convert again. Nothing gets its final name
that was not verified; a file that fails keeps the name with ".partial" (PITFALLS 25).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clp_edge
from clp_edge.durable import PARTIAL, WORK, settle, sha256_of, write_text
from clp_edge.errors import ClpEdgeError, PreflightError, VerificationError
from clp_edge.export.base import DEFAULT_OPTIONS, Artifact, ExportOptions, Target
from clp_edge.export.gguf import tokenizer
from clp_edge.export.gguf.imatrix import Importance, importance
from clp_edge.export.gguf.layout import Layout, layout_of
from clp_edge.export.gguf.peer import convert
from clp_edge.export.gguf.plan import plan, traits_of
from clp_edge.export.gguf.quantize import census, quantize
from clp_edge.export.gguf.reference import Reference, make_reference
from clp_edge.export.gguf.targets import F16
from clp_edge.export.gguf.verify import verify
from clp_edge.export.gguf.writer import write_f16
from clp_edge.progress import Progress

if TYPE_CHECKING:
    import torch


class GgufExporter:
    """A Hugging Face folder opened for GGUF. See `clp_edge.export.base.Exporter`.

    Config, tokenizer, torch's answers and the verified F16 file are made when they are first
    needed, and serve every target after that.
    """

    def __init__(
        self,
        folder: Path,
        *,
        metadata: dict[str, Any],
        threads: int,
        workdir: Path | None = None,
        calibration: torch.Tensor | None = None,
        options: ExportOptions = DEFAULT_OPTIONS,
    ) -> None:
        self.folder = folder
        self.metadata = metadata
        self.threads = threads
        self.workdir = workdir
        self.calibration = calibration
        self.options = options
        self._importance: Importance | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> GgufExporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        with self._explained():
            return AutoConfig.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def hf(self) -> Any:
        """The folder's tokenizer, as its tokenizer.json says it."""
        from clp_edge.models.source import folder_tokenizer

        with self._explained():
            return folder_tokenizer(self.folder)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise ClpEdgeError(
                f"{self.folder} is no Hugging Face model folder ({error})",
                "give a folder with config.json, tokenizer.json and safetensors files",
            ) from error

    @property
    def carried(self) -> Path | None:
        """The tokenizer keys that a GGUF source brought along."""
        path = self.folder / tokenizer.CARRIED_FILE
        return path if path.is_file() else None

    @cached_property
    def layout(self) -> Layout:
        """Who makes the F16 file."""
        return layout_of(self.config, self.hf, self.options)

    @cached_property
    def reference(self) -> Reference:
        """What torch says, in float32."""
        return make_reference(self.folder, self.config, self.hf)

    def _verify(self, path: Path, target: Target, source: Path | None = None) -> dict[str, Any]:
        return verify(
            path,
            target,
            folder=self.folder,
            source=source,
            config=self.config,
            hf=self.hf,
            reference=self.reference,
            threads=self.threads,
            gpu_layers=self.options.gpu_layers,
            layout=self.layout,
        )

    def export(self, target: Target, destination: Path, *, progress: Progress) -> Artifact:
        calibrated = self.calibration is not None
        problems = plan(
            self.config,
            self.hf,
            target,
            tokenizer_gguf=self.carried,
            calibrated=calibrated,
            options=self.options,
        ).problems
        if problems:
            raise PreflightError(list(problems))
        of = traits_of(
            self.config, target, calibrated=calibrated, options=self.options, layout=self.layout
        )
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = destination.with_name(destination.name + PARTIAL)
        room = self._room(destination.parent)
        source, measured = self._verified_f16(
            room, lambda done, total, note="": progress(0.6 * done / total, 1.0, note)
        )
        with _partial(partial):
            if target is F16:
                progress(0.6, 1.0, "copying the verified F16 file")
                _link_or_copy(source, partial)
            else:
                matrix = self._matrix(progress) if of.matrix else None
                progress(0.65, 1.0, f"quantizing to {target.quantization}")
                quantize(
                    source,
                    partial,
                    target,
                    threads=self.threads,
                    importance=matrix,
                    types=of.types,
                )
                progress(0.8, 1.0, f"verifying {target.quantization} against torch")
                measured = self._verify(partial, target, source)
                if matrix is not None:
                    measured["imatrix"] = {"tokens": matrix.tokens}
            found = census(partial, target, matrix=of.matrix, types=of.types)
            digest = sha256_of(partial)
            settle(partial, destination)
        progress(1.0, 1.0, f"{destination.name} verified")
        return Artifact(
            name=destination.stem,
            target=target.name,
            path=destination,
            bytes=found.bytes,
            bits_per_weight=found.bits_per_weight,
            fallback_tensors=len(found.fallback),
            sha256=digest,
            verified=True,
            verify=measured,
        )

    def _matrix(self, progress: Progress) -> Importance:
        """The importance matrix, made once for all targets."""
        if self._importance is None:
            assert self.calibration is not None
            self._importance = importance(
                self.folder,
                self.config,
                self.calibration,
                tensors=self.layout.tensors(self.config),
                progress=lambda done, total, note="": progress(
                    0.6 + 0.05 * done / total, 1.0, note
                ),
            )
        return self._importance

    def _room(self, beside: Path) -> Path:
        """The caller's folder, made where absent; or a temporary one on the same disk."""
        if self.workdir is not None:
            self.workdir.mkdir(parents=True, exist_ok=True)
            return self.workdir
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix=WORK, dir=beside)
        return Path(self._temporary.name)

    def _verified_f16(self, room: Path, progress: Progress) -> tuple[Path, dict[str, Any]]:
        """An F16 file that passed verification, and what was measured: kept, or made now."""
        path = room / "model.F16.gguf"
        note = path.with_name(path.name + ".json")
        by = self.layout
        said = self.metadata if by.peer is None else {**self.metadata, "converter": by.converter}
        made_from = fingerprint(self.folder, said)
        if (measured := _kept(path, note, made_from)) is not None:
            progress(1.0, 1.0, "the verified F16 file is at hand")
            return path, measured
        partial = path.with_name(path.name + PARTIAL)
        with _partial(partial):
            if by.peer is not None:
                progress(0.0, 1.0, f"{by.converter} converts")
                convert(self.folder, partial, peer=by.peer)
            else:
                write_f16(
                    self.folder,
                    partial,
                    config=self.config,
                    tokenizer_entries=tokenizer.gguf_entries(self.config, self.hf, self.carried),
                    metadata={"version": clp_edge.__version__, **self.metadata},
                    progress=lambda done, total, what="": progress(0.5 * done / total, 1.0, what),
                )
            progress(0.5, 1.0, "verifying F16 against torch")
            measured = self._verify(partial, F16)
            settle(partial, path)
        stat = path.stat()
        write_text(
            note,
            json.dumps(
                {"made_from": made_from, "bytes": stat.st_size, "verify": measured}, indent=1
            ),
        )
        return path, measured


def _kept(path: Path, note: Path, made_from: str) -> dict[str, Any] | None:
    """What was measured of a file kept from an earlier target, when it is still that file."""
    try:
        said = json.loads(note.read_text())
        same = said["made_from"] == made_from and path.stat().st_size == said["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return said["verify"] if same else None


def fingerprint(folder: Path, metadata: dict[str, Any]) -> str:
    """What an F16 file depends on: the folder's files (name, size, time of change), the metadata
    and this version."""
    files = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(folder.iterdir())
        if file.is_file()
    ]
    whole = json.dumps([files, metadata, clp_edge.__version__], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode()).hexdigest()


class _partial:
    """A temporary name: gone after any failure but a failed verification, which keeps the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.path.unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, VerificationError):
            self.path.unlink(missing_ok=True)


def _link_or_copy(source: Path, destination: Path) -> None:
    attempts: tuple[Callable[[Path, Path], Any], ...] = (os.link, shutil.copyfile)
    try:
        attempts[0](source, destination)
    except OSError:  # another disk, or no hard links there
        attempts[1](source, destination)
