"""Quantize a GGUF file with llama.cpp in a child process, and say what really came out.

"q4" is not 4 bits on small models: rows that are no multiple of 256 fall back to other types
(PITFALLS 11). The true bits per weight and the tensors that fell back are read from the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clp_edge.export.base import Target
from clp_edge.export.gguf.imatrix import Importance
from clp_edge.export.gguf.mix import Traits, taken_for_70b, wanted
from clp_edge.export.gguf.targets import FILE_TYPES
from clp_edge.gguf_file.contents import Contents
from clp_edge.runtimes import patience_s, run_in_child


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
    """Matrices that stand in the file in another type than the target's mix has for them: their
    rows do not fit it. The head's wider type is chosen, and no fallback."""


def census(
    path: Path, target: Target, *, matrix: bool = False, types: tuple[tuple[str, str], ...] = ()
) -> Census:
    """Read a finished file's header. Raises ClpEdgeError where it is no whole GGUF file.

    `matrix` and `types` say how it was made, as in `Traits`.
    """
    made = Contents(path)
    tensors = made.tensors.values()
    parameters = sum(t.elements for t in tensors)
    size = sum(t.bytes for t in tensors)
    return Census(
        bytes=path.stat().st_size,
        parameters=parameters,
        bits_per_weight=8.0 * size / parameters,
        types={name: made.type_name(name) for name in made.tensors},
        fallback=_fallback(made, target, matrix, types),
    )


def _fallback(
    made: Contents, target: Target, matrix: bool, types: tuple[tuple[str, str], ...]
) -> tuple[str, ...]:
    """The matrices whose type in the file is not the one that the target's mix has for them."""
    header = made.header
    architecture = header.value("general.architecture")
    heads = header.value(f"{architecture}.attention.head_count")
    key_heads = header.value(f"{architecture}.attention.head_count_kv", heads)
    blocks = int(header.value(f"{architecture}.block_count"))
    of = Traits(
        blocks=blocks,
        grouped=heads // key_heads,
        tied="output.weight" not in made.tensors,
        matrix=matrix,
        large=taken_for_70b(architecture, blocks, heads, key_heads),
        types=types,
    )
    return tuple(
        tensor.name
        for tensor in made.tensors.values()
        if len(tensor.shape) > 1
        and made.type_name(tensor.name)
        != wanted(target.quantization, tensor.name, tensor.shape[0], of)
    )


def quantize(
    source: Path,
    destination: Path,
    target: Target,
    *,
    threads: int,
    importance: Importance | None = None,
    types: tuple[tuple[str, str], ...] = (),
) -> list[str]:
    """Write `source` (F16 GGUF) as `target` to `destination`; return llama.cpp's fallback lines.

    `types` are (tensor name, type) pairs that llama.cpp has no say in.
    Raises RuntimeDiedError with the last log lines when llama.cpp fails or aborts; what it had
    written is removed.
    """
    try:
        return run_in_child(
            "clp_edge.runtimes.llama:quantize_file",
            what=f"quantizing to {target.quantization}",
            timeout_s=patience_s(source.stat().st_size),
            source=str(source),
            destination=str(destination),
            file_type=FILE_TYPES[target.quantization],
            threads=threads,
            importance=importance.columns if importance is not None else None,
            types=dict(types),
        )
    except BaseException:
        destination.unlink(missing_ok=True)
        raise
