"""Why there is no dense control: what loses nothing is left as it is, by every rung.

The ladder's only aim is the dense model. A segment that adds nothing stands for the empty cut, and
goes through the very same code.
"""

from __future__ import annotations

import pytest
import torch

from clp_edge.heal import TuningSettings, heal
from clp_edge.models.anatomy import dissect
from clp_edge.segment import Segment
from tests.tiny import random_ids, tiny_model

SEGMENT = Segment(4, 5)


@pytest.mark.parametrize("blocks", ["near", "endpoints"])
def test_healing_a_cut_that_takes_nothing_changes_nothing(blocks: str) -> None:
    body = dissect(tiny_model("llama", blocks=10))
    with torch.no_grad():
        for index in SEGMENT.blocks:
            body.submodule(index, "self_attn.o_proj").weight.zero_()
            body.submodule(index, "mlp.down_proj").weight.zero_()
    found = heal(
        body,
        SEGMENT,
        random_ids(16, 32),
        random_ids(4, 32, seed=1),
        tune_blocks=blocks,
        tuning=TuningSettings(steps=6, checks=2, local_steps=6),
    )
    assert abs(found.kl_cut) < 1e-6
    assert {rung.name for rung in found.rungs} >= {"refit", "endpoints"}
    assert not any(rung.kept for rung in found.rungs)
    assert found.state == {}
