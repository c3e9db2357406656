"""What of lm-eval's suites can be tested without lm-eval; the rest is in tests/lm_eval."""

from __future__ import annotations

import sys

import pytest

from clp_edge.errors import MissingDependencyError, UsageError
from clp_edge.evaluate.harness import Suites, read_results
from clp_edge.evaluate.harness_model import generation_settings


def test_without_lm_eval_the_error_gives_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingDependencyError) as caught:
        Suites(["arc_easy"])
    assert caught.value.cure == "pip install 'clp-edge[eval]'"


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="--limit 0"):
        Suites(["arc_easy"], limit=0)


@pytest.mark.parametrize(
    "settings", [{"do_sample": True}, {"temperature": 0.8}, {"num_beams": 4, "do_sample": False}]
)
def test_what_is_not_greedy_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="greedily"):
        generation_settings(settings)


def test_settings_that_are_greedy() -> None:
    assert generation_settings({}) == ([], 256)
    cold = {"do_sample": False, "temperature": 0.7, "until": ["a", ""], "max_new_tokens": 9}
    assert generation_settings(cold) == (["a"], 9)


def test_a_group_without_a_figure_is_left_out_and_one_with_it_stays() -> None:
    found = read_results(
        {
            "results": {
                "tag": {"alias": "tag"},
                "mean": {
                    "alias": "mean",
                    "acc,none": 0.25,
                    "acc_stderr,none": 0.1,
                    "sample_len": 8,
                },
            },
            "versions": {"mean": 2},
            "n-shot": {},
            "higher_is_better": {},
            "n-samples": {},
        }
    )
    assert list(found) == ["mean"]
    assert (found["mean"].items, found["mean"].total, found["mean"].version) == (8, None, "2")
    assert found["mean"].metrics["acc,none"].se == 0.1
