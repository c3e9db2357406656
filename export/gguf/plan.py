"""What a GGUF file would be, to the byte, and what stands in its way, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

import clp_edge
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.export.base import DEFAULT_OPTIONS, ExportOptions, ExportPlan, Target
from clp_edge.export.gguf import families, tensor_types, tokenizer
from clp_edge.export.gguf.cuts import after_cut, with_blocks
from clp_edge.export.gguf.layout import Layout, layout_of
from clp_edge.export.gguf.layout import notes as layout_notes
from clp_edge.export.gguf.layout import problems as layout_problems
from clp_edge.export.gguf.mix import (
    Traits,
    needs_matrix,
    predict,
    stored_bytes,
    taken_for_70b,
    wanted,
)
from clp_edge.export.gguf.targets import FITS_ALL, few_bits, uses_matrix
from clp_edge.export.gguf.tokenizer import Entry
from clp_edge.export.gguf.writer import hyper_parameters, metadata_entries

_ALIGNMENT = 32
_HEAD_BYTES = 24
_WIDTHS = {
    GGUFValueType.BOOL: 1, GGUFValueType.UINT8: 1, GGUFValueType.INT8: 1,
    GGUFValueType.UINT16: 2, GGUFValueType.INT16: 2,
    GGUFValueType.UINT64: 8, GGUFValueType.INT64: 8, GGUFValueType.FLOAT64: 8,
}  # fmt: skip
_LISTED = 3
_MORE_BITS = 0.5


@dataclass(frozen=True)
class _Sizes:
    """What the tensors of a file come to."""

    stored: int
    """bytes of their numbers"""
    around: int
    """bytes of their lines in the list"""
    padding: int
    parameters: int
    fallback: tuple[str, ...]

    @property
    def bits(self) -> float:
        """per weight"""
        return 8.0 * self.stored / self.parameters


def traits_of(
    config: Any,
    target: Target,
    *,
    calibrated: bool,
    options: ExportOptions = DEFAULT_OPTIONS,
    layout: Layout | None = None,
) -> Traits:
    """What the types of this model's matrices depend on; `layout` None: our own writer's.

    Raises UsageError for options that do not fit the model or the target, and where a matrix would
    need calibration text that there is not.
    """
    blocks, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    layout = layout or _own(config)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    architecture = layout.architecture
    plain = Traits(
        blocks=blocks,
        grouped=heads // key_heads,
        tied=bool(config.tie_word_embeddings),
        matrix=calibrated and uses_matrix(target),
        large=taken_for_70b(architecture, blocks, heads, key_heads),
    )
    widths = {row.gguf_name: row.shape[-1] for row in layout.tensors(config) if len(row.shape) > 1}
    given = tensor_types.assign(options, target, widths, plain)
    if calibrated and any(needs_matrix(kind) for _, kind in given):
        plain = replace(plain, matrix=True)
        given = tensor_types.assign(options, target, widths, plain)
    if not calibrated:
        starved = next((name for name, kind in given if needs_matrix(kind)), None)
        if target.needs_importance_matrix or starved:
            raise UsageError(
                f"{starved or target.name} needs an importance matrix, and there is no "
                "calibration text to make one from",
                "give text with --calibration, or take a type such as gguf-q3_k_m",
            )
    return replace(plain, types=given)


def plan(
    config: Any,
    hf: Any,
    target: Target,
    *,
    tokenizer_gguf: Path | None = None,
    blocks: int | None = None,
    dropped: Iterable[int] | None = None,
    metadata: Mapping[str, Any] | None = None,
    calibrated: bool = False,
    options: ExportOptions = DEFAULT_OPTIONS,
) -> ExportPlan:
    """The plan for this model without the blocks `dropped`, or, where it is not known yet which
    ones go, with `blocks` of them. Never raises for an unsupported thing: it lists it.

    Bytes are exact where the file's `metadata` is given; its keys are missing from the sum where it
    is not. See `clp_edge.export.base.Format.plan`.
    """
    problems: list[ClpEdgeError] = []
    notes: list[str] = []
    layout: Layout | None = None
    try:
        layout = layout_of(config, hf, options)
        problems += layout_problems(config, layout)
    except ClpEdgeError as error:
        problems.append(error)
    known = not problems
    entries: list[Entry] = []
    ours = layout is None or layout.peer is None
    try:
        # the other converter has shown already that it can write this tokenizer
        entries = tokenizer.gguf_entries(config, hf, tokenizer_gguf) if ours else []
        notes += [] if tokenizer_gguf or not ours else tokenizer.notes(hf)
    except ClpEdgeError as error:
        problems.append(error)
    size, bits = 0, 0.0
    fallback: tuple[str, ...] = ()
    if known and layout is not None:
        changed = with_blocks(config, blocks) if dropped is None else after_cut(config, dropped)
        problems += layout_problems(changed, layout)
        notes += layout_notes(changed, layout)
        try:
            of = traits_of(changed, target, calibrated=calibrated, options=options, layout=layout)
            sizes = _sizes(changed, target, of, layout)
            fallback = sizes.fallback
            bits = sizes.bits
            entries += general_entries(layout.architecture)
            entries += hyper_parameters(changed) if ours else _vocabulary_entries(hf)
            entries += metadata_entries({"version": clp_edge.__version__, **(metadata or {})})
            head = _HEAD_BYTES + sizes.around + sum(_entry_bytes(entry) for entry in entries)
            size = sizes.stored + sizes.padding + head + -head % _ALIGNMENT
            notes += _advice(changed, target, of, sizes, layout)
        except ClpEdgeError as error:
            problems.append(error)
    by = layout.converter if layout is not None else ""
    return ExportPlan(target, size, bits, len(fallback), tuple(problems), tuple(notes), by)


def _own(config: Any) -> Layout:
    """Our own writer's layout of this config."""
    return Layout(families.family_of(config).architecture)


def _vocabulary_entries(hf: Any) -> list[Entry]:
    """About what a vocabulary takes that another converter writes: tokens and their types."""
    tokens = list(hf.get_vocab())
    string, array = GGUFValueType.STRING, GGUFValueType.ARRAY
    return [
        Entry("tokenizer.ggml.tokens", tokens, array, string),
        Entry("tokenizer.ggml.token_type", [0] * len(tokens), array, GGUFValueType.INT32),
    ]


def general_entries(architecture: str) -> list[Entry]:
    """The keys that every file begins with."""
    return [
        Entry("general.architecture", architecture, GGUFValueType.STRING),
        Entry("general.type", "model", GGUFValueType.STRING),
        Entry("general.file_type", 0, GGUFValueType.UINT32),
        Entry("general.quantization_version", 0, GGUFValueType.UINT32),
    ]


def _advice(config: Any, target: Target, of: Traits, sizes: _Sizes, layout: Layout) -> list[str]:
    """How many matrices fell back, which, and a type that fits where most of them did."""
    fallback = sizes.fallback
    if not fallback:
        return []
    more = f" and {len(fallback) - _LISTED} more" if len(fallback) > _LISTED else ""
    found = [
        f"{len(fallback)} matrices have rows that {target.quantization} does not fit and take "
        f"another type, {sizes.bits:.2f} bits per weight in all: "
        f"{', '.join(fallback[:_LISTED])}{more}"
    ]
    matrices = sum(len(row.shape) > 1 for row in layout.tensors(config))
    if few_bits(target) and 2 * len(fallback) > matrices and not of.types:
        fitting = _sizes(config, FITS_ALL, of, layout)
        if fitting.stored < sizes.stored:
            # measured on the demo model: docs/LOG.md, types of few bits
            loss = "more" if sizes.bits > fitting.bits + _MORE_BITS else "no more"
            found.append(
                f"{target.name} is {sizes.bits:.1f} bits on this model: {FITS_ALL.name} fits its "
                f"rows, {fitting.stored / 1e6:.1f} MB instead of {sizes.stored / 1e6:.1f} MB "
                f"({fitting.bits:.2f} bits per weight), with {loss} loss"
            )
    return found


def _sizes(config: Any, target: Target, of: Traits, layout: Layout) -> _Sizes:
    stored = around = padding = parameters = 0
    fallback = []
    for row in layout.tensors(config):
        kind = "F32"
        if len(row.shape) > 1:
            kind = predict(target.quantization, row.gguf_name, row.shape[-1], of)
            if kind != wanted(target.quantization, row.gguf_name, row.shape[-1], of):
                fallback.append(row.gguf_name)
        one = stored_bytes(kind, row.elements)
        stored += one
        padding += -one % _ALIGNMENT
        around += _line_bytes(row.gguf_name, len(row.shape))
        parameters += row.elements
    for name, factors in layout.computed(config).items():
        stored += factors.nbytes
        padding += -factors.nbytes % _ALIGNMENT
        around += _line_bytes(name, factors.ndim)
        parameters += factors.size
    return _Sizes(stored, around, padding, parameters, tuple(fallback))


def _line_bytes(name: str, dimensions: int) -> int:
    """A tensor's line in the list: name, number of dimensions, each of them, type, offset."""
    return 8 + len(name.encode()) + 4 + 8 * dimensions + 4 + 8


def _entry_bytes(entry: Entry) -> int:
    """The room a metadata key takes: strings carry an 8-byte length, numbers their width."""
    head = 8 + len(entry.key.encode()) + 4
    if entry.kind != GGUFValueType.ARRAY:
        return head + _value_bytes(entry.value, entry.kind)
    kind = entry.sub_kind
    if kind is None:
        kind = GGUFValueType.get_type(entry.value[0])
    return head + 12 + sum(_value_bytes(value, kind) for value in entry.value)


def _value_bytes(value: Any, kind: GGUFValueType) -> int:
    if kind != GGUFValueType.STRING:
        return _WIDTHS.get(kind, 4)
    return 8 + len(value.encode() if isinstance(value, str) else value)
