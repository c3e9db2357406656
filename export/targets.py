"""The table of targets: what to write, under which names, and one line of plain advice for each.

`gguf-q4` is gguf-q4_k_m; the exact llama.cpp type names ("Q4_K_M", any case) are accepted too.
`max_kl` is a sanity limit, not a promise of quality: the mean KL(torch float32 || file) in nats on
a short text, beyond which the file is taken for broken unless torch, with the file's own weights,
says the same. The limits stand well above what a real model of 135M parameters measured (0.004 for
Q8_0, 0.05 for Q4_K_M).

>>> resolve("gguf-q4").file_suffix
'Q4_K_M'
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from clp_edge.errors import UsageError


@dataclass(frozen=True)
class Target:
    """One way to write a model."""

    name: str
    aliases: tuple[str, ...]
    format: str
    """Which exporter writes it: "gguf"."""
    quantization: str
    """The runtime's own name of the type, such as "Q4_K_M"."""
    file_type: int
    """llama.cpp's number for it (llama_ftype)."""
    file_suffix: str
    advice: str
    max_kl: float
    needs_importance_matrix: bool = False
    extension: str = ".gguf"
    """Of the file; empty where the target is a folder."""

    def file_name(self, model: str) -> str:
        """The file or folder that holds this model."""
        return f"{model}.{self.file_suffix}{self.extension}"


def _gguf(
    quantization: str,
    file_type: int,
    max_kl: float,
    advice: str,
    *extra: str,
    imatrix: bool = False,
) -> Target:
    name = f"gguf-{quantization.lower()}"
    aliases = (quantization.lower(), *extra)
    return Target(
        name, aliases, "gguf", quantization, file_type, quantization, advice, max_kl, imatrix
    )


_TARGETS: tuple[Target, ...] = (
    _gguf("F16", 1, 1e-4, "no loss, twice the size of Q8_0: a reference, and fast on some GPUs"),
    _gguf("BF16", 32, 5e-3, "as F16 for models trained in bfloat16; slow where the chip lacks it"),
    _gguf("Q8_0", 7, 0.02, "hardly any loss; take it when it fits", "gguf-q8"),
    _gguf("Q6_K", 18, 0.05, "close to Q8_0 at three quarters of its size", "gguf-q6"),
    _gguf("Q5_K_M", 17, 0.4, "a little better than Q4_K_M, a little larger", "gguf-q5"),
    _gguf("Q5_K_S", 16, 0.4, "Q5_K_M without the extra bits on sensitive tensors"),
    _gguf("Q5_1", 9, 0.4, "older 5-bit type with an offset; for rows that K-quants do not fit"),
    _gguf("Q5_0", 8, 0.4, "older 5-bit type; for rows that K-quants do not fit"),
    _gguf("Q4_K_M", 15, 0.6, "the usual choice: small, fast, little loss", "gguf-q4"),
    _gguf("Q4_K_S", 14, 0.6, "Q4_K_M without the extra bits on sensitive tensors"),
    _gguf("IQ4_NL", 25, 0.6, "4 bits on an uneven grid; good on rows that K-quants do not fit"),
    _gguf("IQ4_XS", 30, 0.6, "the smallest good 4-bit type, slower on old processors"),
    _gguf("Q4_1", 3, 0.8, "older 4-bit type with an offset; larger than Q4_0"),
    _gguf("Q4_0", 2, 0.8, "the fastest 4-bit type on ARM processors, with more loss than Q4_K_M"),
    _gguf("Q3_K_L", 13, 2.0, "3 bits with more on sensitive tensors; large models only"),
    _gguf("Q3_K_M", 12, 2.0, "3 bits; large models only", "gguf-q3"),
    _gguf("Q3_K_S", 11, 3.0, "3 bits throughout; a clear loss"),
    _gguf("Q2_K", 10, 4.0, "2 to 3 bits; a heavy loss on small models", "gguf-q2"),
    _gguf("IQ2_XXS", 19, 4.0, "2 bits, only with an importance matrix", imatrix=True),
    _gguf("IQ2_XS", 20, 4.0, "2 bits, only with an importance matrix", imatrix=True),
    _gguf("IQ2_S", 28, 4.0, "2 bits, only with an importance matrix", imatrix=True),
    _gguf("IQ3_XXS", 23, 3.0, "3 bits, only with an importance matrix", imatrix=True),
    _gguf("IQ1_S", 24, 6.0, "1.6 bits, only with an importance matrix", imatrix=True),
    _gguf("IQ1_M", 31, 6.0, "1.8 bits, only with an importance matrix", imatrix=True),
)

_NOT_YET = ("onnx", "onnx-int4", "onnx-int8", "onnx-fp16", "onnx-fp32")


def all_targets() -> tuple[Target, ...]:
    """Every target that can be asked for, best quality first."""
    return tuple(target for target in _TARGETS if not target.needs_importance_matrix)


def resolve(name: str) -> Target:
    """The target of that name, alias or llama.cpp type, any case; UsageError with the nearest."""
    wanted = name.strip().lower()
    by_name = {key: target for target in _TARGETS for key in (target.name, *target.aliases)}
    target = by_name.get(wanted)
    if target is not None and not target.needs_importance_matrix:
        return target
    if target is not None:
        raise UsageError(
            f"target {target.name} needs an importance matrix, which is not made yet",
            "take gguf-q3_k_m or larger",
        )
    if wanted in _NOT_YET:
        raise UsageError(f"target {wanted} is not yet written", "take a gguf target")
    known = [key for key, found in by_name.items() if not found.needs_importance_matrix]
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
    nearest = by_name[near[0]].name if near else "gguf-q4_k_m"
    raise UsageError(f"unknown target {name!r}", f"did you mean {nearest}?")
