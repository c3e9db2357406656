"""--prune auto: which cut is tried next, and what a run makes of the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clp_edge.config import CompressConfig, GateConfig
from clp_edge.errors import ClpEdgeError, QualityGateError, UsageError
from clp_edge.evaluate.gate import QualityGate
from clp_edge.pipeline import compress, preflight, tries
from clp_edge.pipeline.sizing import MOST_TRIES, interpolated, next_try
from clp_edge.pipeline.stages import evaluate as evaluate_stage
from clp_edge.progress import Quiet
from clp_edge.records import QualityRecord, Report, TryRecord
from tests.conftest import save_tiny_llama, write_words


def ask(predicted: dict[int, float], truth: dict[int, float]) -> list[tuple[int, float]]:
    """All tries of a model whose files measure `truth`."""
    tried: list[tuple[int, float]] = []
    while (count := next_try(predicted, tried)) is not None:
        assert count not in dict(tried), "a cut is tried once"
        tried.append((count, truth[count]))
    return tried


CURVE = {1: 0.1, 2: 0.2, 3: 0.4, 4: 0.7, 5: 1.1, 6: 1.6, 7: 2.5}


def test_a_curve_that_is_right_takes_the_largest_that_passes_and_looks_one_further() -> None:
    assert ask(CURVE, CURVE) == [(4, 0.7), (5, 1.1)]


def test_a_hopeful_curve_is_corrected_downwards() -> None:
    truth = {count: 2 * share for count, share in CURVE.items()}
    tried = ask(CURVE, truth)
    assert tried[:2] == [(4, 1.4), (3, 0.8)]
    assert max(count for count, share in tried if share <= 1) == 3


def test_a_gloomy_curve_is_corrected_upwards() -> None:
    truth = {count: share / 2 for count, share in CURVE.items()}
    assert ask(CURVE, truth) == [(4, 0.35), (6, 0.8)], "7 is predicted at 1.25: no look at it"


def test_there_are_never_more_than_three_tries_and_the_last_hope_is_the_smallest() -> None:
    truth = dict.fromkeys(CURVE, 50.0)
    tried = ask(CURVE, truth)
    assert len(tried) <= MOST_TRIES
    assert tried[-1][0] == 1


def test_between_two_predictions_the_curve_rises() -> None:
    found = interpolated({1: 0.1, 4: 0.8, 6: 0.7}, range(1, 9))
    assert sorted(found) == [1, 2, 3, 4, 5, 6], "nothing is made up beyond the last point"
    assert found[2] == pytest.approx(0.2)
    assert found[3] == pytest.approx(0.4)
    assert found[6] == found[4], "a larger cut is never predicted to be better"


def test_auto_without_a_gate_is_wrong_usage_with_the_cure() -> None:
    with pytest.raises(UsageError, match="--max-ppl-ratio"):
        CompressConfig.of(prune="auto")
    with pytest.raises(UsageError, match="no share"):
        CompressConfig.of(prune="much")
    with pytest.raises(UsageError, match="exclude each other"):
        CompressConfig.of(prune="auto", drop_blocks=2, gate=GateConfig(max_kl=1.0))


def record(**given: Any) -> QualityRecord:
    return QualityRecord(None, None, given.pop("kl", None), None, None, {}, **given)


def test_the_share_of_what_is_allowed_agrees_with_the_gate() -> None:
    gate = QualityGate(max_ppl_ratio=1.21, max_kl=0.4)
    assert gate.share(record(ppl_ratio=1.1, kl=0.1)) == pytest.approx(0.5, abs=1e-3)
    assert gate.share(record(ppl_ratio=1.1, kl=0.8)) == pytest.approx(2.0)
    assert gate.share(record(ppl_ratio=None, kl=0.1)) == float("inf"), "unmeasured is no pass"
    assert gate.share(record(ppl_ratio=1.21, kl=0.4)) <= 1.0
    assert not gate.failures(record(ppl_ratio=1.21, kl=0.4))
    assert gate.allowed_kl == pytest.approx(0.19062, abs=1e-4)


class Told(Quiet):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tries")
    save_tiny_llama(folder / "tiny", blocks=8)
    write_words(folder / "words.txt", seed=0, paragraphs=300)
    write_words(folder / "other.txt", seed=1, paragraphs=120)
    return folder


def config(place: Path, out: str, **gate: float) -> CompressConfig:
    return CompressConfig.of(
        str(place / "tiny"), targets=("gguf-q8_0",), preset="quick", prune="auto", heal="refit",
        calibration=str(place / "words.txt"), eval_text=str(place / "other.txt"),
        eval_tokens="2048", bench=False, gate=GateConfig(**gate), out=place / out, threads=1,
    )  # fmt: skip


def go(asked: CompressConfig) -> tuple[Any, list[str]]:
    told = Told()
    return compress(asked, observer=told, plan=preflight(asked)), told.notes


@pytest.mark.llama
def test_the_largest_cut_that_passes_is_what_stands_in_the_folder(place: Path) -> None:
    outcome, notes = go(config(place, "loose", max_ppl_ratio=1.05))
    tried = outcome.report.tries
    assert tried is not None
    assert 1 <= len(tried.tries) <= MOST_TRIES
    best = max((one for one in tried.tries if one.passed), key=lambda one: one.count)
    assert tried.chosen == best.count == len(outcome.report.search.dropped)
    assert outcome.missed == ()
    outcome.require()
    assert outcome.report.quality_gate.passed
    (file,) = outcome.report.artifacts
    shipped = outcome.report.quality[file.name]
    assert best.ppl_ratio == pytest.approx(shipped.ppl_ratio, rel=1e-4)
    assert (outcome.out / file.path).is_file()
    assert [p.name for p in (outcome.out / "gguf").glob("*.gguf")] == [Path(file.path).name]
    assert any("try 1 of at most 3" in note for note in notes)
    again, _ = go(config(place, "loose", max_ppl_ratio=1.05))
    assert again.reused
    with pytest.raises(ClpEdgeError, match="finished run of another command"):
        go(config(place, "loose", max_ppl_ratio=1.04))


@pytest.mark.llama
def test_where_none_passes_the_smallest_stays_and_says_that_it_failed(place: Path) -> None:
    outcome, notes = go(config(place, "strict", max_kl=1e-5))
    tried = outcome.report.tries
    assert tried.chosen == min(one.count for one in tried.tries)
    assert not any(one.passed for one in tried.tries)
    assert "no cut passes" in tried.note
    assert tried.note in notes
    assert outcome.missed
    assert not outcome.report.quality_gate.passed
    with pytest.raises(QualityGateError):
        outcome.require()
    assert any("KL to the dense model is" in text for text in outcome.report.warnings)


@pytest.mark.llama
def test_an_interrupted_second_try_goes_on_with_the_second(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(place, "broken", max_kl=50.0)
    two_then_one = {0: 2, 1: 1, 2: None}
    monkeypatch.setattr(tries, "next_try", lambda shares, done: two_then_one[len(done)])
    honest, calls = evaluate_stage.STAGE.run, []

    def falls(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*given)

    object.__setattr__(evaluate_stage.STAGE, "run", falls)
    try:
        with pytest.raises(KeyboardInterrupt):
            go(asked)
        state = json.loads((asked.out / "clp_edge.json").read_text())
        assert state["status"] == "unfinished"
        outcome, notes = go(asked)
    finally:
        object.__setattr__(evaluate_stage.STAGE, "run", honest)
    tried: tuple[TryRecord, ...] = outcome.report.tries.tries
    assert [one.count for one in tried] == [2, 1]
    assert len(outcome.report.search.dropped) == 2, "the larger one passed"
    assert len(calls) == 3, "its files were set aside and brought back, not made again"
    assert not (asked.out / tries.PASSED).exists()
    (file,) = outcome.report.artifacts
    assert outcome.report.quality[file.name].kl == pytest.approx(tried[0].kl, rel=1e-4)
    assert [p.name for p in (outcome.out / "gguf").glob("*.gguf")] == [Path(file.path).name]
    assert not any("try 1 of" in note for note in notes), "the first try was kept"
    assert any("try 2 of" in note for note in notes)
    assert isinstance(outcome.report, Report)
