"""The rules of the fixed prompts, and the greedy sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clp_edge.evaluate.generation import (
    PROMPTS,
    does_not_loop,
    is_english,
    is_the_json,
    names_the_sum,
    sample,
    sample_artifact,
    sanity,
)

STORY = (
    "Every evening old Tom climbed the stairs of the tower to light the lamp. One night a storm "
    "came in from the west, and he saw a small boat among the waves."
)


@pytest.mark.parametrize(
    "text", ["12", "The answer is 12.", "5 + 7 = 12", "12.0", "It is 12, not 13"]
)
def test_the_sum_is_named(text: str) -> None:
    assert names_the_sum(text)


@pytest.mark.parametrize(
    "text", ["", "13", "The answer is 57.", "120", "5 + 7 = 13, 12", "twelve?"]
)
def test_the_sum_is_not_named(text: str) -> None:
    assert not names_the_sum(text)


def test_json_is_read_not_guessed() -> None:
    assert is_the_json('{"name": "Ann", "age": 31}')
    assert is_the_json('Here you go:\n```json\n{"age": "31", "name": "Ann"}\n``` Enjoy!')
    assert not is_the_json('{"name": "Ann", "age": 31')
    assert not is_the_json("{'name': 'Ann', 'age': 31}")
    assert not is_the_json('{"name": "Bob", "age": 31}')
    assert not is_the_json('["name", "Ann", 31]')
    assert not is_the_json("")


def test_pitfall_22_an_answer_in_another_language_is_seen() -> None:
    assert is_english("The sky is blue because air scatters the short waves of light.")
    assert not is_english("天空是蓝色的, because the 空气 scatters 光。")
    assert not is_english("Der Himmel ist blau, weil Luft kurze Wellen des Lichtes streut.")
    assert not is_english("")
    assert not is_english("12 34 56")


def test_pitfall_22_a_loop_is_seen() -> None:
    assert does_not_loop(STORY)
    assert not does_not_loop("The storm came and the storm went. " * 8)
    assert not does_not_loop("the " * 40)
    assert not does_not_loop("Once.")


def test_sanity_counts_and_keeps_the_texts() -> None:
    answers = {
        "arithmetic": "12",
        "json": '{"name": "Ann", "age": 31}',
        "language": "Luft streut kurze Wellen.",
        "repetition": STORY,
    }
    name_of = {prompt: name for name, prompt, _, _ in PROMPTS}
    limits = []

    def generate(prompt: str, limit: int) -> str:
        limits.append(limit)
        return answers[name_of[prompt]]

    result = sanity(generate)
    assert (result.passed, result.total) == (3, 4)
    assert result.failed() == ("language",)
    assert {answer.name: answer.text for answer in result.answers} == answers
    assert limits == [limit for _, _, limit, _ in PROMPTS]


def greedy_by_hand(model, ids: list[int], steps: int, ends: set[int]) -> list[int]:
    made: list[int] = []
    with torch.no_grad():
        while len(made) < steps:
            token = int(model(torch.tensor([ids + made])).logits[0, -1].argmax())
            made.append(token)
            if token in ends:
                break
    return made


def test_sample_is_greedy_whatever_the_generation_settings_say(tiny_llama_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    model.generation_config.update(do_sample=True, temperature=2.0, top_k=3, repetition_penalty=3.0)
    ids = tokenizer.encode("the quick brown fox")
    made = greedy_by_hand(model, ids, 12, {tokenizer.eos_token_id})
    expected = tokenizer.decode(made, skip_special_tokens=True).strip()
    assert expected
    assert sample(model, tokenizer, "the quick brown fox", 12) == expected


def test_sample_uses_the_chat_template(tiny_llama_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>fox{% endif %}"
    )
    text = "<|im_start|>seven ships<|im_end|><|im_start|>fox"
    ids = tokenizer.encode(text, add_special_tokens=False)
    made = greedy_by_hand(model, ids, 8, {tokenizer.eos_token_id})
    expected = tokenizer.decode(made, skip_special_tokens=True).strip()
    assert sample(model, tokenizer, "seven ships", 8) == expected


def test_a_files_answer_is_the_models_answer(tiny_llama_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)

    class Session:
        def generate(self, ids: list[int], max_new_tokens: int) -> list[int]:
            return greedy_by_hand(model, list(ids), max_new_tokens, {tokenizer.eos_token_id})

    answer = sample_artifact(Session(), tokenizer, "the quick brown fox", 12)
    assert answer
    assert answer == sample(model, tokenizer, "the quick brown fox", 12)
