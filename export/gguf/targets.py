"""The GGUF targets: llama.cpp's types, with one line of plain advice for each.

`gguf-q4` is gguf-q4_k_m; the exact llama.cpp type names ("Q4_K_M", any case) are accepted too.
`max_kl` is a sanity limit, not a promise of quality: the mean KL(torch float32 || file) in nats on
a short text, beyond which the file is taken for broken unless torch, with the file's own weights,
says the same. The limits stand well above what a real model of 135M parameters measured (0.004 for
Q8_0, 0.05 for Q4_K_M).
"""

from __future__ import annotations

from clp_edge.export.base import Target

FILE_TYPES = {
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K_M": 17,
    "Q5_K_S": 16,
    "Q5_1": 9,
    "Q5_0": 8,
    "Q4_K_M": 15,
    "Q4_K_S": 14,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "Q4_1": 3,
    "Q4_0": 2,
    "Q3_K_L": 13,
    "Q3_K_M": 12,
    "Q3_K_S": 11,
    "IQ3_M": 27,
    "IQ3_S": 26,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "Q2_K": 10,
    "Q2_K_S": 21,
    "IQ2_M": 29,
    "IQ2_S": 28,
    "IQ2_XS": 20,
    "IQ2_XXS": 19,
    "IQ1_M": 31,
    "IQ1_S": 24,
}
"""llama.cpp's number of each type (llama_ftype)."""


def _gguf(
    quantization: str, max_kl: float, advice: str, *extra: str, imatrix: bool = False
) -> Target:
    return Target(
        name=f"gguf-{quantization.lower()}",
        aliases=(quantization.lower(), *extra),
        format="gguf",
        quantization=quantization,
        file_suffix=quantization,
        advice=advice,
        max_kl=max_kl,
        needs_importance_matrix=imatrix,
        extension=".gguf",
    )


TARGETS: tuple[Target, ...] = (
    _gguf("F16", 1e-4, "no loss, twice the size of Q8_0: a reference, and fast on some GPUs"),
    _gguf("BF16", 5e-3, "as F16 for models trained in bfloat16; slow where the chip lacks it"),
    _gguf("Q8_0", 0.02, "hardly any loss; take it when it fits", "gguf-q8"),
    _gguf("Q6_K", 0.05, "close to Q8_0 at three quarters of its size", "gguf-q6"),
    _gguf("Q5_K_M", 0.4, "a little better than Q4_K_M, a little larger", "gguf-q5"),
    _gguf("Q5_K_S", 0.4, "Q5_K_M without the extra bits on sensitive tensors"),
    _gguf("Q5_1", 0.4, "older 5-bit type with an offset; for rows that K-quants do not fit"),
    _gguf("Q5_0", 0.4, "older 5-bit type; for rows that K-quants do not fit"),
    _gguf("Q4_K_M", 0.6, "the usual choice: small, fast, little loss", "gguf-q4"),
    _gguf("Q4_K_S", 0.6, "Q4_K_M without the extra bits on sensitive tensors"),
    _gguf("IQ4_NL", 0.6, "4 bits on an uneven grid; good on rows that K-quants do not fit"),
    _gguf("IQ4_XS", 0.6, "the smallest good 4-bit type, slower on old processors"),
    _gguf("Q4_1", 0.8, "older 4-bit type with an offset; larger than Q4_0"),
    _gguf("Q4_0", 0.8, "the fastest 4-bit type on ARM processors, with more loss than Q4_K_M"),
    _gguf("Q3_K_L", 2.0, "3 bits with more on sensitive tensors; large models only"),
    _gguf("Q3_K_M", 2.0, "3 bits; large models only", "gguf-q3"),
    _gguf("Q3_K_S", 3.0, "3 bits throughout; a clear loss"),
    _gguf("IQ3_M", 2.0, "3.7 bits: better than Q3_K_M at its size, slower without a GPU"),
    _gguf("IQ3_S", 2.0, "3.4 bits: better than Q3_K_S at its size, slower without a GPU"),
    _gguf("IQ3_XS", 2.5, "3.3 bits, from an importance matrix", imatrix=True),
    _gguf("IQ3_XXS", 3.0, "3.1 bits, from an importance matrix", imatrix=True),
    _gguf("Q2_K", 4.0, "2 to 3 bits; a heavy loss on small models", "gguf-q2"),
    _gguf("Q2_K_S", 4.0, "2.5 bits, from an importance matrix", imatrix=True),
    _gguf("IQ2_M", 4.0, "2.7 bits, from an importance matrix", imatrix=True),
    _gguf("IQ2_S", 4.0, "2.5 bits, from an importance matrix", imatrix=True),
    _gguf("IQ2_XS", 4.0, "2.3 bits, from an importance matrix; large models only", imatrix=True),
    _gguf("IQ2_XXS", 4.0, "2.1 bits, from an importance matrix; large models only", imatrix=True),
    _gguf("IQ1_M", 6.0, "1.8 bits, from an importance matrix; huge models only", imatrix=True),
    _gguf("IQ1_S", 6.0, "1.6 bits, from an importance matrix; huge models only", imatrix=True),
)

F16 = TARGETS[0]
FITS_ALL = next(target for target in TARGETS if target.quantization == "IQ4_NL")
"""The best type of 4 bits for rows that are multiples of 32 but not of 256 (docs/LOG.md)."""

_WITHOUT_MATRIX = ("F16", "BF16", "Q8_0")


def uses_matrix(target: Target) -> bool:
    """Whether an importance matrix is made for it when there is calibration text: 6 bits and less.

    llama.cpp's types of 8 bits and more take none (docs/LOG.md has what each type gains).
    """
    return target.quantization not in _WITHOUT_MATRIX


def few_bits(target: Target) -> bool:
    """Whether its name promises 4 bits or less."""
    return uses_matrix(target) and not target.quantization.startswith(("Q5", "Q6"))
