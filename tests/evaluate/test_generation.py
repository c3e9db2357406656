"""Sanity counts what the rules say, and the greedy sample is greedy."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clp_edge.evaluate.generation import sample, sample_artifact, sanity
from clp_edge.evaluate.prompts import PROMPTS, chosen

STORY = (
    "Every evening old Tom climbed the stairs of the tower to light the lamp. One night a storm "
    "came in from the west, and he saw a small boat among the waves."
)


def test_sanity_counts_by_kind_and_keeps_the_texts() -> None:
    good = {
        "arithmetic": "12",
        "brackets": "[1, 2, 3, 4, 5]",
        "json": '{"name": "Ann", "age": 31}',
        "list": "1. cat\n2. dog\n3. cow\n4. pig\n5. hen",
        "language": "Luft streut kurze Wellen.",
        "repetition": STORY,
    }
    by_text = {prompt.text: prompt for prompt in PROMPTS}
    limits = []
    seen = []

    def generate(prompt: str, limit: int) -> str:
        limits.append(limit)
        return good[by_text[prompt].kind]

    result = sanity(generate, lambda d, t, note="": seen.append((d, t)), per_kind=1)
    assert (result.passed, result.total) == (5, 6)
    assert result.failed() == ("language 1",)
    assert {answer.kind: answer.text for answer in result.answers} == good
    assert limits == [prompt.limit for prompt in chosen(1)]
    assert seen[-1] == (6, 6)
    assert result.rate.low < 5 / 6 < result.rate.high < 1.0
    whole = sanity(generate)
    kinds = whole.kinds()
    assert {name: (one.passed, one.total) for name, one in kinds.items()} == {
        "arithmetic": (1, 4),
        "brackets": (4, 4),
        "json": (1, 4),
        "list": (4, 4),
        "language": (0, 4),
        "repetition": (4, 4),
    }
    assert whole.passed == sum(one.passed for one in kinds.values()) == 14


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
