"""What an ONNX folder would be, and what stands in its way, before any work."""

from __future__ import annotations

from typing import Any

from clp_edge.errors import ClpEdgeError, UnsupportedModelError, UsageError
from clp_edge.export.base import ExportPlan, Target
from clp_edge.export.onnx import builder, configs
from clp_edge.export.onnx.shapes import Shape, shapes, tokenizer_bytes
from clp_edge.export.onnx.targets import (
    BLOCK_SIZE,
    EXECUTION_PROVIDERS,
    OPTIMUM,
    RECIPES,
    Recipe,
)

_GRAPH_BYTES_PER_BLOCK = 12_000
_GRAPH_BYTES = 8_000
_SENSITIVE = ("q_proj", "k_proj", "v_proj", "qkv_proj", "down_proj")


def plan(
    config: Any,
    hf: Any,
    target: Target,
    *,
    blocks: int | None = None,
    provider: str = "cpu",
) -> ExportPlan:
    """The plan for this model with `blocks` blocks. Never raises for an unsupported thing: it
    lists it. Bytes are an estimate, right to some percent."""
    recipe = RECIPES[target.quantization]
    problems: list[ClpEdgeError] = []
    notes: list[str] = []
    try:
        problems += _builder_problems(config, recipe, provider)
    except ClpEdgeError as error:
        problems.append(error)
    problems += configs.problems(config)
    size, bits, floats, read = 0, 0.0, 0, 0
    if not problems:
        exact, parameters, floats, read = _tensor_bytes(config, recipe, blocks, provider)
        count = blocks or int(config.num_hidden_layers)
        tables = _rope_tables(config)
        size = exact + tables + _GRAPH_BYTES + _GRAPH_BYTES_PER_BLOCK * count + tokenizer_bytes(hf)
        bits = 8.0 * exact / parameters
        if tables > exact // 20:
            notes.append(
                f"{tables / 1e6:.0f} MB of the weights' file are tables of rotation angles for the "
                f"whole context of {config.max_position_embeddings} tokens"
            )
        if floats and recipe.precision.startswith("int"):
            notes.append(
                "the embedding stays in floats: the builder quantizes it only where it is tied"
            )
    return ExportPlan(target, size, bits, floats, tuple(problems), tuple(notes), read_bytes=read)


def architecture(config: Any) -> str:
    """The class of the causal model, as a saved folder's config.json names it.

    A config that was made from a GGUF file names none; the saved folder will.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = getattr(config, "architectures", None)
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    return str(named[0] if named else known or f"model type {config.model_type}")


def _builder_problems(config: Any, recipe: Recipe, provider: str) -> list[ClpEdgeError]:
    found: list[ClpEdgeError] = []
    if provider not in EXECUTION_PROVIDERS:
        cause = f"unknown execution provider {provider!r} (--ep)"
        return [UsageError(cause, f"take one of {', '.join(EXECUTION_PROVIDERS)}")]
    known = builder.installed()
    name = architecture(config)
    if name not in known.architectures:
        found.append(
            UnsupportedModelError(
                f"onnxruntime-genai {known.version} has no builder for {name}", OPTIMUM
            )
        )
    if (recipe.precision, provider) not in known.pairs:
        has = sorted(ep for kind, ep in known.pairs if kind == recipe.precision)
        usable = [ep for ep in has if ep in EXECUTION_PROVIDERS]
        other = f"--ep {' or '.join(usable)}, or " if usable else ""
        found.append(
            UsageError(
                f"onnxruntime-genai {known.version} writes no {recipe.precision} for {provider}",
                f"take {other}another target; {OPTIMUM.removeprefix('take ')} writes others",
            )
        )
    return found


def _tensor_bytes(
    config: Any, recipe: Recipe, blocks: int | None, provider: str
) -> tuple[int, int, int, int]:
    """(bytes, parameters, matrices that stay floats, bytes that a token reads), from the shapes of
    the model alone."""
    count = int(config.num_hidden_layers) if blocks is None else blocks
    quantized = recipe.precision.startswith("int")
    wide = 4 if provider == "cpu" or recipe.precision == "fp32" else 2
    zeros = "k_quant" in dict(recipe.options).get("algo_config", "")
    size = parameters = floats = read = 0
    for row in shapes(config, blocks):
        parameters += row.size
        if quantized and (row.is_product or row.is_head):
            kept = recipe.head_bits if row.is_head else _bits(recipe, row, count)
            weighs = _quantized_bytes(row, kept, wide, zeros=zeros)
        else:
            weighs = wide * row.size
            floats += row.columns > 1
        size += weighs
        read += weighs // row.rows if row.is_lookup else weighs
    return size, parameters, floats, read


def _bits(recipe: Recipe, row: Shape, count: int) -> int:
    """The bits of a block's matrix: the builder's mixed rule is llama.cpp's (base.py, 0.18)."""
    plain = int(recipe.precision.removeprefix("int"))
    i = row.block
    if not recipe.mixed_bits or i is None or not any(part in row.name for part in _SENSITIVE):
        return plain
    chosen = i < count / 8 or i >= 7 * count / 8 or (i - round(count / 8)) % 3 == 2
    return recipe.mixed_bits if chosen else plain


def _quantized_bytes(row: Shape, bits: int, wide: int, *, zeros: bool) -> int:
    groups = -(-row.columns // BLOCK_SIZE)
    size = row.rows * groups * (BLOCK_SIZE * bits // 8 + wide)
    return size + (row.rows * -(-groups * bits // 8) if zeros else 0)


def _rope_tables(config: Any) -> int:
    """cos and sin in float32 for every position; two pairs where local blocks have their own."""
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kinds = 2 if getattr(configs.adapted(config), "rope_local_base_freq", None) else 1
    return kinds * 4 * int(config.max_position_embeddings) * width
