"""Does it still talk sense? Fixed prompts with a rule each, and a greedy sample.

Perplexity can look fine while arithmetic, JSON or the language of the answer break (a known case:
three blocks off a 30B model, and it answers in Chinese). So each prompt has a plain rule for its
answer, and the answer itself is kept beside the verdict. The prompts are few and easy: a pass says
little, and a prompt that the dense model passes and the healed one fails says much. A small dense
model may fail some as well; the two counts belong side by side.

>>> check = sanity(lambda prompt, limit: "Die Antwort ist 12.", per_kind=1)
>>> f"{check.passed} of {check.total}", check.failed()[0]
('1 of 6', 'brackets 1')
>>> sanity(lambda prompt, limit: sample(model, tokenizer, prompt, limit))   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from clp_edge.evaluate.intervals import Estimate, rate
from clp_edge.evaluate.prompts import PER_KIND, chosen
from clp_edge.models.ends import end_ids
from clp_edge.progress import Progress, silent

Generate = Callable[[str, int], str]
"""(prompt, most new tokens) -> the new text alone."""


class GreedySession(Protocol):
    """An open artifact; `clp_edge.runtimes.Session` is one."""

    def generate(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """Greedy continuation, without the prompt and without end tokens."""
        ...


@dataclass(frozen=True)
class Answer:
    """One prompt, what came back, and whether it keeps the rule."""

    kind: str
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

    @property
    def rate(self) -> Estimate:
        """Share of answers that keep their rule, with Wilson's interval."""
        return rate(self.passed, self.total)

    def kinds(self) -> dict[str, Sanity]:
        """The answers of each kind."""
        names = dict.fromkeys(answer.kind for answer in self.answers)
        return {
            name: Sanity(tuple(answer for answer in self.answers if answer.kind == name))
            for name in names
        }

    def failed(self) -> tuple[str, ...]:
        """The names of the prompts whose answers break their rule."""
        return tuple(answer.name for answer in self.answers if not answer.passed)


def sanity(generate: Generate, progress: Progress = silent, *, per_kind: int = PER_KIND) -> Sanity:
    """Ask the first `per_kind` fixed prompts of each kind once."""
    prompts = chosen(per_kind)
    answers = []
    for at, prompt in enumerate(prompts):
        text = generate(prompt.text, prompt.limit)
        answers.append(Answer(prompt.kind, prompt.name, prompt.text, text, prompt.rule(text)))
        progress(at + 1, len(prompts), f"prompt {at + 1} of {len(prompts)}")
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
    ends = sorted(end_ids(getattr(model, "generation_config", None), model.config, tokenizer))
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
