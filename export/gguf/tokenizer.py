"""A tokenizer as GGUF keys; what llama.cpp cannot do is refused by name (PITFALLS 13).

llama.cpp knows two kinds that we write: byte-level BPE (`tokenizer_bpe.py`) and SentencePiece's BPE
(`tokenizer_sentencepiece.py`). Which one, and by which rules, is found from what the tokenizer
itself does - its model, normalizer and pre-tokenizer steps, one by one - and never guessed: an
unknown step is an error at plan time. `verify.py` then compares ids of hard texts.

A source that is a GGUF file brings its keys along (`tokenizer.gguf`); they are carried verbatim.
"""

from __future__ import annotations

import copy
import struct
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, TokenType
from jinja2 import TemplateError
from tokenizers import AddedToken

from clp_edge.errors import UnsupportedModelError
from clp_edge.export.gguf import tokenizer_bpe, tokenizer_sentencepiece
from clp_edge.export.gguf.tokenizer_parts import Entry, definition, refuse
from clp_edge.gguf_file.header import read_header

CARRIED_FILE = "tokenizer.gguf"

END_NAMES = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
)
"""llama.cpp makes a control token of any token of these names, and ends a generation there
(llama-vocab.cpp). Qwen's vocabulary has an ordinary "</s>": the end of HTML's strikethrough."""


def recognise(tokenizer: Any) -> str:
    """llama.cpp's name of the pre-tokenizer, "default" for SentencePiece; UnsupportedModelError
    names the unknown part."""
    whole = definition(tokenizer)
    if tokenizer_sentencepiece.is_sentencepiece(whole):
        tokenizer_sentencepiece.recognise(whole)
        return "default"
    return tokenizer_bpe.recognise(whole)


def notes(tokenizer: Any) -> list[str]:
    """What llama.cpp does not do of this tokenizer, in plain words."""
    whole = definition(tokenizer)
    claimed = _claimed(whole)
    found = [f"llama.cpp ends a text at {token!r}, an ordinary token here" for token in claimed]
    if tokenizer_sentencepiece.is_sentencepiece(whole):
        return found + tokenizer_sentencepiece.notes(whole)
    return found + tokenizer_bpe.notes(whole)


def as_written(tokenizer: Any) -> Any:
    """The tokenizer that llama.cpp makes of the file: this one, less what `notes` says of spaces
    and of ordinary tokens that are none to llama.cpp."""
    whole = definition(tokenizer)
    claimed = _claimed(whole)
    if tokenizer_sentencepiece.is_sentencepiece(whole):
        tokenizer = tokenizer_sentencepiece.as_written(tokenizer, whole)
    if claimed:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in claimed])
    return tokenizer


def _claimed(whole: dict[str, Any]) -> list[str]:
    """Ordinary tokens that llama.cpp takes for an end of text by their name alone."""
    added = {token["content"] for token in whole["added_tokens"]}
    return [name for name in END_NAMES if name in whole["model"]["vocab"] and name not in added]


def added_ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that encoding a text really puts before and after it (not what a flag claims)."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise refuse("its special tokens change the text between them")


def chat_turn(tokenizer: Any) -> str | None:
    """A question and its answer as the chat template writes them; None without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turn = [
        {"role": "user", "content": "What is 17 + 25?"},
        {"role": "assistant", "content": "It is forty-two."},
    ]
    try:
        return tokenizer.apply_chat_template(turn, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise refuse(f"its chat template does not render a question and answer ({error})") from (
            error
        )


def end_of_turn(tokenizer: Any) -> int | None:
    """The id that ends the answer in a rendered chat turn: the first special token after it."""
    text = chat_turn(tokenizer)
    if text is None:
        return None
    _, _, tail = text.rpartition("It is forty-two.")
    added = tokenizer.added_tokens_decoder
    ids = tokenizer.encode(tail, add_special_tokens=False) if tail else []
    return next((int(i) for i in ids if i in added), None)


def entries(config: Any, tokenizer: Any) -> list[Entry]:
    """All `tokenizer.*` keys of a Hugging Face tokenizer; raises where one cannot be written."""
    recognise(tokenizer)  # an unknown kind is named before anything is asked of it
    whole = definition(tokenizer)
    before, after = added_ends(tokenizer)
    bos = before[0] if before else tokenizer.bos_token_id
    eos = after[0] if after else _first(tokenizer.eos_token_id, config.eos_token_id)
    if len(before) > 1 or len(after) > 1:
        raise refuse(f"it adds {before} before and {after} after a text")
    tokens, kinds = _vocabulary(tokenizer, int(config.vocab_size))
    array, string, flag = GGUFValueType.ARRAY, GGUFValueType.STRING, GGUFValueType.BOOL
    if tokenizer_sentencepiece.is_sentencepiece(whole):
        found = tokenizer_sentencepiece.entries(whole, tokens)
        unknown = tokenizer.unk_token
        kinds = [
            tokenizer_sentencepiece.kind_of(token, kind, unknown)
            for token, kind in zip(tokens, kinds, strict=True)
        ]
    else:
        found = tokenizer_bpe.entries(whole)
    found += [
        Entry("tokenizer.ggml.tokens", tokens, array, string),
        Entry("tokenizer.ggml.token_type", kinds, array, GGUFValueType.INT32),
        Entry("tokenizer.ggml.add_bos_token", bool(before), flag),
        Entry("tokenizer.ggml.add_eos_token", bool(after), flag),
    ]
    special = {
        "bos": bos,
        "eos": eos,
        "eot": end_of_turn(tokenizer),
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    for name, value in special.items():
        if value is not None:
            key = f"tokenizer.ggml.{name}_token_id"
            found.append(Entry(key, int(value), GGUFValueType.UINT32))
    if getattr(tokenizer, "chat_template", None):
        found.append(Entry("tokenizer.chat_template", _template(tokenizer), string))
    return found


def _first(*candidates: Any) -> int | None:
    for value in candidates:
        if isinstance(value, list) and value:
            return int(value[0])
        if isinstance(value, int):
            return value
    return None


def _template(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    return template["default"] if isinstance(template, dict) else template


def _vocabulary(tokenizer: Any, size: int) -> tuple[list[str], list[int]]:
    """Token texts and types of every row of the embedding; rows without a token are unused."""
    taken = tokenizer.get_vocab()
    by_id = {index: token for token, index in taken.items()}
    if by_id and max(by_id) >= size:
        raise refuse(f"token id {max(by_id)} has no row in the embedding of {size}")
    tokens: list[str] = []
    kinds: list[int] = []
    added = tokenizer.added_tokens_decoder
    specials = set(tokenizer.all_special_ids)
    for index in range(size):
        extra = added.get(index)
        if extra is not None and (extra.lstrip or extra.rstrip or extra.single_word):
            raise refuse(f"token {extra.content!r} looks at the text beside it")
        if index not in by_id:
            name = f"[PAD{index}]"  # llama.cpp aborts at a name twice
            tokens.append(name if name not in taken else f"<unused row {index}>")
            kinds.append(int(TokenType.UNUSED))
            continue
        tokens.append(by_id[index])
        if index in specials or (extra is not None and extra.special):
            kinds.append(int(TokenType.CONTROL))
        else:
            kinds.append(int(TokenType.NORMAL if extra is None else TokenType.USER_DEFINED))
    return tokens, kinds


def carried_entries(config: Any, path: Path) -> list[Entry]:
    """The `tokenizer.*` keys of a tensor-less GGUF file, exactly as they are (PITFALLS 13)."""
    found = []
    for name, key in read_header(path).keys.items():
        if not name.startswith("tokenizer."):
            continue
        kind, inner = struct.unpack_from("<II", key.raw.ljust(8, b"\0"))
        is_array = kind == GGUFValueType.ARRAY
        sub_kind = GGUFValueType(inner) if is_array else None
        if not is_array or key.value:
            found.append(Entry(name, key.value, GGUFValueType(kind), sub_kind))
    tokens: list[str] = next((e.value for e in found if e.key == "tokenizer.ggml.tokens"), [])
    if len(tokens) != config.vocab_size:
        raise UnsupportedModelError(
            f"{path.name} holds {len(tokens)} tokens and the embedding {config.vocab_size} rows"
        )
    return found


def gguf_entries(config: Any, tokenizer: Any, carried: Path | None) -> list[Entry]:
    """The keys to write: carried over where there is a `tokenizer.gguf`, else made."""
    return carried_entries(config, carried) if carried else entries(config, tokenizer)
