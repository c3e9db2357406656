r"""llama.cpp's names of byte-level pre-tokenizers, and what each does: one table for both ways.

llama.cpp cuts text before the byte-pair merges by a rule chosen by `tokenizer.ggml.pre`. A row says
that rule as the steps of a tokenizer.json, so that the exporter finds the name of what a tokenizer
does (the first row with its steps), and the reader of a GGUF file builds a tokenizer from the name.
The patterns are those of the models' own tokenizer.json files; the names and what they imply are
llama.cpp's (llama-vocab.cpp). Names with equal steps give equal tokens, so that a Command-R
tokenizer is written as "smollm", and an OLMo 2 one as "smaug-bpe".

>>> find((DIGITS, GPT2), ignore_merges=False).name
'smollm'
>>> named("starcoder").steps == named("smollm").steps
True
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DIGITS = "each digit alone"
GPT2 = "GPT-2's pattern, then bytes"
BYTES = "bytes"
_SPLIT = "split "


def split(pattern: str) -> str:
    """The step that makes a piece of each match of `pattern`, and of what is between two."""
    return _SPLIT + pattern


_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# words that may begin with capitals; marks belong to their letters
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*END"
    r"|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_SPLIT = _CASED.replace("END", "").replace("DIGITS", r"\p{N}")
GPT4O_SPLIT = _CASED.replace("END", f"{_ENGLISH}?").replace("DIGITS", r"\p{N}{1,3}")
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
    "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before the byte-pair merges, and what llama.cpp calls it."""

    name: str
    steps: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    """Other names in GGUF files for the same rule."""
    ignore_merges: bool = False
    """Whether a piece that is a token as it stands is taken whole."""
    add_bos: bool = False
    """What llama.cpp does where the file has no `add_bos_token`."""
    nfc: bool = False
    """Whether the models of this name compose accents first, which llama.cpp does not."""
    cuts_marks: bool = False
    """Whether llama.cpp cuts a letter from its combining marks, which the pattern does not."""


# A name that is shared by most models comes before its rarer synonyms.
PRE_TOKENIZERS = (
    PreTokenizer(
        "smollm",
        (DIGITS, GPT2),
        aliases=("starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    PreTokenizer("command-r", (DIGITS, GPT2), nfc=True),
    PreTokenizer("gpt-2", (GPT2,), aliases=("phi-2", "mpt", "jais", "mellum", "granite-docling")),
    PreTokenizer("olmo", (GPT2,), nfc=True),
    PreTokenizer(
        "llama-bpe",
        (split(LLAMA3_SPLIT), BYTES),
        aliases=("llama3", "llama-v3", "falcon3", "pixtral", "lfm2"),
        ignore_merges=True,
        add_bos=True,
    ),
    PreTokenizer("smaug-bpe", (split(LLAMA3_SPLIT), BYTES), aliases=("dbrx",)),
    PreTokenizer(
        "qwen2", (split(QWEN2_SPLIT), BYTES), aliases=("deepseek-r1-qwen", "megrez"), nfc=True
    ),
    PreTokenizer("stablelm2", (split(QWEN2_SPLIT), BYTES), aliases=("hunyuan", "solar-open")),
    PreTokenizer(
        "tekken",
        (split(TEKKEN_SPLIT), BYTES),
        ignore_merges=True,
        add_bos=True,
        cuts_marks=True,
    ),
    PreTokenizer(
        "gpt-4o",
        (split(GPT4O_SPLIT), BYTES),
        aliases=("llama4", "kanana2", "minimax-m2"),
        cuts_marks=True,
    ),
    PreTokenizer(
        "deepseek-v3",
        (*(split(pattern) for pattern in _DEEPSEEK3), BYTES),
        aliases=("hunyuan-dense", "joyai-llm"),
    ),
)


def candidates(steps: tuple[str, ...]) -> Iterator[PreTokenizer]:
    """The rows that cut text by these steps, the usual name first."""
    return (row for row in PRE_TOKENIZERS if row.steps == steps)


def find(steps: tuple[str, ...], *, ignore_merges: bool) -> PreTokenizer | None:
    """The usual name for these steps."""
    return next((r for r in candidates(steps) if r.ignore_merges == ignore_merges), None)


def named(name: str) -> PreTokenizer | None:
    """The row that llama.cpp knows by this name."""
    return next((row for row in PRE_TOKENIZERS if name in (row.name, *row.aliases)), None)


def names() -> list[str]:
    """Every name of the table, aliases included."""
    return [name for row in PRE_TOKENIZERS for name in (row.name, *row.aliases)]


def built(row: PreTokenizer) -> Any:
    """The row as a pre-tokenizer of `tokenizers`."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    for step in row.steps:
        if step == DIGITS:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif step.startswith(_SPLIT):
            pattern = Regex(step.removeprefix(_SPLIT))
            steps.append(pre_tokenizers.Split(pattern, behavior="isolated", invert=False))
        else:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step == GPT2))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
