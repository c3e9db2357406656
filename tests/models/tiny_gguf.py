"""A tiny GGUF file of the Llama architecture with a byte-level tokenizer, written by `gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_model

TEXT = [
    "the model reads the text and the text is long enough for a few merges",
    "numbers such as 12, 34 and 2024; words such as model, models, modelling",
    "Le café est fermé; 中文 and emoji too",
] * 4
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def byte_level_tokenizer(vocabulary: int = 320) -> PreTrainedTokenizerFast:
    """A tokenizer of the SmolLM kind: digits one by one, then GPT-2's rule; no BOS."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    assert backend.get_vocab_size() == vocabulary
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(**changes: Any) -> Any:
    """Two blocks of hidden size 256, vocabulary 320, tied embeddings."""
    return tiny_model("llama", blocks=2, tie_word_embeddings=True, **changes)


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The row order in which GGUF stores q and k of the NORM rope kind (PITFALLS 12)."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    *,
    pre: str = "smollm",
    architecture: str = "llama",
    quantize: GGMLQuantizationType | None = None,
    keys: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write the file; no tokenizer means a SentencePiece one; `keys`, `tensors` are added."""
    config = model.config
    writer = GGUFWriter(str(path), architecture)
    writer.add_name("Tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    if tokenizer is None:
        _add_sentencepiece(writer)
    else:
        _add_tokenizer(writer, tokenizer, pre)
    for name, value in (keys or {}).items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_string(name, value)
    state = model.state_dict()
    for name, tensor in state.items():
        gguf_name = _gguf_name(name)
        if gguf_name is None:
            continue
        if ".q_proj." in name:
            tensor = permuted(tensor, config.num_attention_heads)
        if ".k_proj." in name:
            tensor = permuted(tensor, config.num_key_value_heads)
        array = tensor.float().contiguous().numpy()
        if quantize is not None and array.ndim == 2:
            writer.add_tensor(gguf_name, quants.quantize(array, quantize), raw_dtype=quantize)
        else:
            writer.add_tensor(gguf_name, array)
    for name, extra in (tensors or {}).items():
        writer.add_tensor(name, extra)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any, pre: str) -> None:
    import json

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)


PIECES = "▁ t h e a o ▁t ▁a he ▁the in i n ▁in s ▁s on r er l d ▁▁ c k x 1 2".split()  # noqa: SIM905


def _add_sentencepiece(writer: GGUFWriter) -> None:
    """Three specials, 256 bytes, 27 scored pieces from id 259, a chat marker, unused ids to 320."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *PIECES, "<|user|>"]
    types = [2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [4]
    scores = [0.0] * 259 + [-float(i) for i in range(len(PIECES))] + [0.0]
    while len(tokens) < 320:
        tokens.append(f"<pad{len(tokens)}>")
        types.append(5)
        scores.append(-1000.0)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _gguf_name(name: str) -> str | None:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if not name.startswith("model.layers."):
        return None
    _, _, block, rest = name.split(".", 3)
    part, suffix = rest.rsplit(".", 1)
    return f"blk.{block}.{NAMES[part]}.{suffix}"
