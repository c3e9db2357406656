"""Quantize a GGUF file with llama.cpp in a child process, and say what really came out.

"q4" is not 4 bits on small models: rows that are no multiple of 256 fall back to other types
(PITFALLS 11). The true bits per weight and the tensors that fell back are read from the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader

from clp_edge.errors import ClpEdgeError
from clp_edge.export.gguf.mix import block_size
from clp_edge.export.targets import Target
from clp_edge.runtimes import run_in_child


@dataclass(frozen=True)
class Census:
    """What a GGUF file holds."""

    bytes: int
    parameters: int
    bits_per_weight: float
    """Tensor bytes * 8 / parameters, every tensor counted."""
    types: dict[str, str]
    """Tensor name -> its type."""
    fallback: tuple[str, ...]
    """Matrices whose rows do not fit the target's type, so another was taken. The head is not
    among them: a wider type is chosen for it in any case."""


def census(path: Path, target: Target) -> Census:
    """Read a finished file's header. Raises ClpEdgeError where it is no GGUF file."""
    try:
        tensors = GGUFReader(path).tensors
    except (OSError, ValueError, IndexError) as error:
        raise ClpEdgeError(f"{path} cannot be read as GGUF ({error})") from error
    need = 1 if target.quantization in ("F16", "BF16") else _block(target)
    names = {t.name for t in tensors}
    head = "output.weight" if "output.weight" in names else "token_embd.weight"
    parameters = sum(int(t.n_elements) for t in tensors)
    size = sum(int(t.n_bytes) for t in tensors)
    return Census(
        bytes=path.stat().st_size,
        parameters=parameters,
        bits_per_weight=8.0 * size / parameters,
        types={t.name: t.tensor_type.name for t in tensors},
        fallback=tuple(
            t.name
            for t in tensors
            if len(t.shape) > 1 and t.name != head and int(t.shape[0]) % need != 0
        ),
    )


def _block(target: Target) -> int:
    """Numbers in a block of the target's type: 256 for the K-quants, 32 for the older ones."""
    name = target.quantization
    return block_size(name.removesuffix("_M").removesuffix("_S").removesuffix("_L"))


def quantize(source: Path, destination: Path, target: Target, *, threads: int) -> list[str]:
    """Write `source` (F16 GGUF) as `target` to `destination`; return llama.cpp's fallback lines.

    Raises RuntimeDiedError with the last log lines when llama.cpp fails or aborts; what it had
    written is removed.
    """
    try:
        return run_in_child(
            "clp_edge.runtimes.llama:quantize_file",
            what=f"quantizing to {target.quantization}",
            source=str(source),
            destination=str(destination),
            file_type=target.file_type,
            threads=threads,
        )
    except BaseException:
        destination.unlink(missing_ok=True)
        raise
