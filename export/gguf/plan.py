"""What a GGUF file would be, and what stands in its way, before any work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.export.base import ExportPlan, Target
from clp_edge.export.gguf import families, tokenizer
from clp_edge.export.gguf.cuts import after_cut, with_blocks
from clp_edge.export.gguf.mix import predict, stored_bytes, wanted
from clp_edge.export.gguf.tokenizer import Entry
from clp_edge.export.gguf.writer import hyper_parameters

_ALIGNMENT = 32
_SCALAR_BYTES = 4
_OTHER_BYTES = 400
"""The head of the file and the general.* and clp_edge.* keys, about."""


def plan(
    config: Any,
    hf: Any,
    target: Target,
    *,
    tokenizer_gguf: Path | None = None,
    blocks: int | None = None,
    dropped: Iterable[int] | None = None,
) -> ExportPlan:
    """The plan for this model without the blocks `dropped`, or, where it is not known yet which
    ones go, with `blocks` of them. Never raises for an unsupported thing: it
    lists it. Bytes are right to some hundred bytes of metadata for types without a mix, such as
    F16 and Q8_0, and an estimate for the mixes, where the quantizer decides."""
    problems: list[ClpEdgeError] = []
    notes: list[str] = []
    if target.needs_importance_matrix:
        problems.append(UsageError(f"{target.name} needs an importance matrix, not made yet"))
    problems += families.problems(config)
    known = not problems
    entries: list[Entry] = []
    try:
        entries = tokenizer.gguf_entries(config, hf, tokenizer_gguf)
        notes += [] if tokenizer_gguf else tokenizer.notes(hf)
    except ClpEdgeError as error:
        problems.append(error)
    size, bits, fallback = 0, 0.0, 0
    if known:
        changed = with_blocks(config, blocks) if dropped is None else after_cut(config, dropped)
        problems += families.problems(changed)
        notes += families.notes(changed)
        try:
            exact, padding, parameters, fallback = _tensor_bytes(changed, target)
            bits = 8.0 * exact / parameters
            entries += hyper_parameters(changed)
            size = exact + padding + sum(_entry_bytes(entry) for entry in entries) + _OTHER_BYTES
        except ClpEdgeError as error:
            problems.append(error)
    if fallback:
        notes.append(
            f"{fallback} matrices have rows that {target.quantization} does not fit and take "
            f"another type: about {bits:.2f} bits per weight"
        )
    return ExportPlan(target, size, bits, fallback, tuple(problems), tuple(notes))


def _tensor_bytes(config: Any, target: Target) -> tuple[int, int, int, int]:
    """(bytes, bytes around the tensors, parameters, matrices that fall back)."""
    grouped = int(config.num_attention_heads) // int(config.num_key_value_heads)
    size = padding = parameters = fallback = 0
    for row in families.tensors(config):
        kind = "F32"
        if len(row.shape) > 1:
            tied, width = bool(config.tie_word_embeddings), row.shape[-1]
            of: dict[str, Any] = {
                "blocks": int(config.num_hidden_layers),
                "grouped": grouped,
                "tied": tied,
            }
            kind = predict(target.quantization, row.gguf_name, width, **of)
            fallback += kind != wanted(target.quantization, row.gguf_name, width, **of)
        one = stored_bytes(kind, row.elements)
        size += one
        padding += -one % _ALIGNMENT
        padding += 24 + len(row.gguf_name) + 8 * len(row.shape)  # its line in the tensor list
        parameters += row.elements
    for factors in families.computed_tensors(config).values():
        size += factors.nbytes
        padding += -factors.nbytes % _ALIGNMENT
        parameters += factors.size
    return size, padding, parameters, fallback


def _entry_bytes(entry: Entry) -> int:
    """The room a metadata key takes: strings carry an 8-byte length, numbers their width."""
    head = 8 + len(entry.key) + 4
    if entry.kind == GGUFValueType.ARRAY:
        strings = entry.sub_kind == GGUFValueType.STRING
        width = 1 if entry.sub_kind == GGUFValueType.BOOL else _SCALAR_BYTES
        plain = width * len(entry.value)
        body = sum(8 + len(v.encode()) for v in entry.value) if strings else plain
        return head + 12 + body
    return head + (8 + len(entry.value.encode()) if isinstance(entry.value, str) else _SCALAR_BYTES)
