"""Two runs: judged as the model without both, chosen where both are free, paired to the single."""

from __future__ import annotations

import pytest
import torch

from clp_edge.metrics import token_kl
from clp_edge.models.anatomy import dissect
from clp_edge.search import search
from clp_edge.search.cost import cost_of
from clp_edge.search.judge import Judge
from clp_edge.search.pairs import without
from clp_edge.search.states import collect_states
from clp_edge.segment import Segment
from tests.search.test_search import make_one_window_free
from tests.tiny import random_ids, tiny_model


@pytest.mark.parametrize("second", [Segment(1, 1), Segment(6, 7)])
def test_a_second_run_is_judged_in_the_model_without_the_first(second: Segment) -> None:
    body = dissect(tiny_model("llama", blocks=10))
    ids = random_ids(3, 24)
    gone = Segment(3, 4)
    judge = Judge(body, collect_states(body, ids), cost_of(body, 24), batch=2)
    rest = Judge(body, without(judge, gone), judge.cost, batch=2, gone=gone)
    [score] = rest.scores([second])
    gates = [0.0 if i in gone.blocks or i in second.blocks else 1.0 for i in range(10)]
    with torch.no_grad():
        dense = body.model(ids).logits
        with body.gated(gates):
            expected = token_kl(dense, body.model(ids).logits).mean(dim=1)
    assert score.by_sequence == pytest.approx(expected.tolist(), rel=2e-3, abs=2e-4)


def test_two_free_places_beat_one_run() -> None:
    body = dissect(tiny_model("llama", blocks=12))
    make_one_window_free(body, Segment(2, 3))
    make_one_window_free(body, Segment(8, 8))
    found = search(body, random_ids(4, 24), count=3, method="exact", pair=True)
    assert found.pair is not None
    assert found.pair.segments == (Segment(2, 3), Segment(8, 8))
    assert found.pair.kl < 0.05 < found.kl_raw
    assert found.pair.gap == pytest.approx(found.pair.kl - found.kl_raw, rel=1e-4)
    assert found.pair.gap < -2 * found.pair.gap_se
    assert {split[:2] for split in found.pair.splits} == {(1, 2), (2, 1)}
    plain = search(body, random_ids(4, 24), count=3, method="exact")
    assert plain.pair is None
    assert found.segment == plain.segment
    assert found.forward_equivalents > plain.forward_equivalents


def test_one_block_is_no_pair_and_a_small_model_has_no_room() -> None:
    body = dissect(tiny_model("llama", blocks=5))
    assert search(body, random_ids(3, 24), count=1, method="exact", pair=True).pair is None
    assert search(body, random_ids(3, 24), count=3, method="exact", pair=True).pair is None
