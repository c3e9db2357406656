"""How the runner fits its rounds into the time it has, on a slow or a busy machine too."""

from __future__ import annotations

import pytest

from clp_edge.bench.runner import BenchSettings
from tests.bench.test_ceiling import write_gguf
from tests.bench.world import DENSE, HEALED, World, bench


def test_pitfall_19_warm_up_goes_on_until_the_speeds_settle(tmp_path):
    settings = BenchSettings(8, 8, rounds=12, warmup_rounds=1, threads=1, time_budget_s=None)
    calm = bench(World(), [DENSE], settings, tmp_path)
    assert calm.settings.warmup_rounds == 3  # three runs that agree
    slow = bench(World(slow_start=2), [DENSE], settings, tmp_path)
    assert slow.settings.warmup_rounds == 5  # two slow ones, then three that agree
    never = bench(World(slow_start=50), [DENSE], settings, tmp_path)
    assert never.settings.warmup_rounds == 6
    assert any("had not settled" in text for text in never.warnings)
    assert not any("had not settled" in text for text in slow.warnings)
    few = BenchSettings(8, 8, rounds=4, warmup_rounds=1, threads=1, time_budget_s=None)
    short = bench(World(slow_start=50), [DENSE], few, tmp_path)
    assert short.settings.warmup_rounds == 3  # not more warming than measuring


def test_the_time_budget_ends_the_rounds_but_not_below_six(tmp_path):
    # One round of both takes about 0.32 s of the world's time.
    settings = BenchSettings(prompt=8, generate=8, rounds=50, threads=1, time_budget_s=4.5)
    world = World()
    result = bench(world, [DENSE, HEALED], settings, tmp_path)
    assert 6 < result.settings.rounds < 14
    assert world.now <= 4.5
    assert any("time budget ended the bench" in text for text in result.warnings)
    tight = BenchSettings(prompt=8, generate=8, rounds=50, threads=1, time_budget_s=1.5)
    assert bench(World(), [DENSE, HEALED], tight, tmp_path).settings.rounds == 6


def test_pitfall_27_a_slow_machine_gets_a_shorter_test_within_the_budget(tmp_path):
    """At 20 and 2 tokens/s a run of 512 and 128 takes 90 s: seven of each would be 20 minutes."""
    write_gguf(tmp_path / "dense.gguf", 5)
    write_gguf(tmp_path / "healed.gguf", 4)
    slow = [(*DENSE[:3], 2.0, None, "CPU"), (*HEALED[:3], 2.4, None, "CPU")]
    world = World()
    result = bench(world, slow, BenchSettings(rounds=8, threads=2, time_budget_s=180.0), tmp_path)
    assert world.now < 1.2 * 180.0  # the looks of this slow machine take 20 s
    assert result.settings.rounds >= 6
    assert result.settings.warmup_rounds == 1
    test = result.runs[0].test
    assert 32 <= test.prompt < 512
    assert 16 <= test.generate < 128
    assert result.speedup[0].test == test
    assert result.speedup[0].decode.median == pytest.approx(1.2)
    assert len(result.runs[0].decode_tps) == result.settings.rounds
    told = [text for text in result.warnings if "shortened from 512" in text]
    assert len(told) == 1
    assert f"to {test.prompt} tokens and the answer from 128 to {test.generate}" in told[0]
    whole = World()
    fast = BenchSettings(rounds=6, threads=2, time_budget_s=180.0)
    assert bench(whole, [DENSE], fast, tmp_path).runs[0].test.prompt == 512


def test_pitfall_27_a_machine_that_slows_down_later_is_stopped(tmp_path):
    """Fast while it is looked at, a hundredth of it afterwards: no bench of an hour."""

    class Slowing(World):
        def __getattribute__(self, name):
            if name == "slowness":
                return 100.0 if len(self.calls) > 12 else 1.0
            return super().__getattribute__(name)

    world = Slowing()
    settings = BenchSettings(rounds=8, threads=2, time_budget_s=90.0)
    result = bench(world, [DENSE, HEALED], settings, tmp_path)
    assert world.now < 10 * 90.0  # one round of it takes 450 s
    assert result.settings.rounds < 6
    assert any("time budget ended the bench after" in text for text in result.warnings)
    assert result.speedup[0].confidence < 0.95


def test_pitfall_27_a_busy_machine_gets_more_rounds_whose_extremes_do_not_count(tmp_path):
    stat = tmp_path / "proc" / "stat"
    stat.parent.mkdir()
    ticks = [0, 0]

    def sleep(seconds: float) -> None:  # two processors, one of them taken all the time
        ticks[0] += round(100 * seconds)
        ticks[1] += round(200 * seconds)
        stat.write_text(f"cpu {ticks[0]} 0 0 {ticks[1] - ticks[0]} 0 0 0 0 0 0\n")

    sleep(0.0)
    settings = BenchSettings(prompt=8, generate=8, rounds=6, threads=1, time_budget_s=90.0)
    result = bench(World(), [DENSE, HEALED], settings, tmp_path, sleep=sleep)
    assert result.settings.waited_for_calm_s == 9.0  # a tenth of the budget
    assert result.settings.rounds == 12
    assert 0.95 <= result.speedup[0].confidence < 0.97  # the third lowest and highest
    tight = BenchSettings(prompt=8, generate=8, rounds=6, threads=1, time_budget_s=3.0)
    assert bench(World(), [DENSE, HEALED], tight, tmp_path, sleep=sleep).settings.rounds < 12


def test_several_tests_are_shortened_together(tmp_path):
    slow = [(*DENSE[:3], 2.0, None, "CPU"), (*HEALED[:3], 2.4, None, "CPU")]
    settings = BenchSettings((256, 512), 128, rounds=6, threads=1, time_budget_s=180.0)
    result = bench(World(), slow, settings, tmp_path)
    tests = [run.test for run in result.runs if run.artifact == "dense"]
    assert len(tests) == 2
    assert tests[0].prompt < tests[1].prompt < 512
    assert any("the others in the same measure" in text for text in result.warnings)


def test_the_delay_is_slept_before_each_measurement_and_counts_in_the_budget(tmp_path):
    world, slept = World(), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        world.now += seconds

    settings = BenchSettings(8, 8, rounds=50, threads=1, time_budget_s=60.0, delay_s=1.5)
    result = bench(world, [DENSE, HEALED], settings, tmp_path, sleep=sleep)
    timed = 2 * (result.settings.warmup_rounds + result.settings.rounds)
    assert slept.count(1.5) == timed
    assert 6 <= result.settings.rounds < 20
    assert world.now <= 60.0
    assert result.settings.delay_s == 1.5


def test_pitfall_27_a_neighbour_that_comes_later_is_told_and_gets_more_rounds(tmp_path):
    """Quiet before the first run; from the fourth timed run on others take half of the machine."""
    stat = tmp_path / "proc" / "stat"
    stat.parent.mkdir()
    stat.write_text("cpu 0 0 0 1000 0 0 0 0 0 0\n")

    class Noisy(World):
        busy, idle = 0, 1000

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "now" and value:
                self.busy += 50 if len(self.calls) > 12 else 0
                self.idle += 50
                stat.write_text(f"cpu {self.busy} 0 0 {self.idle} 0 0 0 0 0 0\n")

    settings = BenchSettings(8, 8, rounds=6, threads=1, time_budget_s=None)
    result = bench(Noisy(), [DENSE, HEALED], settings, tmp_path, sleep=lambda seconds: None)
    shares = result.settings.busy_share_of_others
    assert result.settings.busy_share_before is None
    assert len(shares) == result.settings.rounds == 12
    assert shares[0] == 0.0
    assert shares[-1] == pytest.approx(0.5, abs=0.1)
    assert all(len(run.decode_tps) == 12 for run in result.runs)  # none is dropped
    told = [text for text in result.warnings if "other programs took up to 50%" in text]
    assert len(told) == 1
    quiet = bench(World(), [DENSE, HEALED], settings, tmp_path, sleep=lambda seconds: None)
    assert quiet.settings.rounds == 6
    assert not any("other programs took" in text for text in quiet.warnings)
