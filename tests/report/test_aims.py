"""Pareto fronts, which aim a cut serves, and what --aim chooses: pure functions of the figures."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from clp_edge.records import ContextMemoryRecord, EnergyRecord
from clp_edge.report.aims import AIMS, Measured, front, fronts, judge, judged, sentence
from clp_edge.report.choosing import below_bar, choose
from tests.report.sample import artifact, quality, run, summary


def one(
    name: str,
    *,
    mb: float,
    kl: float | None,
    decode: float | None = None,
    ttft: float = 1000.0,
    wobble: float = 0.0,
) -> Measured:
    """A file named like "dense Q4_K_M"; `wobble` of its rounds' decode speeds."""
    side, suffix = name.split()
    written = artifact(name, side, int(mb * 1e6), target=f"gguf-{suffix.lower()}")  # type: ignore[arg-type]
    timed = None
    if decode is not None:
        rounds = tuple(decode * (1 + wobble * (-1) ** n) for n in range(6))
        base = run(name, written.variant, decode)
        timed = replace(
            base,
            decode_tps=rounds,
            ttft_ms=(ttft,) * 6,
            summary=base.summary | {"ttft_ms": summary(ttft, 5.0)},
        )
    found = None if kl is None else quality(20.0, kl, 0.9)
    return Measured(written, found, timed, ContextMemoryRecord(4096, written.bytes, 10_000_000))


def dominated(points: list[tuple[float, float]], i: int) -> bool:
    x, y = points[i]
    return any(a <= x and b <= y and (a < x or b < y) for a, b in points)


@pytest.mark.parametrize("seed", range(40))
def test_the_front_is_exactly_what_no_other_point_beats(seed: int) -> None:
    rng = random.Random(seed)
    few = rng.choice([3, 5, 100])  # few values: many ties and equal points
    points = [(float(rng.randrange(few)), float(rng.randrange(few))) for _ in range(rng.randrange(1, 14))]  # fmt: skip  # noqa: E501
    found = front(points)
    assert found == tuple(i for i in range(len(points)) if not dominated(points, i))
    order = list(range(len(points)))
    rng.shuffle(order)
    again = front([points[i] for i in order])
    assert {order[i] for i in again} == set(found), "the order of the files decides nothing"


def test_a_front_of_nothing_and_of_what_was_not_measured() -> None:
    assert front([]) == ()
    assert front([(math.nan, 0.1), (1.0, math.inf), (2.0, 0.3)]) == (2,)


FILES = [
    one("dense Q8_0", mb=144, kl=0.001, decode=100, ttft=1000),
    one("dense Q4_K_M", mb=105, kl=0.06, decode=150, ttft=1000),
    one("dense Q2_K", mb=88, kl=0.30, decode=120, ttft=1100),
    one("healed Q8_0", mb=122, kl=0.32, decode=118, ttft=800),
    one("healed Q4_K_M", mb=91, kl=0.38, decode=175, ttft=790),
]


def test_speeds_are_on_the_front_the_other_way_round() -> None:
    found = fronts(FILES)
    assert found["bytes"] == ("dense Q8_0", "dense Q4_K_M", "dense Q2_K")
    assert found["decode"] == ("dense Q8_0", "dense Q4_K_M", "healed Q4_K_M")
    assert "healed Q4_K_M" in found["ttft"]
    assert "energy" not in found


def test_a_dense_file_is_better_only_with_no_more_kl_and_beyond_the_noise() -> None:
    cut = FILES[3]
    found = judge(AIMS["decode"], cut, FILES)
    assert found.word == "rival"
    assert found.rival is FILES[1], "Q2_K is faster too, and of more KL than Q4_K_M"
    assert found.rival_gain.median == pytest.approx(150 / 118)
    assert found.gain.median == pytest.approx(1.18)
    noisy = one("dense Q4_K_M", mb=105, kl=0.06, decode=119, wobble=0.2)
    files = [FILES[0], noisy, cut]
    assert judge(AIMS["decode"], cut, files).word == "matched", "not surely beaten, and nearer"
    assert "is not surely better than dense Q4_K_M's (1.0" in sentence(cut, files)
    slower = one("dense Q4_K_M", mb=105, kl=0.06, decode=110)
    assert judge(AIMS["decode"], cut, [FILES[0], slower, cut]).word == "served"
    assert judge(AIMS["decode"], cut, [slower, cut]).word == "not measured", "no file of its type"
    worse = one("dense Q4_K_M", mb=105, kl=0.5, decode=150)
    assert judge(AIMS["decode"], cut, [FILES[0], worse, cut]).word == "served"


def test_the_sentence_names_every_aim_its_interval_and_the_better_file() -> None:
    text = sentence(FILES[4], FILES)
    assert text.startswith("held against 2 other dense files, healed Q4_K_M serves decode (1.17x, ")
    assert "time to first token (1.27x, 1.27 to 1.27)" in text
    assert "for bytes dense Q2_K is better (1.03x; KL 0.300 against 0.380)" in text
    assert "for memory at 4,096 tokens dense Q2_K is better" in text
    assert text.endswith("not measured: energy")


def test_without_a_frontier_nothing_is_claimed_of_other_dense_files() -> None:
    pair = [FILES[1], FILES[4]]
    text = sentence(FILES[4], pair)
    assert text.startswith("against the dense file of the same type alone")
    assert "is better" not in text
    assert "harder quantizations of the dense model were not compared (--frontier)" in text
    alone = [found.word for found in judged(FILES[4], [FILES[4]])]
    assert set(alone) == {"not measured"}, "a cut alone serves nothing that is known"


def test_energy_and_single_rounds() -> None:
    def with_energy(file: Measured, joules: tuple[float, ...]) -> Measured:
        told = EnergyRecord(None, j_per_token=joules)
        return replace(file, run=replace(file.run, energy=told, j_per_token=joules[0]))

    dense, cut = with_energy(FILES[1], (0.5,) * 6), with_energy(FILES[4], (0.4,) * 6)
    found = judge(AIMS["energy"], cut, [dense, cut])
    assert found.word == "served"
    assert found.gain.median == pytest.approx(1.25)
    few = with_energy(FILES[4], (0.4, 0.4))
    assert judge(AIMS["energy"], few, [with_energy(FILES[1], (0.5, 0.5)), few]).word == "not better"
    assert AIMS["energy"].gain(with_energy(FILES[1], (0.5,)), with_energy(FILES[4], (0.4,))) is None


def free(files: list[Measured]) -> dict[str, tuple[str, ...]]:
    return {file.name: () for file in files}


def test_the_aims_choice_is_the_best_that_passes_and_may_be_no_cut() -> None:
    found = choose("bytes", FILES, "anything", free(FILES))
    assert (found.chosen, found.cut) == ("dense Q2_K", False)
    assert found.why.startswith("no cut: dense Q2_K has the best bytes (88.0 MB) of 5 of 5 files")
    found = choose("ttft", FILES, "anything", free(FILES))
    assert (found.chosen, found.cut) == ("healed Q4_K_M", True)
    assert "healed Q8_0 is next (1.01x" in found.why
    bar, misses = below_bar(FILES)
    found = choose("decode", FILES, bar, misses)
    assert found.chosen == "dense Q4_K_M"
    assert set(found.failed) == {"dense Q2_K", "healed Q8_0", "healed Q4_K_M"}
    assert "dense Q4_K_M" in bar


def test_a_choice_within_the_noise_says_so() -> None:
    near = [
        one("dense Q4_K_M", mb=105, kl=0.06, decode=150),
        one("healed Q4_K_M", mb=91, kl=0.05, decode=151, wobble=0.1),
    ]
    found = choose("decode", near, "", free(near))
    assert found.chosen == "healed Q4_K_M"
    assert "within the noise" in found.why


def test_nothing_passes_and_what_was_not_measured_cannot() -> None:
    unjudged = [one("dense Q4_K_M", mb=105, kl=None), one("healed Q4_K_M", mb=91, kl=0.1)]
    bar, misses = below_bar(unjudged)
    found = choose("bytes", unjudged, bar, misses)
    assert found.chosen is None
    assert not found.cut
    assert "was not measured" in found.bar
    untimed = choose("decode", unjudged, "", free(unjudged))
    assert untimed.failed["healed Q4_K_M"] == ("its decode was not measured",)
