"""The rules of the fixed prompts: what passes, what fails, and that the prompts can be passed."""

from __future__ import annotations

import pytest

from clp_edge.evaluate.prompts import (
    PER_KIND,
    PROMPTS,
    chosen,
    closes_its_brackets,
    does_not_loop,
    is_the_json,
    language_of,
    lists_five,
    names_the_number,
)

STORY = (
    "Every evening old Tom climbed the stairs of the tower to light the lamp. One night a storm "
    "came in from the west, and he saw a small boat among the waves."
)
ANN = {"name": "Ann", "age": 31}


@pytest.mark.parametrize(
    "text", ["12", "The answer is 12.", "5 + 7 = 12", "12.0", "It is 12, not 13"]
)
def test_the_number_is_named(text: str) -> None:
    assert names_the_number(text, 12, "5 + 7")


@pytest.mark.parametrize(
    "text", ["", "13", "The answer is 57.", "120", "5 + 7 = 13, 12", "twelve?", "-12"]
)
def test_the_number_is_not_named(text: str) -> None:
    assert not names_the_number(text, 12, "5 + 7")


@pytest.mark.parametrize("text", ["[1, 2]", "print('hello')", "f(a[0], {1: (2)})", "(a) and (b"])
def test_brackets_close(text: str) -> None:
    assert closes_its_brackets(text)


@pytest.mark.parametrize("text", ["", "no brackets", "[1, 2", "(a]", "a) + (b)", "(a))", "([)]"])
def test_brackets_do_not_close(text: str) -> None:
    assert not closes_its_brackets(text)


def test_json_is_read_not_guessed() -> None:
    assert is_the_json('{"name": "Ann", "age": 31}', ANN)
    assert is_the_json('Here you go:\n```json\n{"age": "31", "name": "Ann"}\n``` Enjoy!', ANN)
    assert not is_the_json('{"name": "Ann", "age": 31', ANN)
    assert not is_the_json("{'name': 'Ann', 'age': 31}", ANN)
    assert not is_the_json('{"name": "Bob", "age": 31}', ANN)
    assert not is_the_json('["name", "Ann", 31]', ANN)
    assert not is_the_json("", ANN)
    assert is_the_json("The array: [1, 2, 3].", [1, 2, 3])
    assert not is_the_json("[1, 2, 3, 4]", [1, 2, 3])
    assert not is_the_json("[" * 100_000, [1, 2, 3])  # deeper than the parser goes


@pytest.mark.parametrize(
    "text",
    [
        "1. cat\n2. dog\n3. cow\n4. pig\n5. hen",
        "Sure, here they are:\n\n- cat\n- dog\n- cow\n- pig\n- hen\n\nEnjoy!",
        "cat\ndog\ncow\npig\nhen",
        "cat, dog, cow, pig, hen",
    ],
)
def test_a_list_of_five(text: str) -> None:
    assert lists_five(text)


@pytest.mark.parametrize(
    "text", ["", "cat", "1. cat\n2. dog", "cat, dog", "\n".join(f"{i}. x" for i in range(6))]
)
def test_no_list_of_five(text: str) -> None:
    assert not lists_five(text)


def test_pitfall_22_an_answer_in_another_language_is_seen() -> None:
    english = "The sky is blue because air scatters the short waves of light."
    assert language_of(english) == "English"
    assert language_of("Der Himmel ist blau, weil die Luft Licht streut und nicht schluckt.") == (
        "German"
    )
    assert language_of("La mer est salée, et le sel des roches y arrive par les rivières.") == (
        "French"
    )
    assert language_of("天空是蓝色的, because the 空气 scatters 光 of the sun and it is.") is None
    kitchen = "A kitchen in two sentences is a modern establishment in a bustling city."
    assert language_of(kitchen) == "English"
    assert language_of("") is None
    assert language_of("12 34 56") is None


def test_pitfall_22_a_loop_is_seen() -> None:
    assert does_not_loop(STORY)
    assert not does_not_loop("The storm came and the storm went. " * 8)
    assert not does_not_loop("the " * 40)
    assert not does_not_loop("Once.")


PASSES = {
    "arithmetic": ("12", "5", "18", "50"),
    "brackets": ("[1]", 'print("hello")', "(a + b) * (c - d)", '{"a": [1, 2]}'),
    "json": ('{"name": "Ann", "age": 31}', "[1, 2, 3]", '{"city": "Paris"}', '{"x": 4, "y": 9}'),
    "list": ("a, b, c, d, e",) * 4,
    "language": (
        STORY,
        "Im Winter ist es kalt, weil die Sonne nicht hoch steht und der Tag kurz ist.",
        "La mer est salée, car les rivières y portent le sel des roches et du sol.",
        STORY,
    ),
    "repetition": (STORY,) * 4,
}


def test_every_prompt_can_be_passed_and_failed() -> None:
    assert len(PROMPTS) == 6 * PER_KIND == 24
    for kind, texts in PASSES.items():
        prompts = [prompt for prompt in PROMPTS if prompt.kind == kind]
        assert [p.rule(text) for p, text in zip(prompts, texts, strict=True)] == [True] * 4, kind
        assert not any(prompt.rule("") for prompt in prompts)
    assert len({prompt.text for prompt in PROMPTS}) == 24
    assert len({prompt.name for prompt in PROMPTS}) == 24


def test_a_side_takes_few_tokens() -> None:
    """At 100 tokens/s a side stays below 15 s, about 3 s for reading the prompts included."""
    assert sum(prompt.limit for prompt in PROMPTS) <= 800
    assert all(len(chosen(count)) == 6 * count for count in range(1, 5))
