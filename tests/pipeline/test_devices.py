"""Every stage that computes, on a device that is only pretended (tests/devices.py).

The machines that run these tests have no accelerator, and a tensor left on the CPU kills a run on
one after minutes (pitfall 29). So the stages' functions run with the model and the ids on the
pretended device, and give what the CPU gives.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from clp_edge.data import write_own_text
from clp_edge.evaluate import DenseReference, measure_dense, measure_model, sample
from clp_edge.heal import TuningSettings, heal
from clp_edge.kernels.head_kl import head_kl, teacher
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.surgery import remove_blocks
from clp_edge.search import search
from clp_edge.segment import Segment
from tests.conftest import byte_level_tokenizer
from tests.devices import DEVICE, MixedDevices, Pretended, guarded, pretend_model, pretended
from tests.tiny import random_ids, tiny_model

FAMILIES = ["llama", "gemma2", "granite"]  # soft caps, sliding windows and multipliers among them


def model_there(model_type: str, **changes: Any) -> Any:
    return pretend_model(tiny_model(model_type, blocks=6, **changes))


def body_there(model_type: str) -> Anatomy:
    return dissect(model_there(model_type))


def test_the_guard_refuses_what_cuda_refuses_and_allows_what_it_allows() -> None:
    there, here = pretended(torch.ones(3, 4)), torch.ones(4)
    with guarded():
        for mix in (
            lambda: there + here,
            lambda: there @ here,
            lambda: torch.cat([there, here[None]]),
            lambda: here[pretended(torch.tensor([1]))],
            lambda: there.add_(here),
            lambda: torch.where(there > 0, here, there),
            lambda: torch.nn.functional.embedding(torch.tensor([0]), there),
        ):
            with pytest.raises(MixedDevices):
                mix()
        allowed = (
            there + torch.tensor(1.0),
            there[torch.tensor([0, 2])],
            there + here.to(DEVICE),
            there * torch.arange(4, device=there.device),
            there.new_zeros(3, 4),
            torch.tensor([1.0, 2.0], device=there.device),
        )
        assert all(isinstance(one, Pretended) for one in allowed)
        assert all(one.device == DEVICE for one in allowed)
        assert type(there.cpu()) is torch.Tensor
        assert float(there.sum()) == 12.0
        there[0] = here.to(DEVICE) * 5
        there[1].copy_(here * 7)
    assert there.inner[:, 0].tolist() == [5.0, 7.0, 1.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("method", ["exact", "gate"])
def test_search(model_type: str, method: str) -> None:
    ids = random_ids(4, 24)
    with guarded():
        there = search(body_there(model_type), pretended(ids), count=2, method=method)
    here = search(dissect(tiny_model(model_type, blocks=6)), ids, count=2, method=method)
    assert there.segment == here.segment
    assert there.kl_raw == pytest.approx(here.kl_raw, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("rungs", ["refit", "endpoints"])
def test_heal_and_what_it_puts_into_the_model(model_type: str, rungs: str) -> None:
    fit, select = random_ids(8, 32, seed=1), random_ids(4, 32, seed=2)
    tuning = TuningSettings(steps=4, tokens=64, checks=2)
    here = heal(
        dissect(tiny_model(model_type, blocks=6)),
        Segment(2, 3),
        fit,
        select,
        rungs=rungs,
        tuning=tuning,
    )
    with guarded():
        body = body_there(model_type)
        there = heal(
            body, Segment(2, 3), pretended(fit), pretended(select), rungs=rungs, tuning=tuning
        )
        pruned = copy.deepcopy(body.model)
        remove_blocks(pruned, (2, 3))
        there.apply(pruned)
        assert all(isinstance(p, Pretended) for p in pruned.parameters())
        hidden = dissect(pruned).final_hidden(pretended(select)).flatten(0, 1)
        dense = teacher(body.head, body.final_hidden(pretended(select)).flatten(0, 1))
        kl = float(head_kl(body.head, dense, hidden).mean())
    assert kl == pytest.approx(there.kl, rel=2e-3, abs=1e-5)
    assert there.kl_cut == pytest.approx(here.kl_cut, rel=1e-3)
    assert there.kl == pytest.approx(here.kl, rel=1e-2)
    assert set(there.state) == set(here.state)


def test_evaluation_and_another_copy_of_the_head() -> None:
    ids = random_ids(3, 24)
    with guarded():
        body, other = body_there("llama"), model_there("llama")
        remove_blocks(other, (2, 3))
        reference = DenseReference.build(body, pretended(ids)).with_head(body.logits)
        reference = reference.with_head(dissect(other).logits)
        dense = measure_dense(reference)
        cut = measure_model(dissect(other), pretended(ids), reference)
    plain, removed = (tiny_model("llama", blocks=6) for _ in range(2))
    remove_blocks(removed, (2, 3))
    expected = DenseReference.build(dissect(plain), ids)
    assert dense.perplexity == pytest.approx(measure_dense(expected).perplexity, rel=1e-3)
    assert cut.kl == pytest.approx(measure_model(dissect(removed), ids, expected).kl, rel=1e-3)


def test_pitfall_29_a_reference_that_falls_back_to_the_cpu_is_caught() -> None:
    ids = pretended(random_ids(2, 16))
    with guarded():
        body = body_there("llama")
        right = DenseReference.build(body, ids)
        wrong = DenseReference(
            right.ids, right.hidden, body.logits, device=right.ids.device, dtype=torch.float32
        )
        with pytest.raises(MixedDevices):
            measure_dense(wrong)


def test_own_text_and_a_sample() -> None:
    tokenizer = byte_level_tokenizer()
    words = {"vocab_size": len(tokenizer)}
    with guarded():
        model = model_there("llama", **words)
        there = write_own_text(model, tokenizer, sequences=4, length=12, seed=0, batch=2)
        said = sample(model, tokenizer, "the quick", 4)
    plain = tiny_model("llama", blocks=6, **words)
    here = write_own_text(plain, tokenizer, sequences=4, length=12, seed=0, batch=2)
    assert torch.equal(there.fit, here.fit)
    assert said == sample(plain, tokenizer, "the quick", 4)
