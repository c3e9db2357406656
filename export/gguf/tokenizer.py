"""A byte-level BPE tokenizer as GGUF keys; anything else is refused by name (PITFALLS 13).

llama.cpp cuts text by a rule chosen by the name `tokenizer.ggml.pre`. The name is found here from
what the tokenizer itself does - its normalizer and its pre-tokenizer steps, one by one - and never
guessed: an unknown step is an error at plan time. `verify.py` then compares ids of hard texts.

A source that is a GGUF file brings its keys along (`tokenizer.gguf`); they are carried verbatim.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, TokenType
from jinja2 import TemplateError

from clp_edge.errors import UnsupportedModelError
from clp_edge.models.gguf_header import read_header

CARRIED_FILE = "tokenizer.gguf"

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_DIGITS = "each digit alone"
_BYTES = "bytes"
_GPT2 = "GPT-2's pattern, then bytes"


@dataclass(frozen=True)
class PreTokenizer:
    """One row: what `tokenizer.json` does, and llama.cpp's name for it."""

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool = False
    """Whether a piece that is a token as a whole is taken without merging."""


PRE_TOKENIZERS = (
    PreTokenizer("smollm", (_DIGITS, _GPT2)),
    PreTokenizer("gpt-2", (_GPT2,)),
    PreTokenizer("llama-bpe", (f"split {_LLAMA3_SPLIT}", _BYTES), ignore_merges=True),
    PreTokenizer("smaug-bpe", (f"split {_LLAMA3_SPLIT}", _BYTES)),
    PreTokenizer("qwen2", (f"split {_QWEN2_SPLIT}", _BYTES)),
)


@dataclass(frozen=True)
class Entry:
    """One GGUF key with its value and types."""

    key: str
    value: Any
    kind: GGUFValueType
    sub_kind: GGUFValueType | None = None


def _refuse(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the tokenizer cannot be written to GGUF: {what}",
        "known are byte-level BPE tokenizers of the SmolLM2, Llama 3 and Qwen2 kind",
    )


def _definition(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refuse(f"{type(tokenizer).__name__} is no fast tokenizer")
    return json.loads(backend.to_str())


def _flat(part: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[inside] for step in _flat(inner, inside)]
    return [part]


def _step(part: dict[str, Any]) -> str:
    """A pre-tokenizer step in the words of the table."""
    kind = part["type"]
    if kind == "Digits" and part.get("individual_digits"):
        return _DIGITS
    if kind == "ByteLevel":
        if part.get("add_prefix_space"):
            raise _refuse("it puts a space before the text (ByteLevel add_prefix_space)")
        return _GPT2 if part.get("use_regex", True) else _BYTES
    if kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        pattern = part["pattern"].get("Regex")
        if pattern is not None:
            return f"split {pattern}"
    raise _refuse(f"unknown pre-tokenizer step {json.dumps(part)[:160]}")


def recognise(tokenizer: Any) -> str:
    """llama.cpp's name of the pre-tokenizer; UnsupportedModelError names the unknown part."""
    whole = _definition(tokenizer)
    model = whole["model"]
    if model["type"] != "BPE":
        raise _refuse(f"its model is {model['type']}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise _refuse(f"its BPE model sets {name}")
    for part in _flat(whole["normalizer"], "normalizers"):
        if part["type"] != "NFC":
            raise _refuse(f"unknown normalizer {json.dumps(part)[:160]}")
    steps = tuple(_step(part) for part in _flat(whole["pre_tokenizer"], "pretokenizers"))
    ignores = bool(model.get("ignore_merges"))
    for row in PRE_TOKENIZERS:
        if row.steps == steps and row.ignore_merges == ignores:
            return row.name
    raise _refuse(f"unknown pre-tokenizer: {' + '.join(steps) or 'none'}, ignore_merges {ignores}")


def notes(tokenizer: Any) -> list[str]:
    """What llama.cpp does not do of this tokenizer, in plain words."""
    whole = _definition(tokenizer)
    said = []
    if _flat(whole["normalizer"], "normalizers"):
        said.append("llama.cpp does not normalize text (NFC): decomposed accents get other tokens")
    missing = _missing_bytes(whole["model"]["vocab"])
    if missing:
        said.append(f"{len(missing)} of the 256 bytes have no token and are dropped")
    return said


def _missing_bytes(vocabulary: dict[str, int]) -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return [character for character in ByteLevel.alphabet() if character not in vocabulary]


def added_ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that encoding a text really puts before and after it (not what a flag claims)."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise _refuse("its special tokens change the text between them")


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
        raise _refuse(f"its chat template does not render a question and answer ({error})") from (
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
    pre = recognise(tokenizer)
    model = _definition(tokenizer)["model"]
    before, after = added_ends(tokenizer)
    bos = before[0] if before else tokenizer.bos_token_id
    eos = after[0] if after else _first(tokenizer.eos_token_id, config.eos_token_id)
    if len(before) > 1 or len(after) > 1:
        raise _refuse(f"it adds {before} before and {after} after a text")
    tokens, kinds = _vocabulary(tokenizer, int(config.vocab_size))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    array, string, flag = GGUFValueType.ARRAY, GGUFValueType.STRING, GGUFValueType.BOOL
    found = [
        Entry("tokenizer.ggml.model", "gpt2", string),
        Entry("tokenizer.ggml.pre", pre, string),
        Entry("tokenizer.ggml.tokens", tokens, array, string),
        Entry("tokenizer.ggml.token_type", kinds, array, GGUFValueType.INT32),
        Entry("tokenizer.ggml.merges", merges, array, string),
        Entry("tokenizer.ggml.add_bos_token", bool(before), flag),
        Entry("tokenizer.ggml.add_eos_token", bool(after), flag),
        Entry("tokenizer.ggml.add_space_prefix", False, flag),
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
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if by_id and max(by_id) >= size:
        raise _refuse(f"token id {max(by_id)} has no row in the embedding of {size}")
    tokens: list[str] = []
    kinds: list[int] = []
    added = tokenizer.added_tokens_decoder
    specials = set(tokenizer.all_special_ids)
    for index in range(size):
        extra = added.get(index)
        if extra is not None and (extra.lstrip or extra.rstrip or extra.single_word):
            raise _refuse(f"token {extra.content!r} looks at the text beside it")
        if index not in by_id:
            tokens.append(f"[PAD{index}]")
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
