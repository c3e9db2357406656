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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clp_edge
from clp_edge.durable import PARTIAL, WORK, settle, sha256_of, write_text
from clp_edge.errors import ClpEdgeError, PreflightError, VerificationError
from clp_edge.export.base import Artifact
from clp_edge.export.gguf import tokenizer
from clp_edge.export.gguf.plan import plan
from clp_edge.export.gguf.quantize import census, quantize
from clp_edge.export.gguf.reference import Reference, make_reference
from clp_edge.export.gguf.verify import verify
from clp_edge.export.gguf.writer import write_f16
from clp_edge.export.targets import Target, resolve
from clp_edge.progress import Progress

_F16 = resolve("gguf-f16")


@dataclass
class _Model:
    """The folder, opened as far as all steps need it; torch's answers are made when asked for."""

    folder: Path
    config: Any
    hf: Any
    carried: Path | None
    _reference: Reference | None = None

    def reference(self) -> Reference:
        if self._reference is None:
            self._reference = make_reference(self.folder, self.config, self.hf)
        return self._reference


def _open(folder: Path) -> _Model:
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        hf = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ClpEdgeError(
            f"{folder} is no Hugging Face model folder ({error})",
            "give a folder with config.json, tokenizer.json and safetensors files",
        ) from error
    carried = folder / tokenizer.CARRIED_FILE
    return _Model(folder, config, hf, carried if carried.is_file() else None)


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

    Args: `metadata` goes into the file (names without a dot become clp_edge.NAME); `workdir` keeps
    the verified F16 file for the next target; `f16` is such a file to start from.
    Raises: PreflightError with all problems before any work; VerificationError (the file then
    keeps its .partial name); RuntimeDiedError; ClpEdgeError.
    """
    model = _open(folder)
    problems = plan(model.config, model.hf, target, tokenizer_gguf=model.carried).problems
    if problems:
        raise PreflightError(list(problems))
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + PARTIAL)

    def part(start: float, end: float) -> Progress:
        def report(done: float, total: float, note: str = "") -> None:
            progress(start + (end - start) * done / max(total, 1e-9), 1.0, note)

        return report

    with _workdir(workdir, destination.parent) as room:
        source, measured = _verified_f16(
            model, room, metadata, f16, threads=threads, progress=part(0.0, 0.6)
        )
        with _partial(partial):
            if target.quantization == _F16.quantization:
                progress(0.6, 1.0, "copying the verified F16 file")
                _link_or_copy(source, partial)
            else:
                progress(0.6, 1.0, f"quantizing to {target.quantization}")
                quantize(source, partial, target, threads=threads)
                progress(0.8, 1.0, f"verifying {target.quantization} against torch")
                measured = verify(
                    partial,
                    target,
                    folder=model.folder,
                    source=source,
                    config=model.config,
                    hf=model.hf,
                    reference=model.reference(),
                    threads=threads,
                )
            found = census(partial, target)
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


def _verified_f16(
    model: _Model,
    room: Path,
    metadata: dict[str, Any],
    given: Path | None,
    *,
    threads: int,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """An F16 file that passed verification, and what was measured: kept, given, or made now."""
    path = given or room / "model.F16.gguf"
    note = path.with_name(path.name + ".json")
    made_from = fingerprint(model.folder, metadata)
    if (measured := _kept(path, note, made_from)) is not None:
        progress(1.0, 1.0, "the verified F16 file is at hand")
        return path, measured

    def check(file: Path) -> dict[str, Any]:
        progress(0.5, 1.0, "verifying F16 against torch")
        return verify(
            file,
            _F16,
            folder=model.folder,
            config=model.config,
            hf=model.hf,
            reference=model.reference(),
            threads=threads,
        )

    if given is not None:  # the caller's file: proved, but neither written nor noted
        return given, check(given)
    partial = path.with_name(path.name + PARTIAL)
    with _partial(partial):
        write_f16(
            model.folder,
            partial,
            config=model.config,
            tokenizer_entries=tokenizer.gguf_entries(model.config, model.hf, model.carried),
            metadata={"version": clp_edge.__version__, **metadata},
            progress=lambda done, total, what="": progress(0.5 * done / total, 1.0, what),
        )
        measured = check(partial)
        settle(partial, path)
    stat = path.stat()
    write_text(
        note,
        json.dumps({"made_from": made_from, "bytes": stat.st_size, "verify": measured}, indent=1),
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


class _workdir:
    """The caller's folder, made where absent; or a temporary one on the same disk."""

    def __init__(self, given: Path | None, beside: Path) -> None:
        self.given, self.beside = given, beside

    def __enter__(self) -> Path:
        self.temporary = None
        if self.given is not None:
            self.given.mkdir(parents=True, exist_ok=True)
            return self.given
        self.temporary = tempfile.TemporaryDirectory(prefix=WORK, dir=self.beside)
        return Path(self.temporary.name)

    def __exit__(self, *_: object) -> None:
        if self.temporary is not None:
            self.temporary.cleanup()


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
