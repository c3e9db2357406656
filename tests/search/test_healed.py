"""The healed criterion: each window's refit is the one healing would make, and it may choose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clp_edge.heal import heal
from clp_edge.heal.refit import REFIT
from clp_edge.heal.tail import Tail
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.families import FAMILIES
from clp_edge.search import driver, search, window_starts
from clp_edge.search import healed as healed_module
from clp_edge.search.cost import cost_of
from clp_edge.search.healed import healed_scores
from clp_edge.search.method import Problem
from clp_edge.search.states import collect_states
from clp_edge.segment import Segment
from tests.tiny import random_ids, tiny_model

FIT = 60


def text(seed: int, sequences: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (sequences, 24), generator=generator)


def problem_of(body: Anatomy, count: int = 2) -> Problem:
    states = collect_states(body, random_ids(4, 24))
    return Problem(body, states, count, window_starts(len(body), count), cost_of(body, 24))


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_refit_is_the_one_that_healing_makes(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = dissect(tiny_model(model_type))
    problem = problem_of(body)
    windows = [Segment(2, 3), Segment(4, 5)]
    # the ridge chosen on all the text, as healing does
    monkeypatch.setattr(healed_module, "RIDGE_SHARE", 1)
    found = healed_scores(problem, windows, text(1, FIT))
    if REFIT.refuses(body, windows[0]) is not None:
        assert set(found.refused) == set(windows)
        assert not found.scores
        return
    for window in windows:
        mended = heal(body, window, text(1, FIT), problem.states.ids, rungs="refit")
        assert found.scores[window].kl == pytest.approx(mended.kl_refit, rel=2e-3)


def test_windows_in_groups_are_the_same_and_pay_for_their_passes() -> None:
    problem = problem_of(dissect(tiny_model("llama")))
    windows = [Segment(1, 2), Segment(3, 4), Segment(5, 6)]
    together = healed_scores(problem, windows, text(1, FIT))
    apart = healed_scores(problem, windows, text(1, FIT), room=1)
    assert apart.spent > together.spent
    for window in windows:
        assert apart.scores[window].kl == pytest.approx(together.scores[window].kl, rel=1e-5)


def test_without_copies_of_the_frozen_blocks_the_numbers_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = replace(dissect(tiny_model("llama")), autocast=torch.bfloat16)
    problem, windows = problem_of(body), [Segment(2, 3), Segment(4, 5)]
    made: list[Tail] = []

    def noted(given: Anatomy, segment: Segment, *, casts: bool) -> Tail:
        made.append(Tail(given, segment, casts=casts))
        return made[-1]

    monkeypatch.setattr(healed_module, "Tail", noted)
    found = healed_scores(problem, windows, text(1, FIT))
    assert [tail.frozen for tail in made] == [{}, {}]
    assert all(tail.body.autocast == torch.bfloat16 for tail in made)
    monkeypatch.setattr(healed_module, "Tail", lambda body, segment, casts: Tail(body, segment))
    assert healed_scores(problem, windows, text(1, FIT)).scores == found.scores


def mendable(body: Anatomy, window: Segment) -> None:
    """Make `window` costly when cut and easily mended.

    Its blocks do nothing but for the MLP of the first, which adds three times what the MLP of the
    block before it added: a linear map of that block's own intermediate, so the refit is exact.
    """
    with torch.no_grad():
        for index in window.blocks:
            body.submodule(index, "self_attn.o_proj").weight.zero_()
            body.submodule(index, "mlp.down_proj").weight.zero_()
    kept: list[torch.Tensor] = []

    def again(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        fits = kept and kept[-1].shape == output.shape
        return 3.0 * kept[-1] if fits else output

    body.blocks[window.first - 1].mlp.register_forward_hook(lambda _m, _i, out: kept.append(out))
    body.blocks[window.first].mlp.register_forward_hook(again)


def test_the_choice_is_by_what_is_left_after_the_refit() -> None:
    body = dissect(tiny_model("llama", blocks=10))
    window = Segment(5, 6)
    mendable(body, window)
    raw = search(body, random_ids(4, 24), count=2, method="exact")
    healed = search(body, random_ids(4, 24), count=2, method="exact", fit=text(1, FIT))
    assert raw.segment != window
    assert healed.raw_choice == raw.segment
    assert healed.segment == window
    assert healed.criterion == "healed"
    assert healed.kl_healed is not None
    assert healed.kl_healed < 0.2 * healed.kl_raw
    assert healed.kl_healed < raw.kl_raw
    assert healed.forward_equivalents > raw.forward_equivalents
    kl = {score.segment: score.kl for score in healed.windows}
    assert all(score.kl <= kl[score.segment] for score in healed.healed)
    assert healed.kl_healed == min(score.kl for score in healed.healed)
    assert healed.notes == ()


def test_a_tie_after_the_refit_is_no_reason_to_leave_the_raw_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = dissect(tiny_model("llama", blocks=10))
    mendable(body, Segment(5, 6))
    monkeypatch.setattr(driver, "ERRORS", 1e6)
    found = search(body, random_ids(4, 24), count=2, method="exact", fit=text(1, FIT))
    after = {score.segment: score.kl for score in found.healed}
    assert found.criterion == "healed"
    assert found.segment == found.raw_choice != Segment(5, 6)
    assert found.kl_healed == after[found.segment] > after[Segment(5, 6)]
    assert found.notes[0].startswith(
        f"blocks 5-6 leave {after[found.segment] - after[Segment(5, 6)]:.3f}"
    )
    assert "a tie" in found.notes[0]
    assert found.stability.gap < 0
    assert found.stability.near_tie
    assert found.stability.rivals[0] == (Segment(5, 6), 1.0)


def test_the_model_is_left_as_it_was_by_the_healed_criterion() -> None:
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    search(dissect(model), random_ids(3, 24), count=2, method="gate", fit=text(1, 12))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_where_no_refit_applies_the_choice_is_raw_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(REFIT), "refuses", lambda self, body, segment: "of a reason")
    found = search(
        dissect(tiny_model("llama")), random_ids(3, 24), count=2, method="exact", fit=text(1, 12)
    )
    assert found.criterion == "raw"
    assert found.kl_healed is None
    assert found.notes == ("no refit: of a reason",)
