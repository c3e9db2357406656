"""Does it still talk sense? A few fixed prompts with a rule each, and a greedy sample.

Perplexity can look fine while arithmetic, JSON or the language of the answer break (a known case:
three blocks off a 30B model, and it answers in Chinese). So each prompt has a plain rule for its
answer, and the answer itself is kept beside the verdict. The prompts are few and easy: a pass says
little, and a prompt that the dense model passes and the healed one fails says much. A small dense
model may fail some as well; the two counts belong side by side.

>>> check = sanity(lambda prompt, limit: "Die Antwort ist 12.")
>>> f"{check.passed} of {check.total}", check.failed()
('1 of 4', ('json', 'language', 'repetition'))
>>> sanity(lambda prompt, limit: sample(model, tokenizer, prompt, limit))   # doctest: +SKIP
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Generate = Callable[[str, int], str]
"""(prompt, most new tokens) -> the new text alone."""


class GreedySession(Protocol):
    """An open artifact; `clp_edge.runtimes.Session` is one."""

    def generate(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """Greedy continuation, without the prompt and without end tokens."""
        ...


SMALL_WORDS = "the a an and or of to in is are was it that this for on with as by be at from its"
ENGLISH_WORDS = frozenset(SMALL_WORDS.split())


@dataclass(frozen=True)
class Answer:
    """One prompt, what came back, and whether it keeps the rule."""

    name: str
    prompt: str
    text: str
    passed: bool


@dataclass(frozen=True)
class Sanity:
    """All answers of one model."""

    answers: tuple[Answer, ...]

    @property
    def passed(self) -> int:
        return sum(answer.passed for answer in self.answers)

    @property
    def total(self) -> int:
        return len(self.answers)

    def failed(self) -> tuple[str, ...]:
        """The names of the prompts whose answers break their rule."""
        return tuple(answer.name for answer in self.answers if not answer.passed)


def names_the_sum(text: str) -> bool:
    """The first number in the text is 12, the sum asked for."""
    numbers = re.findall(r"\d+(?:\.\d+)?", text.replace("5 + 7", "").replace("7 + 5", ""))
    return bool(numbers) and float(numbers[0]) == 12


def is_the_json(text: str) -> bool:
    """The text holds a JSON object with the name and the age asked for."""
    start = text.find("{")
    if start < 0:
        return False
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
    except json.JSONDecodeError:
        return False
    return isinstance(value, dict) and value.get("name") == "Ann" and str(value.get("age")) == "31"


def is_english(text: str) -> bool:
    """Nearly all letters are plain Latin ones, and at least three different small words occur."""
    letters = [sign for sign in text if sign.isalpha()]
    if not letters or sum(sign.isascii() for sign in letters) < 0.95 * len(letters):
        return False
    return len(ENGLISH_WORDS & set(re.findall(r"[a-z]+", text.lower()))) >= 3


def does_not_loop(text: str) -> bool:
    """At least twelve words, and at least half of its runs of four words are different ones."""
    words = text.lower().split()
    if len(words) < 12:
        return False
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(set(runs)) >= len(runs) / 2


# name, prompt, most new tokens, rule
PROMPTS: tuple[tuple[str, str, int, Callable[[str], bool]], ...] = (
    ("arithmetic", "What is 5 + 7? Answer with the number only.", 24, names_the_sum),
    (
        "json",
        'Write a JSON object with "name" set to "Ann" and "age" set to 31. Answer with JSON only.',
        48,
        is_the_json,
    ),
    ("language", "Explain in two sentences why the sky is blue.", 64, is_english),
    ("repetition", "Tell a short story about a lighthouse keeper and a storm.", 96, does_not_loop),
)


def sanity(generate: Generate) -> Sanity:
    """Ask every fixed prompt once."""
    answers = []
    for name, prompt, limit, rule in PROMPTS:
        text = generate(prompt, limit)
        answers.append(Answer(name, prompt, text, rule(text)))
    return Sanity(tuple(answers))


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The ids to continue: the user's turn of the chat template, or without one the plain text."""
    chat = getattr(tokenizer, "chat_template", None)
    if chat:
        turn = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    # A template writes its own BOS.
    return tokenizer.encode(prompt, add_special_tokens=not chat)


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 64) -> str:
    """The model's greedy answer to a prompt, without the prompt and without special tokens."""
    ids = prompt_ids(tokenizer, prompt)
    given = torch.tensor([ids], device=model.device)
    ends = _end_ids(model, tokenizer)
    made = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        # a model's own generation settings may hold these; greedy means greedy
        repetition_penalty=1.0,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    return tokenizer.decode(made[0, len(ids) :].tolist(), skip_special_tokens=True).strip()


def sample_artifact(
    session: GreedySession, tokenizer: Any, prompt: str, max_new_tokens: int = 64
) -> str:
    """The same from a written artifact, in its own runtime."""
    made = session.generate(prompt_ids(tokenizer, prompt), max_new_tokens)
    return tokenizer.decode(made, skip_special_tokens=True).strip()


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a text, by the model's settings or by the tokenizer."""
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(holder, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return sorted(found)
