"""A heal rung is one object and one row: climbed in its place, kept where it helps, and listed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clp_edge.config import HealConfig
from clp_edge.errors import UsageError
from clp_edge.heal import HealResult, Job, Mended, Rung, TuningSettings, heal
from clp_edge.heal.ladder import rungs_up_to
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.progress import Progress
from clp_edge.records import HealRecord, RungRecord, decode, encode, from_plain, to_plain
from clp_edge.registry import RUNGS
from clp_edge.segment import Segment
from tests.search.test_method import help_of_compress
from tests.tiny import random_ids, tiny_model

SEGMENT = Segment(3, 4)


class Norms(Rung):
    """Scales the first norm of the block after the cut by each factor, and keeps the best."""

    name = "norms"
    noun = "scaling"

    def __init__(self, *factors: float) -> None:
        self.factors = factors

    def mend(self, job: Job, progress: Progress) -> Mended:
        weight = job.tail.trained[5].get_parameter("input_layernorm.weight")
        old = weight.detach().clone()
        tried = []
        for factor in self.factors:
            with torch.no_grad():
                weight.copy_(old * factor)
            tried.append((factor, job.judge()))
            progress(len(tried), len(self.factors), "scaled")
        factor, judged = min(tried, key=lambda one: one[1].kl)
        with torch.no_grad():
            weight.copy_(old * factor)
        return Mended(judged, {"factor": factor})


class Counts:
    """A watcher that counts what it is shown."""

    def __init__(self) -> None:
        self.tokens = 0

    def add(self, inner: Tensor, at_cut: Tensor, target: Tensor) -> None:
        assert len(inner) == len(at_cut) == len(target)
        self.tokens += len(inner)


class Watching(Norms):
    """Looks at the dense pass."""

    name = "watching"

    def watch(self, body: Anatomy, segment: Segment) -> Counts:
        return Counts()

    def mend(self, job: Job, progress: Progress) -> Mended:
        counts = job.watchers[self.name]
        assert isinstance(counts, Counts)
        return Mended(job.judged, {"tokens": counts.tokens})


class Shy(Norms):
    """Applies to no cut."""

    name = "shy"
    noun = "shyness"

    def refuses(self, body: Anatomy, segment: Segment) -> str | None:
        return f"blocks {segment} are not its kind"

    def mend(self, job: Job, progress: Progress) -> Mended:
        raise AssertionError("it said no")


def healed(rungs: str, **tuning) -> HealResult:
    return heal(
        dissect(tiny_model("llama")),
        SEGMENT,
        random_ids(12, 40, seed=1),
        random_ids(4, 40, seed=2),
        rungs=rungs,
        tuning=TuningSettings(**{"steps": 4, "local_steps": 3, "tokens": 80, **tuning}),
    )


def test_a_toy_rung_stands_on_those_before_it_and_is_kept_where_it_helps() -> None:
    before = healed("endpoints")
    with RUNGS.temporarily("norms", Norms(0.5, 0.97, 1.03, 2.0), "scale a norm"):
        assert [rung.name for rung in rungs_up_to("norms")] == [
            "refit",
            "graft",
            "local",
            "endpoints",
            "norms",
        ]
        found = healed("norms")
    toy = found.rung("norms")
    assert toy is not None
    assert toy.kl_before == before.kl
    assert toy.kl_after is not None
    assert toy.kept
    assert toy.kl_after < before.kl
    assert found.kl == toy.kl_after
    assert found.kl_tuned == before.kl_tuned
    assert toy.facts["factor"] != 1.0
    name = "input_layernorm.weight"
    torch.testing.assert_close(
        found.state[5][name], before.state[5][name] * toy.facts["factor"], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("factor", [30.0, math.nan, math.inf])
def test_a_toy_rung_that_makes_it_worse_is_taken_back(factor: float) -> None:
    before = healed("endpoints")
    with RUNGS.temporarily("norms", Norms(factor), "scale a norm"):
        found = healed("norms")
    toy = found.rung("norms")
    assert toy is not None
    assert not toy.kept
    assert (toy.kl_after is None) == (not math.isfinite(factor))
    assert found.kl == before.kl
    assert (
        f"the scaling was thrown away: it took KL on held-back text from {before.kl:.3g}"
        in (found.notes[-1])
    )
    worse = "no number" if toy.kl_after is None else f"{toy.kl_after:.3g}"
    assert found.notes[-1].endswith(f" to {worse}")
    assert found.state.keys() == before.state.keys()
    for block, tensors in before.state.items():
        for name, value in tensors.items():
            assert torch.equal(found.state[block][name], value)


def test_a_rung_that_asks_sees_the_whole_dense_pass_and_one_that_refuses_is_left_out() -> None:
    with (
        RUNGS.temporarily("watching", Watching(), "look"),
        RUNGS.temporarily("shy", Shy(), "never"),
    ):
        found = healed("shy")
    watching = found.rung("watching")
    assert watching is not None
    assert watching.facts == {"tokens": 12 * 40}
    assert not watching.kept
    assert found.rung("shy") is None
    assert "no shyness: blocks 3-4 are not its kind" in found.notes


def test_the_rungs_come_in_the_order_of_the_rows() -> None:
    assert rungs_up_to("none") == ()
    assert [rung.name for rung in rungs_up_to("refit")] == ["refit"]
    assert [rung.name for rung in rungs_up_to("Local")] == ["refit", "graft", "local"]
    assert rungs_up_to("endpoints")[-1].name == "endpoints"
    for name in RUNGS.names():
        assert rungs_up_to(name)[-1].name == name


def test_nothing_is_climbed_with_none() -> None:
    found = healed("none")
    assert found.rungs == ()
    assert found.state == {}
    assert found.kl == found.kl_cut
    assert found.kl_refit is found.kl_tuned is found.ridge is None


def test_a_tuning_that_ends_in_no_number_leaves_records_that_can_be_read() -> None:
    found = healed("endpoints", rate=1e30, warmup=1, clip=1e30)
    tuned = found.rung("endpoints")
    assert tuned is not None
    assert tuned.kl_after is None
    assert found.kl_tuned == tuned.kl_before
    assert [point.step for point in found.history] == [0]
    assert decode(encode(tuned), RungRecord) == tuned


def test_the_record_of_an_older_run_has_no_rungs() -> None:
    plain = to_plain(HealRecord("refit", (2,), 0.5, 0.4, None, 1.0))
    del plain["rungs"]
    assert from_plain(plain, HealRecord).rungs == ()


def test_the_configuration_and_the_help_know_the_rows() -> None:
    assert HealConfig("Refit").rungs == "refit"
    with RUNGS.temporarily("norms", Norms(1.0), "scale a norm", aliases=("scale",)):
        assert HealConfig("scale").rungs == "norms"
        text = " ".join(help_of_compress().replace("│", " ").split())  # lines wrap
    for row in ("none: the cut as it is", "refit: the block before", "norms: scale a norm"):
        assert row in text
    with pytest.raises(UsageError, match=r"known: none, refit, graft, local, endpoints$"):
        HealConfig("norms")
