"""Autocast that casts a weight once: the same numbers, fewer casts, nothing left behind."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clp_edge.data import kept_casts, write_own_text
from clp_edge.data.kept_casts import casts_kept
from tests.models.tiny_gguf import byte_level_tokenizer, tiny_llama


class Casts(TorchDispatchMode):
    """Counts the casts of each tensor of a model to bfloat16, by its storage."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in model.named_parameters()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
            name = self.names.get(args[0].data_ptr())
            if name is not None:
                self.counts[name] += 1
        return func(*args, **kwargs)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


def written(model: Any) -> tuple[torch.Tensor, Counter[str]]:
    with Casts(model) as casts, torch.autocast("cpu", dtype=torch.bfloat16):
        text = write_own_text(
            model, byte_level_tokenizer(), sequences=6, length=12, seed=0, batch=3
        )
    return torch.cat([text.fit, text.select, text.report]), casts.counts


def test_the_text_is_the_same_to_the_bit_with_one_cast_a_weight(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {p.data_ptr(): name for name, p in model.named_parameters()}  # tied ones have one name
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    before = [p.requires_grad for p in model.parameters()]
    once, few = written(model)
    assert [p.requires_grad for p in model.parameters()] == before
    monkeypatch.setattr(kept_casts, "LARGEST_BYTES", 0)
    anew, many = written(model)
    assert torch.equal(once, anew)
    assert set(few) == {names[layer.weight.data_ptr()] for layer in layers}
    assert set(few.values()) == {1}
    assert set(many.values()) == {2 * 11}  # two batches, eleven steps


@torch.no_grad()
def test_nothing_is_kept_where_there_is_no_autocast_or_no_room(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [p.requires_grad for p in model.parameters()]
    with casts_kept(model) as kept:
        assert not kept
        assert [p.requires_grad for p in model.parameters()] == flags
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.enable_grad(), casts_kept(model) as kept:
            assert not kept
        with casts_kept(model) as kept:
            assert kept
        monkeypatch.setattr(kept_casts, "LARGEST_BYTES", 1000)
        with casts_kept(model) as kept:
            assert not kept


def test_flags_are_put_back_and_old_casts_forgotten_when_it_fails(model: Any) -> None:
    flags = [p.requires_grad for p in model.parameters()]
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
    rows = torch.ones(2, layer.in_features)

    def fails() -> None:
        with casts_kept(model):
            layer(rows)
            raise ZeroDivisionError

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = layer(rows)
        with pytest.raises(ZeroDivisionError):
            fails()
        assert [p.requires_grad for p in model.parameters()] == flags
        layer.weight.mul_(2)  # a stale cast would not notice
        assert torch.equal(layer(rows), 2 * before)
        layer.weight.div_(2)
