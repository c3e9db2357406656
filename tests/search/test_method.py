"""A search method is one object and one row: it is judged, predicted, chosen and listed."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from clp_edge.config import SearchConfig
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.models.anatomy import dissect
from clp_edge.progress import Progress
from clp_edge.registry import METHODS
from clp_edge.search import Problem, Proposal, SearchResult, search
from clp_edge.search.cost import Size
from clp_edge.segment import Segment
from tests.tiny import random_ids, tiny_model


class Toy:
    """Guesses the last windows, for next to nothing."""

    def __init__(self, *guesses: Segment, predicts: float = 0.5) -> None:
        self.guesses = guesses
        self.predicts = predicts

    def predict(self, size: Size) -> float:
        return self.predicts

    def propose(self, problem: Problem, progress: Progress) -> Proposal:
        progress(1, 1, "guessed")
        return Proposal(self.guesses or problem.windows()[-2:], spent=0.25)


def found(method: str, **more) -> SearchResult:
    return search(dissect(tiny_model("llama")), random_ids(4, 24), count=2, method=method, **more)


def test_the_driver_judges_what_a_toy_method_proposes() -> None:
    exact = {score.segment: score.kl for score in found("exact").windows}
    with METHODS.temporarily("toy", Toy(), "the last two", aliases=("last",)):
        result = found("last")
    assert result.method == "toy"
    assert [score.segment for score in result.windows] == [Segment(4, 5), Segment(5, 6)]
    best = min(exact[Segment(4, 5)], exact[Segment(5, 6)])
    assert result.kl_raw == pytest.approx(best, rel=1e-6)
    # The toy's favourite is the first that it names, whatever the judge then says.
    assert result.regret == pytest.approx(exact[Segment(4, 5)] / best - 1.0, rel=1e-4)
    assert result.trace is None
    assert 0.25 < result.forward_equivalents < found("exact").forward_equivalents


def test_auto_asks_every_method_and_takes_the_cheapest() -> None:
    with METHODS.temporarily("toy", Toy(), "the last two"):
        result = found("auto")
        assert result.method == "toy"
        assert "toy 0.5 (5 windows)" in result.reason
    with METHODS.temporarily("toy", Toy(predicts=1e6), "the last two"):
        assert found("auto").method != "toy"


@pytest.mark.parametrize(
    ("guess", "fault"),
    [
        (Segment(0, 1), "blocks 0-1, which may not go"),  # no block would stay before it
        (Segment(3, 3), "blocks 3-3, which may not go"),  # not two blocks
        (Segment(4, 5), "blocks 4-5, which may not go"),  # no target can express it
    ],
)
def test_a_method_that_proposes_what_may_not_go_is_refused(guess: Segment, fault: str) -> None:
    with (
        METHODS.temporarily("toy", Toy(guess), "wrong"),
        pytest.raises(ClpEdgeError, match=f"the search method toy proposes {fault}"),
    ):
        found("toy", allowed=lambda segment: segment.first != 4)


def test_a_method_that_proposes_nothing_is_refused() -> None:
    class Silent(Toy):
        def propose(self, problem: Problem, progress: Progress) -> Proposal:
            return Proposal((), 0.0)

    with (
        METHODS.temporarily("silent", Silent(), "says nothing"),
        pytest.raises(ClpEdgeError, match="the search method silent proposes no window"),
    ):
        found("silent")


def test_the_configuration_knows_the_rows_and_one_spelling_of_each() -> None:
    assert SearchConfig("Oracle").method == "exact"
    assert SearchConfig("AUTO").method == "auto"
    with (
        pytest.raises(
            UsageError, match=r"did you mean toy\? known: auto, exact, halving, gate, toy"
        ),
        METHODS.temporarily("toy", Toy(), "the last two"),
    ):
        SearchConfig("toi")
    with pytest.raises(UsageError, match="unknown search method 'toy'"):
        SearchConfig("toy")


def fresh(module: ModuleType) -> ModuleType:
    """A second copy of a module, run now: what a program that registers rows first would see."""
    spec = importlib.util.spec_from_file_location("fresh", str(module.__file__))
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def help_of_compress() -> str:
    typer = pytest.importorskip("typer")  # a machine with a GPU may have no command line
    from typer.testing import CliRunner

    from clp_edge.commands import compress

    app = typer.Typer()
    app.command()(fresh(compress).run)
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "400", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return result.output


def test_the_help_lists_what_is_registered() -> None:
    assert "the last two" not in help_of_compress()
    with METHODS.temporarily("toy", Toy(), "the last two"):
        text = help_of_compress()
    for row in ("auto: the one predicted", "exact: the KL of every", "toy: the last two"):
        assert row in text
