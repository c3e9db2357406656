"""The runner on sessions that cost nothing: known speeds in, exact figures out."""

from __future__ import annotations

import pytest

from clp_edge import waiting
from clp_edge.bench.ceiling import (
    decode_bounds,
    ideal_decode,
    ideal_prefill,
    mean_decode_depth,
    read_card,
)
from clp_edge.bench.outcome import token_times
from clp_edge.bench.runner import BenchItem, BenchSettings, run_bench
from clp_edge.errors import UsageError
from clp_edge.records import BandwidthRecord, BenchRecord, TestRecord, from_plain, to_plain
from tests.bench.test_ceiling import write_gguf
from tests.bench.world import BANDWIDTH, DENSE, HEALED, FakeSession, World, bench


def test_known_speeds_give_exact_speedups_and_the_contract(tmp_path):
    dense = read_card(write_gguf(tmp_path / "dense.gguf", 5))
    healed = read_card(write_gguf(tmp_path / "healed.gguf", 4))
    settings = BenchSettings(prompt=64, generate=16, rounds=7, threads=2)
    result = bench(World(), [DENSE, HEALED], settings, tmp_path)
    pair = result.speedup[0]
    assert (pair.target, pair.runtime, pair.before, pair.after, pair.confidence, pair.n) == (
        "gguf-q4_0",
        "fake",
        "dense",
        "healed",
        1.0 - 2.0 / 2**7,
        7,
    )
    # The drift is equal inside a round, so the ratio is exact although every sample differs.
    assert len(set(result.runs[0].decode_tps)) == 7
    for name in ("prefill", "decode"):
        ratio = getattr(pair, name)
        assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.2, 1.2, 1.2))
    assert 1.0 < pair.ttft.median < 1.2  # the constant 5 ms is not cut
    assert pair.decode.before < pair.decode.after
    depth = mean_decode_depth(16)
    assert pair.decode.ideal == pytest.approx(ideal_decode(dense, healed, depth))
    cache = result.settings.memory_bandwidth.cache_bytes
    assert pair.decode.bounds == decode_bounds(dense, healed, depth, cache)
    assert pair.prefill.bounds == {}
    assert pair.prefill.ideal == pytest.approx(ideal_prefill(dense, healed, 64))
    assert pair.ttft.ideal is None

    run = result.runs[1]
    assert (run.status, run.reason, run.variant) == ("ok", None, "healed")
    assert run.test == TestRecord(prompt=64, generate=16, depth=0)
    assert (run.load_ms, run.peak_rss_mib) == (12.5, 160.0)
    assert run.j_per_token is run.peak_gpu_mib is None
    assert run.bytes_per_token == healed.bytes_per_token(depth)
    assert run.ideal_decode_tps == pytest.approx(10e9 / run.bytes_per_token)
    median = run.summary["decode_tps"]
    assert median.n == 7
    assert median.low <= median.median <= median.high
    assert run.mbu == pytest.approx(median.median * run.bytes_per_token / 10e9)
    assert result.settings.threads == 2
    assert result.settings.memory_bandwidth_gb_s == 10.0
    assert result.settings.memory_bandwidth == BANDWIDTH
    assert from_plain(to_plain(result), BenchRecord) == result


def test_pitfall_19_rounds_are_interleaved_in_a_seeded_random_order(tmp_path):
    specs = [(name, "dense", name, 50.0, None, "CPU") for name in ("a", "b", "c")]
    world = World()
    settings = BenchSettings(8, 8, rounds=8, threads=1, seed=5, time_budget_s=None)
    result = bench(world, specs, settings, tmp_path)
    order = result.settings.order
    assert len(order) == 8
    assert all(sorted(names) == ["a", "b", "c"] for names in order)
    assert len({tuple(names) for names in order}) > 1
    warm = 3 * result.settings.warmup_rounds
    assert [name for name, _ in world.calls[warm:]] == [name for names in order for name in names]
    # All artifacts of a round get the same tokens; each session is opened once, and closed.
    seeds = [{seed for _, seed in world.calls[i : i + 3]} for i in range(0, len(world.calls), 3)]
    assert all(len(of_round) == 1 for of_round in seeds)
    assert [name for name, _, _ in world.opened] == ["a", "b", "c"]
    assert sorted(world.closed) == ["a", "b", "c"]
    again = bench(World(), specs, settings, tmp_path)
    assert again.settings.order == order


@pytest.mark.parametrize("dies_at", [0, 1, 5])
def test_pitfall_14_one_that_dies_leaves_the_others_measured(tmp_path, dies_at):
    world = World()
    dying = ("broken", "healed", "gguf-q4_0", 60.0, dies_at, "CPU")
    settings = BenchSettings(prompt=8, generate=8, rounds=4, threads=1)
    result = bench(world, [DENSE, dying, HEALED], settings, tmp_path)
    by_name = {run.artifact: run for run in result.runs}
    assert by_name["broken"].status == "failed"
    assert "broken" in by_name["broken"].reason
    assert by_name["broken"].summary == {}
    assert by_name["broken"].mbu is None
    for name in ("dense", "healed"):
        assert by_name[name].status == "ok"
        assert len(by_name[name].decode_tps) == 4
    assert [pair.after for pair in result.speedup] == ["healed"]
    tried = [name for name, _ in world.calls].count("broken")
    assert tried == dies_at  # never asked again
    assert {"dense", "healed"} <= set(world.closed)


def test_pairs_share_their_target_and_a_control_is_no_pair(tmp_path):
    specs = [
        DENSE,
        HEALED,
        ("control", "control", "gguf-q4_0", 50.0, None, "CPU"),
        ("other", "healed", "gguf-q8_0", 70.0, None, "CPU"),
    ]
    result = bench(World(), specs, BenchSettings(prompt=8, generate=8, rounds=2), tmp_path)
    assert [(p.before, p.after) for p in result.speedup] == [("dense", "healed")]
    assert [run.artifact for run in result.runs] == ["dense", "healed", "control", "other"]


def test_pitfall_21_no_share_of_bandwidth_where_it_means_nothing(tmp_path):
    write_gguf(tmp_path / "dense.gguf", 5)
    write_gguf(tmp_path / "healed.gguf", 4)
    gpu = ("healed", "healed", "gguf-q4_0", 60.0, None, "CUDA")
    settings = BenchSettings(prompt=8, generate=8, rounds=2, threads=1)
    runs = bench(World(), [DENSE, gpu], settings, tmp_path).runs
    assert runs[0].mbu is not None
    assert runs[1].mbu is runs[1].ideal_decode_tps is None  # the processor's is not the GPU's
    assert runs[1].bytes_per_token > 0


@pytest.mark.parametrize("cache_bytes", [1 << 30, None])
def test_pitfall_21_mbu_is_null_in_the_cache_or_without_a_figure(tmp_path, cache_bytes):
    write_gguf(tmp_path / "m.gguf", 5)
    world = World()
    measured = (
        BandwidthRecord(10.0, 12.0, 4 << 30, cache_bytes, 2, 9) if cache_bytes is not None else None
    )
    result = run_bench(
        [BenchItem("m", tmp_path / "m.gguf", "dense", "gguf-q8_0")],
        BenchSettings(prompt=8, generate=8, rounds=2, threads=1),
        open_artifact=lambda path, **rest: FakeSession(world, "m", 50.0, None, "CPU"),
        measure_bandwidth=lambda threads: measured,
        clock=lambda: world.now,
        root=tmp_path,
    )
    run = result.runs[0]
    assert run.mbu is run.ideal_decode_tps is None
    assert run.bytes_per_token > 0


def test_pitfall_27_how_the_threads_wait_and_the_load_are_recorded(tmp_path, monkeypatch):
    for name in waiting.WAITING:
        monkeypatch.delenv(name, raising=False)
    stat = tmp_path / "proc" / "stat"
    stat.parent.mkdir()
    ticks = [0, 0]

    def sleep(seconds: float) -> None:  # two processors, one of them taken for 3 s
        taken = 0 if ticks[1] > 600 else 1
        ticks[0] += round(100 * seconds) * taken
        ticks[1] += round(200 * seconds)
        stat.write_text(f"cpu {ticks[0]} 0 0 {ticks[1] - ticks[0]} 0 0 0 0 0 0\n")

    sleep(0.0)
    settings = BenchSettings(prompt=8, generate=8, rounds=6, threads=1)
    said: list[str] = []
    result = bench(
        World(),
        [DENSE],
        settings,
        tmp_path,
        sleep=sleep,
        progress=lambda d, t, n="": said.append(n),
    )
    found = result.settings
    assert found.waiting == waiting.SHORT_SPIN
    assert found.busy_share_before == result.device["busy_share_before"] == 0.5
    assert found.busy_share_after_wait == 0.0
    assert 2.0 < found.waited_for_calm_s < 6.0
    assert any("waiting for other programs" in text for text in said)
    assert any("and calm after a wait" in text for text in result.warnings)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    result = bench(World(), [DENSE], settings, tmp_path, sleep=sleep)
    assert result.settings.waiting == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert any("OMP_WAIT_POLICY=PASSIVE" in text for text in result.warnings)


def test_the_context_holds_the_longer_part_after_the_depth(tmp_path):
    world = World()
    bench(world, [DENSE], BenchSettings(prompt=40, generate=8, depth=100, rounds=1), tmp_path)
    assert world.opened[0][2] >= 140


def test_each_combination_of_the_lists_is_a_test_of_its_own(tmp_path):
    dense = read_card(write_gguf(tmp_path / "dense.gguf", 5))
    healed = read_card(write_gguf(tmp_path / "healed.gguf", 4))
    settings = BenchSettings((64, 32), (16, 8), (0, 100), rounds=6, threads=1, time_budget_s=None)
    world = World()
    result = bench(world, [DENSE, HEALED], settings, tmp_path)
    wanted = [(64, 16, 0), (64, 8, 0), (32, 16, 0), (32, 8, 0)]
    wanted += [(p, n, 100) for p, n, _ in wanted]
    assert [(t.prompt, t.generate, t.depth) for t in settings.tests] == wanted
    assert settings.tests[0].name == "pp64 tg16"
    assert settings.tests[-1].name == "pp32 tg8 @ d100"
    assert [(r.artifact, r.test) for r in result.runs] == [
        (name, test) for name in ("dense", "healed") for test in settings.tests
    ]
    assert all(len(run.decode_tps) == 6 for run in result.runs)
    assert [pair.test for pair in result.speedup] == list(settings.tests)
    for pair in result.speedup:
        assert pair.decode.median == pytest.approx(1.2)
        depth = mean_decode_depth(pair.test.generate, pair.test.depth)
        assert pair.decode.ideal == pytest.approx(ideal_decode(dense, healed, depth))
    assert world.opened[0][2] == 100 + 64 + 1
    # A pair is measured one right after the other, the tests in another order each round.
    counted = world.tests[2 * 8 * result.settings.warmup_rounds :]
    assert counted[0::2] == counted[1::2]
    rounds = {tuple(counted[i : i + 16 : 2]) for i in range(0, 96, 16)}
    assert len(rounds) > 1
    assert all(sorted(one) == sorted(wanted) for one in rounds)
    assert len(result.settings.order[0]) == 16
    assert "dense pp32 tg8 @ d100" in result.settings.order[0]
    assert from_plain(to_plain(result), BenchRecord) == result


def test_fewer_than_two_rounds_give_no_pair_and_say_so(tmp_path):
    settings = BenchSettings(8, 8, rounds=1, threads=1)
    result = bench(World(), [DENSE, HEALED], settings, tmp_path)
    assert [run.status for run in result.runs] == ["ok", "ok"]
    assert result.speedup == ()
    assert any("fewer than two rounds" in text for text in result.warnings)
    two = bench(World(), [DENSE, HEALED], BenchSettings(8, 8, rounds=2, threads=1), tmp_path)
    assert two.speedup[0].n == 2
    assert not any("fewer than two" in text for text in two.warnings)


def test_every_artifact_gets_the_same_processors_and_its_share_of_the_gpu(tmp_path):
    world = World()
    settings = BenchSettings(8, 8, rounds=2, threads=1, cpus=(3,), gpu_layers=7, device="cpu")
    result = bench(world, [DENSE, HEALED], settings, tmp_path)
    assert result.settings.cpus == (3,)
    assert [how["cpus"] for how in world.how] == [(3,), (3,)]
    assert [how["gpu_share"] for how in world.how] == [0.5, 1.0]
    assert {(how["gpu_layers"], how["device"]) for how in world.how} == {(7, "cpu")}
    # More threads than there are processors are not pinned.
    many = bench(World(), [DENSE], BenchSettings(8, 8, rounds=2, threads=10_000), tmp_path)
    assert many.settings.cpus is None


def test_tokens_dates_and_versions_are_kept(tmp_path):
    result = bench(World(), [DENSE], BenchSettings(8, 4, rounds=3, threads=1), tmp_path)
    run = result.runs[0]
    assert [len(ms) for ms in run.token_ms] == [4, 4, 4]
    for tokens, speed in zip(run.token_ms, run.decode_tps, strict=True):
        assert sum(tokens) == pytest.approx(4e3 / speed, rel=5e-3)  # three significant places
    assert (run.gpu_layers, run.layers, run.backend_reason) == (2, 6, "asked for")
    assert result.taken.endswith("Z")
    assert set(result.versions) == {"clp-edge", "python"}


def test_token_times_are_short_and_never_too_many():
    assert token_times([(12.3456, 0.0123456), (1234.5,)]) == ((12.3, 0.0123), (1230.0,))
    assert token_times([]) == ()
    assert token_times([(), ()]) == ((), ())
    rounds = [(float(number),) * 2048 for number in range(8)]
    kept = token_times(rounds)  # 8192 values: four of the eight rounds
    assert [tokens[0] for tokens in kept] == [0.0, 2.0, 4.0, 6.0]
    assert {len(tokens) for tokens in kept} == {2048}
    assert token_times([(1.0,) * 10_000] * 3) == ((1.0,) * 10_000,)
    assert len(token_times([(1.0,) * 128] * 20)) == 20


def test_progress_never_runs_past_its_total_and_ends_full(tmp_path):
    seen: list[tuple[float, float, str]] = []

    def progress(done: float, total: float, note: str = "") -> None:
        seen.append((done, total, note))

    settings = BenchSettings(prompt=8, generate=8, rounds=3, threads=1)
    bench(World(slow_start=2), [DENSE, HEALED], settings, tmp_path, progress=progress)
    assert all(done <= total for done, total, _ in seen)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    assert "round 3 of 3: " in seen[-2][2]


def test_wrong_settings_name_themselves(tmp_path):
    for wrong in (
        {"rounds": 0},
        {"prompt": 0},
        {"warmup_rounds": 0},
        {"threads": 0},
        {"time_budget_s": 0.0},
        {"prompt": ()},
        {"depth": (0, -1)},
        {"delay_s": -1.0},
        {"delay_s": float("nan")},
        {"device": "tpu"},
    ):
        with pytest.raises(UsageError):
            BenchSettings(**wrong)
    item = BenchItem("x", tmp_path / "x.gguf", "dense", "t")
    with pytest.raises(UsageError, match="same name"):
        run_bench([item, item], BenchSettings())
    with pytest.raises(UsageError, match="nothing"):
        run_bench([], BenchSettings())
