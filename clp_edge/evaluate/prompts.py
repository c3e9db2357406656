"""The fixed prompts and the plain rule that each answer is held to: six kinds, four of each.

The rules look at form, not at wisdom, and they read what is there: an answer that the limit cut off
is not held against the model where that can be told.

>>> [prompt.kind for prompt in chosen(1)]
['arithmetic', 'brackets', 'json', 'list', 'language', 'repetition']
>>> PROMPTS[0].text, PROMPTS[0].rule("5 + 7 = 12")
('What is 5 + 7? Answer with the number only.', True)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

PER_KIND = 4

ENGLISH = "the a an and of to in is are was it that this for with as by be at from"
GERMAN = "der die das und ist nicht ein eine zu den von mit sich auf im dem weil wird in an"
FRENCH = "le la les et est un une des du que dans pour pas qui sur il par avec a en"
# The commonest words, shared ones in each; a text's language is the one of which it has the most.
SMALL_WORDS: dict[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in (("English", ENGLISH), ("German", GERMAN), ("French", FRENCH))
}
CLOSING = {")": "(", "]": "[", "}": "{"}
MARKER = re.compile(r"\s*(?:\d+[.):]|[-*•])\s*\S")


@dataclass(frozen=True)
class Prompt:
    """One question, the most tokens of its answer, and the rule."""

    kind: str
    name: str
    text: str
    limit: int
    rule: Callable[[str], bool]


def names_the_number(text: str, expected: int, asked: str) -> bool:
    """The first number in the text, less a repetition of what was asked, is the expected one."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(asked, ""))
    return bool(numbers) and float(numbers[0]) == expected


def closes_its_brackets(text: str) -> bool:
    """At least one pair, and no bracket closed that was not open; a cut may leave some open."""
    open_ones: list[str] = []
    pairs = 0
    for sign in text:
        if sign in CLOSING.values():
            open_ones.append(sign)
        elif sign in CLOSING:
            if not open_ones or open_ones.pop() != CLOSING[sign]:
                return False
            pairs += 1
    return pairs > 0


def is_the_json(text: str, expected: Any) -> bool:
    """The first object or array in the text is JSON, and is what was asked for.

    Of an object, the keys asked for must be there; more may be.
    """
    found = re.search(r"[\[{]", text)
    if found is None:
        return False
    try:
        value, _ = json.JSONDecoder().raw_decode(text[found.start() :])
    except (json.JSONDecodeError, RecursionError):
        return False
    if isinstance(expected, dict) and isinstance(value, dict):
        return all(str(value.get(key)) == str(wanted) for key, wanted in expected.items())
    return bool(value == expected)


def lists_five(text: str) -> bool:
    """Five marked lines; or without marks five lines, or one line of five between commas."""
    lines = [line for line in text.splitlines() if line.strip()]
    marked = sum(bool(MARKER.match(line)) for line in lines)
    if marked:
        return marked == 5
    return len(lines) == 5 or (len(lines) == 1 and len(lines[0].split(",")) == 5)


def language_of(text: str) -> str | None:
    """The language whose small words occur most, at least three different ones; None where none
    does, or where one letter in twenty is not Latin."""
    letters = [sign for sign in text if sign.isalpha()]
    latin = sum(ord(sign) < 0x250 for sign in letters)
    if not letters or latin < 0.95 * len(letters):
        return None
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    count, name = max((len(words & small), name) for name, small in SMALL_WORDS.items())
    return name if count >= 3 else None


def is_in(text: str, language: str) -> bool:
    """The text is in that language."""
    return language_of(text) == language


def does_not_loop(text: str) -> bool:
    """At least twelve words, and at least half of its runs of four words are different ones."""
    words = text.lower().split()
    if len(words) < 12:
        return False
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(set(runs)) >= len(runs) / 2


def _of_kind(kind: str, limit: int, *rows: tuple[str, Callable[[str], bool]]) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(kind, f"{kind} {number}", text, limit, rule)
        for number, (text, rule) in enumerate(rows, start=1)
    )


def _sum(asked: str, expected: int) -> tuple[str, Callable[[str], bool]]:
    rule = partial(names_the_number, expected=expected, asked=asked)
    return f"What is {asked}? Answer with the number only.", rule


PROMPTS: tuple[Prompt, ...] = (
    *_of_kind(
        "arithmetic",
        12,
        _sum("5 + 7", 12),
        _sum("9 - 4", 5),
        _sum("6 * 3", 18),
        _sum("20 + 30", 50),
    ),
    *_of_kind(
        "brackets",
        28,
        ("Write a Python list of the numbers 1 to 5. Answer with code only.", closes_its_brackets),
        ('Write one line of Python that prints "hello". Code only.', closes_its_brackets),
        ("Copy this exactly: (a + b) * (c - d)", closes_its_brackets),
        ('Write a Python dict that maps "a" to [1, 2]. Code only.', closes_its_brackets),
    ),
    *_of_kind(
        "json",
        28,
        (
            'Write a JSON object with "name" set to "Ann" and "age" set to 31. '
            "Answer with JSON only.",
            partial(is_the_json, expected={"name": "Ann", "age": 31}),
        ),
        (
            "Write a JSON array of the numbers 1, 2 and 3. Answer with JSON only.",
            partial(is_the_json, expected=[1, 2, 3]),
        ),
        (
            'Write a JSON object with "city" set to "Paris". Answer with JSON only.',
            partial(is_the_json, expected={"city": "Paris"}),
        ),
        (
            'Write a JSON object with "x" set to 4 and "y" set to 9. Answer with JSON only.',
            partial(is_the_json, expected={"x": 4, "y": 9}),
        ),
    ),
    *_of_kind(
        "list",
        40,
        ("List five animals, one a line, without explanations.", lists_five),
        ("Name five colours as a numbered list. Nothing else.", lists_five),
        ("Give five kinds of fruit as a bulleted list. Nothing else.", lists_five),
        ("List five countries, one a line, without explanations.", lists_five),
    ),
    *_of_kind(
        "language",
        36,
        ("Explain in two sentences why the sky is blue.", partial(is_in, language="English")),
        (
            "Erkläre in zwei Sätzen, warum es im Winter kalt ist.",
            partial(is_in, language="German"),
        ),
        (
            "Explique en deux phrases pourquoi la mer est salée.",
            partial(is_in, language="French"),
        ),
        ("Describe a kitchen in two sentences.", partial(is_in, language="English")),
    ),
    *_of_kind(
        "repetition",
        48,
        ("Tell a short story about a lighthouse keeper and a storm.", does_not_loop),
        ("Describe how bread is made.", does_not_loop),
        ("Write a letter to a friend about a holiday by the sea.", does_not_loop),
        ("Explain how a bicycle works.", does_not_loop),
    ),
)


def chosen(per_kind: int = PER_KIND) -> tuple[Prompt, ...]:
    """The first `per_kind` prompts of each kind."""
    found: list[Prompt] = []
    for prompt in PROMPTS:
        if sum(prompt.kind == other.kind for other in found) < per_kind:
            found.append(prompt)
    return tuple(found)
