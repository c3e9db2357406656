"""Held-back KL and perplexity against the logits of the dense and of the cut model."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from clp_edge.heal import TuningSettings, heal
from clp_edge.heal.collect import collect_tail
from clp_edge.heal.held import Judged, judge_tail
from clp_edge.heal.tail import Tail
from clp_edge.metrics import token_kl, token_nll
from clp_edge.models.anatomy import dissect
from clp_edge.models.surgery import remove_blocks
from clp_edge.segment import Segment
from tests.tiny import random_ids, tiny_model

SEGMENT = Segment(3, 4)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])  # gemma2: with a soft cap
def test_the_tail_is_judged_as_the_whole_models_logits_are(model_type: str) -> None:
    model = tiny_model(model_type)
    body, ids = dissect(model), random_ids(5, 24, seed=3)
    tail = Tail(body, SEGMENT, (2, 5))
    held = collect_tail(body, SEGMENT, ids, entry=tail.entry, teach=True, batch=2)
    found = judge_tail(held, tail, batch=2)
    cut = copy.deepcopy(model)
    remove_blocks(cut, SEGMENT.blocks)
    with torch.no_grad():
        dense, ours = model(ids).logits.double(), cut(ids).logits.double()
    kl = token_kl(dense, ours).mean(-1)
    nll = [
        token_nll(z[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).view(len(ids), -1).mean(-1)
        for z in (ours, dense)
    ]
    torch.testing.assert_close(found.kl_each, kl.double(), rtol=1e-3, atol=1e-5)
    assert found.dense_nll_each is not None
    for got, expected in zip((found.nll_each, found.dense_nll_each), nll, strict=True):
        torch.testing.assert_close(got, expected.double(), rtol=1e-4, atol=1e-5)
    gap = nll[0] - nll[1]
    assert found.ratio[0] == pytest.approx(math.exp(gap.mean()), rel=1e-4)
    assert found.ratio[1] == pytest.approx(
        found.ratio[0] * float(gap.std()) / math.sqrt(len(gap)), rel=1e-2
    )


def test_a_difference_is_paired_by_sequence() -> None:
    hard = torch.tensor([1.0, 5.0, 9.0], dtype=torch.float64)
    before = Judged(hard, hard)
    after = Judged(hard - torch.tensor([0.1, 0.2, 0.3]), hard)
    mean, error = after.change_from(before)
    assert mean == pytest.approx(-0.2)
    assert error == pytest.approx(0.1 / math.sqrt(3))  # not that of the sequences themselves
    assert all(math.isnan(x) for x in after.ratio)  # the dense model's was not kept


def test_every_rung_says_what_it_is_worth_and_how_sure_that_is() -> None:
    found = heal(
        dissect(tiny_model("qwen3")),
        SEGMENT,
        random_ids(12, 32, seed=1),
        random_ids(6, 32, seed=2),
        tuning=TuningSettings(steps=4, tokens=64, warmup=0),
    )
    assert found.held_sequences == 6
    assert found.ratio_cut is not None
    assert found.ratio_cut[1] > 0.0
    assert [rung.name for rung in found.rungs] == ["refit", "graft", "local", "endpoints"]
    for rung in found.rungs:
        assert rung.ratio is not None
        assert rung.ratio > 0.0
        assert rung.ratio_se is not None
        assert rung.change_se is not None
        assert rung.change_se > 0.0
