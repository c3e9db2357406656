"""A GGUF file as a source: its configuration, tokenizer and weights, in transformers' terms.

transformers reads the configuration and the weights (`gguf_file=`). What it gets wrong or drops in
silence is done or refused here: the pre-tokenizer of a byte-level BPE vocabulary (it always takes
GPT-2's, so the digits of `pre = smollm` come out wrong), rope scaling, and tensors that it has no
name for. The pre-tokenizers below are those of the models' own tokenizer.json files and of
llama.cpp's table of `tokenizer.ggml.pre` names.

>>> gguf_tokenizer(read_header(path)).tokenize("a1b22")                     # doctest: +SKIP
['a', '1', 'b', '2', '2']
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.models.gguf_header import GgufHeader, write_trimmed

TRIM_COPY_LIMIT = 1 << 30
"""Files up to this many bytes are copied without their vocabulary before transformers reads."""

# transformers' own spelling where it is not the one of the file
ALIASES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss"}
ROPE_TENSORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before the byte-pair merges, for one `tokenizer.ggml.pre` name."""

    split: str | None = None
    """A regular expression; None takes GPT-2's, which `tokenizers` has built in."""
    digits: bool = False
    """Every digit is a piece of its own, before anything else."""
    nfc: bool = False
    ignore_merges: bool = False
    """A piece that is a token as it stands is taken whole."""
    add_bos: bool = False
    """What llama.cpp does where the file has no `add_bos_token`."""


LLAMA3 = PreTokenizer(split=LLAMA3_SPLIT, ignore_merges=True, add_bos=True)
QWEN2 = PreTokenizer(split=QWEN2_SPLIT, nfc=True)
PRE_TOKENIZERS = {
    "smollm": PreTokenizer(digits=True),
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "gpt-2": PreTokenizer(),
}


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


def gguf_tokenizer(header: GgufHeader) -> PreTrainedTokenizerFast:
    """The file's tokenizer as a clean fast tokenizer, whose ids are those of llama.cpp."""
    kind = header.value("tokenizer.ggml.model")
    if kind == "gpt2":
        pre, backend = _byte_level_bpe(header)
        adds_bos = bool(header.value("tokenizer.ggml.add_bos_token", pre.add_bos))
    elif kind == "llama":
        # SentencePiece: transformers' reading is right; only its wrapping is not (PITFALLS 13)
        loaded = AutoTokenizer.from_pretrained(str(header.path.parent), gguf_file=header.path.name)
        backend = loaded.backend_tokenizer
        adds_bos = bool(header.value("tokenizer.ggml.add_bos_token", True))
    else:
        raise UnsupportedModelError(
            f"{header.path.name} has a tokenizer of the kind {kind!r}; 'gpt2' (byte-level BPE) "
            "and 'llama' (SentencePiece) are known",
            "give the model's Hugging Face folder instead",
        )
    names = _special_names(header)
    bos = names.get("bos_token")
    if adds_bos and bos is not None:
        backend.post_processor = TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", bos, "$B:1"],
            special_tokens=[(bos, header.value("tokenizer.ggml.bos_token_id"))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=int(header.own("context_length", 1 << 30)),
        **names,
    )
    tokenizer.chat_template = header.value("tokenizer.chat_template")
    return tokenizer


def _byte_level_bpe(header: GgufHeader) -> tuple[PreTokenizer, Tokenizer]:
    name = header.value("tokenizer.ggml.pre", "default")
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        raise UnsupportedModelError(
            f"the pre-tokenizer {name!r} of {header.path.name} is not known "
            f"({', '.join(PRE_TOKENIZERS)} are)",
            "give the model's Hugging Face folder instead",
        )
    tokens = header.value("tokenizer.ggml.tokens", [])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UnsupportedModelError(
            f"the vocabulary of {header.path.name} names {len(tokens) - len(vocabulary)} tokens "
            "twice",
            "give the model's Hugging Face folder instead",
        )
    merges = []
    for merge in header.value("tokenizer.ggml.merges", []):
        cut = merge.index(" ", 1)
        merges.append((merge[:cut], merge[cut + 1 :]))
    try:
        model = BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.ignore_merges)
    except Exception as error:  # `tokenizers` raises bare Exception for a merge out of vocabulary
        raise ClpEdgeError(
            f"the merges of {header.path.name} do not fit its vocabulary ({error})",
            "download the file again",
        ) from error
    backend = Tokenizer(model)
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None)
    first: list[Any] = []
    if pre.digits:
        first.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.split is not None:
        first.append(pre_tokenizers.Split(Regex(pre.split), behavior="isolated", invert=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level]) if first else byte_level
    backend.decoder = decoders.ByteLevel()
    _add_special_tokens(backend, header, tokens)
    return pre, backend


def _add_special_tokens(backend: Tokenizer, header: GgufHeader, tokens: list[str]) -> None:
    """Control and user-defined tokens are found in the text before it is cut, as llama.cpp does."""
    kinds = header.value("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    added = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
    ]
    # in one call, so that ids keep their order; the flag of each token says what it is
    backend.add_tokens(added)


def _special_names(header: GgufHeader) -> dict[str, str]:
    tokens = header.value("tokenizer.ggml.tokens", [])
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = header.value(f"tokenizer.ggml.{key}_token_id")
        if index is not None and 0 <= index < len(tokens):
            found[f"{name}_token"] = tokens[index]
    return found


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


def _check_all_read(header: GgufHeader, model: Any) -> None:
    """transformers skips tensors it has no name for: count the numbers on both sides."""
    in_file = {t.name: t.elements for t in header.tensors if not t.name.startswith(ROPE_TENSORS)}
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    expected = sum(distinct.values())
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
