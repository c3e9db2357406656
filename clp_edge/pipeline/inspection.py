"""What a model is made of and what each target would cost, without reading its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import clp_edge.export as export
from clp_edge.export.targets import resolve
from clp_edge.models.anatomy import family_of
from clp_edge.models.source import (
    load_config,
    load_tokenizer,
    locate,
    source_warnings,
    stored_dtype,
    tokenizer_gguf,
)
from clp_edge.pipeline.preflight import parameter_counts

DEFAULT_TARGETS = ("gguf-f16", "gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "gguf-q4_0")


@dataclass(frozen=True)
class Inspection:
    """Rows for people: (part, value), and (target, size, bits per weight, note)."""

    name: str
    facts: list[tuple[str, str]]
    costs: list[tuple[str, str, str, str]]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        keys = ("target", "size", "bits_per_weight", "note")
        return {
            "name": self.name,
            "facts": dict(self.facts),
            "targets": [dict(zip(keys, row, strict=True)) for row in self.costs],
            "warnings": list(self.warnings),
        }


def inspect_model(spec: str | None, targets: tuple[str, ...] = ()) -> Inspection:
    """Look at a model. Raises ClpEdgeError where there is none or it cannot be cut."""
    chosen = [resolve(name) for name in targets or DEFAULT_TARGETS]
    source = locate(spec)
    config = load_config(source)
    family = family_of(config)
    tokenizer = load_tokenizer(source)
    total, block = parameter_counts(config)
    kinds = list(getattr(config, "layer_types", None) or ())
    facts = [
        ("source", f"{source.kind}: {source.spec or source.name}"),
        ("architecture", family.model_type),
        ("blocks", str(config.num_hidden_layers)),
        ("hidden size", str(config.hidden_size)),
        ("MLP size", str(getattr(config, "intermediate_size", None) or "not said")),
        (
            "heads",
            f"{config.num_attention_heads}, "
            f"{getattr(config, 'num_key_value_heads', None) or 'as many'} for keys and values",
        ),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("context", f"{getattr(config, 'max_position_embeddings', 0) or 0:,} tokens"),
        ("tied embeddings", "yes" if config.tie_word_embeddings else "no"),
        ("parameters", f"{total:,}"),
        ("one block", f"{block:,} parameters ({100 * block / total:.2f} %)"),
        ("stored as", str(stored_dtype(source)).removeprefix("torch.")),
        ("anatomy", "found by a look at its code, and proved" if family.found else "known by name"),
        ("closed-form refit", f"no: {family.no_refit}" if family.no_refit else "yes"),
    ]
    if len(set(kinds)) > 1:
        facts.append(
            ("block kinds", ", ".join(f"{kinds.count(k)} {k}" for k in sorted(set(kinds))))
        )
    costs = []
    for target in chosen:
        plan = export.plan(config, tokenizer, target, tokenizer_gguf=tokenizer_gguf(source))
        problem = "; ".join(str(p) for p in plan.problems)
        fell = f"{plan.fallback_tensors} tensors fall back" if plan.fallback_tensors else ""
        costs.append(
            (
                target.name,
                "-" if problem else f"{plan.predicted_bytes / 1e6:.1f} MB",
                "-" if problem else f"{plan.bits_per_weight:.2f}",
                problem or fell,
            )
        )
    return Inspection(source.name, facts, costs, source_warnings(source))
