"""Tiny Llama folders with byte-level tokenizers of each known kind, for the export tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.gguf.writer import write_f16
from clp_edge.export.reference_text import HARD_TEXTS, TEXT
from tests.tiny import tiny_model

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = SPLIT.replace("DIGITS", "{1,3}")
QWEN2_SPLIT = SPLIT.replace("DIGITS", "")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|done|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|done|>"]

# kind -> (normalizer, steps before the bytes, GPT-2's pattern inside ByteLevel, ignore_merges)
KINDS: dict[str, tuple[Any, list[Any], bool, bool]] = {
    "smollm": (None, [pre_tokenizers.Digits(individual_digits=True)], True, False),
    "gpt-2": (None, [], True, False),
    "llama-bpe": (None, [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")], False, True),
    "smaug-bpe": (None, [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")], False, False),
    "qwen2": (
        normalizers.NFC(),
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")],
        False,
        False,
    ),
}


def tiny_tokenizer(kind: str, *, adds_bos: bool = False, chat: bool = True) -> Any:
    """A byte-level BPE of that kind, trained on hard texts and numbers, so that cuts matter."""
    normalizer, before, gpt2, ignore_merges = KINDS[kind]
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        backend.normalizer = normalizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    numbers = " ".join(str(i) for i in range(950, 2100, 7))
    backend.train_from_iterator([TEXT, numbers, *HARD_TEXTS[:-1]], trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=[SPECIAL[1], "$A"], special_tokens=[(SPECIAL[1], 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
    )
    if chat:
        tokenizer.chat_template = CHATML
    return tokenizer


def tiny_folder(
    folder: Path,
    *,
    model_type: str = "llama",
    kind: str = "smollm",
    blocks: int = 3,
    adds_bos: bool = False,
    chat: bool = True,
    spare_rows: int = 3,
    **changes: Any,
) -> tuple[Path, Any, Any]:
    """Save a tiny model and its tokenizer; (folder, model in float32, tokenizer)."""
    tokenizer = tiny_tokenizer(kind, adds_bos=adds_bos, chat=chat)
    model = tiny_model(
        model_type,
        blocks=blocks,
        vocab_size=len(tokenizer) + spare_rows,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
        **changes,
    )
    if model.config.tie_word_embeddings:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def tiny_f16_file(folder: Path, **how: Any) -> tuple[Path, Any, Any, Path]:
    """`tiny_folder`, and beside the folder the model as an F16 GGUF file, last."""
    folder, model, tokenizer = tiny_folder(folder, **how)
    path = folder.parent / "model.gguf"
    entries = tokenizers.entries(model.config, tokenizer)
    write_f16(folder, path, config=model.config, tokenizer_entries=entries, metadata={})
    return folder, model, tokenizer, path
