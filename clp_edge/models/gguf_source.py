"""A GGUF file as a source: its configuration and its weights, in transformers' terms.

transformers reads both (`gguf_file=`). What it drops in silence is kept or refused here: rope
scaling, and tensors that it has no name for. The tokenizer is built in gguf_tokenizer.py.

>>> from clp_edge.models.gguf_header import read_header
>>> gguf_config(read_header(path)).num_hidden_layers                        # doctest: +SKIP
30
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.models.gguf_header import GgufHeader, write_trimmed

TRIM_COPY_LIMIT = 1 << 30
"""Files up to this many bytes are copied without their vocabulary before transformers reads."""

# transformers' own spelling where it is not the one of the file
ALIASES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss"}
ROPE_TENSORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")


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
    if ALIASES.get(name, name) not in GGUF_SUPPORTED_ARCHITECTURES:
        raise UnsupportedModelError(
            f"transformers cannot read GGUF files of the architecture {name!r}",
            "give the model's Hugging Face folder instead",
        )
    if name == "llama" and int(header.own("expert_count", 0)) > 0:
        raise UnsupportedModelError(
            f"{header.path.name} is a mixture of experts, which transformers cannot read from GGUF",
            "give the model's Hugging Face folder instead",
        )
    _rope_scaling(header)


def gguf_config(header: GgufHeader) -> Any:
    """The model's configuration, with rope scaling and the end-of-text ids, without weights."""
    with tempfile.TemporaryDirectory(prefix="clp-edge-") as folder:
        trimmed = Path(folder) / "model.gguf"
        write_trimmed(header, trimmed, with_data=False)
        config = AutoConfig.from_pretrained(folder, gguf_file=trimmed.name)
    if header.own("vocab_size") is None:
        config.vocab_size = len(header.value("tokenizer.ggml.tokens", ()))
    scaling = _rope_scaling(header)
    if scaling is not None:
        theta = float(header.own("rope.freq_base", 10_000.0))
        if hasattr(config, "rope_parameters"):  # transformers 5
            config.rope_parameters = {**scaling, "rope_theta": theta}
        else:
            config.rope_scaling = scaling
    for key, gguf_key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        setattr(config, f"{key}_token_id", header.value(f"tokenizer.ggml.{gguf_key}_token_id"))
    for leftover in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    return config


def gguf_model(header: GgufHeader, config: Any, dtype: torch.dtype) -> Any:
    """Dequantize the weights into a model of that dtype; (model, loading report)."""
    with _quiet_tqdm(), tempfile.TemporaryDirectory(prefix="clp-edge-") as folder:
        path = header.path
        if path.stat().st_size <= TRIM_COPY_LIMIT:
            path = Path(folder) / "model.gguf"
            write_trimmed(header, path, with_data=True)
        model, report = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            config=copy.deepcopy(config),
            dtype=dtype,
            output_loading_info=True,
        )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for leftover in ("is_quantized", "quantization_method", "hf_quantizer"):
        if leftover in vars(model):
            delattr(model, leftover)
    _check_all_read(header, model)
    ends = [header.value(f"tokenizer.ggml.{n}_token_id") for n in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(i for i in ends if i is not None))
    if unique and model.generation_config is not None:
        model.generation_config.eos_token_id = unique if len(unique) > 1 else unique[0]
    return model, report


def bits_per_weight(header: GgufHeader) -> float:
    """Stored bits per number over the matrices (vectors are always kept in full)."""
    matrices = [t for t in header.tensors if len(t.shape) > 1 and min(t.shape) > 1]
    return 8.0 * sum(t.bytes for t in matrices) / max(1, sum(t.elements for t in matrices))


def _rope_scaling(header: GgufHeader) -> dict[str, Any] | None:
    """The rope scaling that transformers' loader drops, or None; refused where it is not known."""
    if header.architecture in ("gpt-oss", "gpt_oss"):  # the one that it does read
        return None
    kind = header.own("rope.scaling.type", "none")
    tensors = {t.name: t for t in header.tensors if t.name.startswith(ROPE_TENSORS)}
    factor = header.own("rope.scaling.factor")
    if "rope_freqs.weight" in tensors and len(tensors) == 1:
        return _llama3_scaling(header)
    if not tensors and kind in ("none", "", None):
        return None
    if not tensors and kind == "linear" and factor:
        return {"rope_type": "linear", "factor": float(factor)}
    original = header.own("rope.scaling.original_context_length")
    if not tensors and kind == "yarn" and factor and original:
        return {
            "rope_type": "yarn",
            "factor": float(factor),
            "original_max_position_embeddings": int(original),
        }
    raise UnsupportedModelError(
        f"the rope scaling of {header.path.name} ({kind}, tensors {sorted(tensors) or 'none'}) "
        "cannot be read from GGUF",
        "give the model's Hugging Face folder instead",
    )


def _llama3_scaling(header: GgufHeader) -> dict[str, Any]:
    """Find the Llama 3 scaling whose frequency factors are those that the file stores."""
    info = next(t for t in header.tensors if t.name == "rope_freqs.weight")
    with header.path.open("rb") as file:
        file.seek(header.data_start + info.offset)
        stored = torch.frombuffer(bytearray(file.read(info.bytes)), dtype=torch.float32)
    theta = float(header.own("rope.freq_base", 10_000.0))
    for factor in sorted({8.0, 16.0, 32.0, float(stored.max())}):
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        expected = llama3_factors(stored.numel(), theta, factor)
        if torch.allclose(stored, expected, rtol=1e-3, atol=1e-3):
            return scaling
    raise UnsupportedModelError(
        f"the rope frequencies of {header.path.name} are not those of a known Llama 3 scaling",
        "give the model's Hugging Face folder instead",
    )


def llama3_factors(pairs: int, theta: float, factor: float) -> torch.Tensor:
    """What Llama 3 divides each rope frequency by: 1 (fast), `factor` (slow), a blend between."""
    frequency = theta ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    turns = 8192 * frequency / (2 * math.pi)  # rotations within the original context
    blend = ((turns - 1.0) / (4.0 - 1.0)).clamp(0.0, 1.0)
    return (1.0 / ((1.0 - blend) / factor + blend)).float()


def check_size(header: GgufHeader, config: Any) -> None:
    """Compare the numbers that the file's header lists with those of the config's model.

    Raises UnsupportedModelError as `gguf_model` does, before any weight is read.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    distinct = {id(t): t.numel() for t in model.state_dict(keep_vars=True).values()}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if config.tie_word_embeddings and head.weight is not embedding.weight:
        distinct.pop(id(head.weight), None)
    _check_numbers(header, sum(distinct.values()))


def _check_all_read(header: GgufHeader, model: Any) -> None:
    """transformers skips tensors it has no name for: count the numbers on both sides."""
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    _check_numbers(header, sum(distinct.values()))


def _check_numbers(header: GgufHeader, expected: int) -> None:
    in_file = {t.name: t.elements for t in header.tensors if not t.name.startswith(ROPE_TENSORS)}
    found = sum(in_file.values())
    if found not in (expected, expected + in_file.get("output.weight", 0)):
        raise UnsupportedModelError(
            f"{header.path.name} holds {found} numbers and the model {expected}: transformers "
            "does not read all of its tensors",
            "give the model's Hugging Face folder instead",
        )


@contextlib.contextmanager
def _quiet_tqdm() -> Iterator[None]:
    """transformers' GGUF loader draws its own bar, which its progress switch does not reach."""
    import transformers.modeling_gguf_pytorch_utils as loader

    shown = loader.tqdm
    loader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        loader.tqdm = shown
