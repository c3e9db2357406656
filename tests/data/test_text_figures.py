"""The ways of writing that text_figures compares keep to their rules, on a tiny model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clp_edge.models.anatomy import dissect
from tests.data.text_figures import LENGTH, USER_TOKENS, Turns, difference, farthest, write
from tests.models.tiny_gguf import byte_level_tokenizer, tiny_llama

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = byte_level_tokenizer()
    found.chat_template = TEMPLATE
    return found


def test_rows_in_turns_follow_the_template(tokenizer: Any) -> None:
    turns = Turns.of(tokenizer)
    assert tokenizer.decode(turns.opening) == "<|im_start|>user\n"
    assert tokenizer.decode(turns.to_model) == "<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(turns.to_user) == "<|im_end|>\n<|im_start|>user\n"
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.mul_(0.01)  # nearly even odds, so that a turn ends by itself too
    body = dissect(model)
    made = write(body, tokenizer, [turns.opening] * 8, 0, turns)
    assert made.ids.shape == (8, LENGTH)
    assert (made.ids == turns.end).sum() >= 10  # some rows hold several turns
    for row, own in zip(made.ids.tolist(), made.drawn.tolist(), strict=True):
        ends = [i for i, token in enumerate(row) if token == turns.end]
        assert ends
        start, users = len(turns.opening), True
        for end in ends:
            after = turns.to_model if users else turns.to_user
            assert row[end : end + len(after)] == after[: LENGTH - end]
            assert all(own[start : end + 1])
            assert not any(own[end + 1 : end + len(after)])
            assert not users or end - start <= USER_TOKENS
            start, users = end + len(after), not users
    assert all("<|im_start|>" not in text for text in made.texts(tokenizer))


def test_the_surprise_is_the_models_own(tokenizer: Any) -> None:
    model = tiny_llama()
    made = write(dissect(model), tokenizer, [[5, 6], [7, 8]], 0)
    logits = model(made.ids).logits[:, :-1].float()
    logits[..., :3] = -torch.inf  # the special ones
    told = -logits.log_softmax(-1).gather(2, made.ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(made.nll, told[:, 1:].mean(1), rtol=1e-3, atol=1e-3)


def test_the_farthest_points_leave_out_what_is_near_another() -> None:
    points = torch.tensor([[0.0], [0.1], [10.0], [10.1], [-10.0]])
    assert farthest(points, 3).tolist() in ([0, 3, 4], [0, 2, 4])
    assert farthest(points, 5).tolist() == [0, 1, 2, 3, 4]


def test_the_difference_has_a_paired_error() -> None:
    mean, error = difference([1.0, 2.0, 4.0], [0.5, 1.0, 2.5])
    assert mean == pytest.approx(1.0)
    assert error == pytest.approx(0.5 / 3**0.5)
