"""The ladder on models that were trained: at least half of the lost nats come back."""

from __future__ import annotations

import pytest

from clp_edge.heal import TuningSettings, heal
from clp_edge.models.anatomy import dissect
from clp_edge.segment import Segment
from tests.trained import sentences, trained


@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text"])
def test_half_of_the_lost_nats_come_back(model_type: str) -> None:
    found = heal(
        dissect(trained(model_type)),
        Segment(3, 4),
        sentences(128, 32, seed=1),
        sentences(24, 32, seed=2),
        tuning=TuningSettings(steps=24, local_steps=24, tokens=256),
    )
    assert found.kl_cut > 0.05
    graft = ["graft"] if model_type == "qwen3" else []
    assert [rung.name for rung in found.rungs] == ["refit", *graft, "local", "endpoints"]
    assert found.kl < 0.5 * found.kl_cut
