"""The gate and halving against the oracle on trained models of families beside the demo's."""

from __future__ import annotations

import pytest

from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.search.compare import compare
from tests.trained import sentences, trained

FAMILIES = ("qwen3", "gemma3_text")


@pytest.fixture(scope="module", params=FAMILIES)
def body(request: pytest.FixtureRequest) -> Anatomy:
    return dissect(trained(request.param, blocks=12))


@pytest.mark.parametrize("count", [2, 3])
def test_every_method_finds_the_oracles_window(body: Anatomy, count: int) -> None:
    found = compare(
        body,
        sentences(16, 32, seed=2),
        count=count,
        methods=("halving", "gate"),
        seeds=(0, 1, 2),
    )
    kl = [score.kl for score in found.oracle.windows]
    assert max(kl) > 1.5 * min(kl)  # there is something to find
    assert len(found.rows) == 6
    for row in found.rows:
        assert row.tie or row.regret <= 0.02, row
        if row.method == "gate":
            # Of 12 blocks the oracle lists all windows in 5 passes, fewer than the gate's starts
            # take; of the demo model's 30 it does not (bench/results/search.jsonl).
            assert row.judged <= 5
        else:
            assert row.forward_equivalents < found.oracle.forward_equivalents, row
