"""A GGUF file's configuration in transformers' terms; refused here is what cannot be read.

transformers reads the keys (`gguf_file=`). What it drops in silence is kept or refused here: rope
scaling, the width of a head, which blocks are local, the attention scale. The weights are read in
weights.py, the tokenizer in tokenizer.py.

>>> from clp_edge.gguf_file.header import read_header
>>> gguf_config(read_header(path)).num_hidden_layers                        # doctest: +SKIP
30
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.gguf_file.contents import Contents
from clp_edge.gguf_file.family_table import FAMILIES
from clp_edge.gguf_file.header import GgufHeader, write_sparse
from clp_edge.gguf_file.rope import head_dim, scaling_of
from clp_edge.gguf_file.tensors import family_of


def check_architecture(header: GgufHeader) -> None:
    """Refuse what transformers cannot read from GGUF, and what it would read wrong in silence."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    name = header.architecture
    if int(header.value("split.count", 0)) > 1:
        raise ClpEdgeError(
            f"{header.path.name} is one part of a split GGUF file",
            "join the parts with `llama-gguf-split --merge FIRST_PART WHOLE.gguf`",
        )
    if not name or not header.tensors:
        raise ClpEdgeError(
            f"{header.path.name} holds no model (it has {len(header.tensors)} tensors)",
            "give a GGUF file with weights",
        )
    known = {row.architecture for row in FAMILIES.values()} & set(GGUF_SUPPORTED_ARCHITECTURES)
    if name not in known:
        raise UnsupportedModelError(
            f"GGUF files of the architecture {name!r} cannot be read "
            f"({', '.join(sorted(known))} can)",
            "give the model's Hugging Face folder instead",
        )
    if name == "llama" and int(header.own("expert_count", 0)) > 0:
        raise UnsupportedModelError(
            f"{header.path.name} is a mixture of experts, which cannot be read from GGUF",
            "give the model's Hugging Face folder instead",
        )
    scaling_of(Contents(header.path))


def gguf_config(header: GgufHeader) -> Any:
    """The model's configuration, with rope scaling and the end-of-text ids, without weights."""
    with tempfile.TemporaryDirectory(prefix="clp-edge-") as folder:
        trimmed = Path(folder) / "model.gguf"
        write_sparse(header, trimmed)
        config = AutoConfig.from_pretrained(folder, gguf_file=trimmed.name)
    if header.own("vocab_size") is None:
        config.vocab_size = len(header.value("tokenizer.ggml.tokens", ()))
    _keep_attention(header, config)
    _keep_rope(header, config)
    for key, gguf_key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        setattr(config, f"{key}_token_id", header.value(f"tokenizer.ggml.{gguf_key}_token_id"))
    for leftover in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    return config


def _keep_attention(header: GgufHeader, config: Any) -> None:
    """What transformers leaves at its defaults: the width of a head, local blocks, soft caps.

    The attention scale is the one that llama.cpp takes: our files hold what it lacks in q.
    """
    if (width := header.own("attention.key_length")) is not None and hasattr(config, "head_dim"):
        config.head_dim = int(width)
    family = family_of(config)
    pattern = header.own("attention.sliding_window_pattern")
    if family.windows and isinstance(pattern, list):
        kinds = ("full_attention", "sliding_attention")
        config.layer_types = [kinds[int(local)] for local in pattern]
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := header.own(name)) is not None and hasattr(config, name):
            setattr(config, name, float(cap))
    for change in family.changes:
        if change.scale is not None:
            taken = config.query_pre_attn_scalar * change.scale(config) ** 2
            config.query_pre_attn_scalar = round(taken)


def _keep_rope(header: GgufHeader, config: Any) -> None:
    """The scaling and the share of a head that is rotated, which transformers drops, and the base
    of blocks with a window."""
    found = scaling_of(Contents(header.path))
    local = header.own("rope.freq_base_swa")
    share = int(header.own("rope.dimension_count", head_dim(config))) / head_dim(config)
    if found is not None and hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = found.get("original_max_position_embeddings")
    both = getattr(config, "rope_parameters", None)
    if both is None:  # transformers 4
        if found is not None:
            config.rope_scaling = found
        if share != 1.0:
            config.partial_rotary_factor = share
        if local is not None and hasattr(config, "rope_local_base_freq"):
            config.rope_local_base_freq = float(local)
        return
    per_kind = isinstance(both.get("full_attention"), dict)
    whole = both["full_attention"] if per_kind else both
    whole = {**whole, **(found or {}), "rope_theta": float(header.own("rope.freq_base", 1e4))}
    if share != 1.0:
        whole["partial_rotary_factor"] = share
    if not per_kind:
        config.rope_parameters = whole
        return
    sliding = both["sliding_attention"]
    if local is not None:
        sliding = {**sliding, "rope_theta": float(local)}
    config.rope_parameters = {"full_attention": whole, "sliding_attention": sliding}


def bits_per_weight(header: GgufHeader) -> float:
    """Stored bits per number over the matrices (vectors are always kept in full)."""
    matrices = [t for t in header.tensors if len(t.shape) > 1 and min(t.shape) > 1]
    return 8.0 * sum(t.bytes for t in matrices) / max(1, sum(t.elements for t in matrices))
