"""The bench as text for other programs, the append-only file, two benches beside each other."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clp_edge.bench import formats, history
from clp_edge.bench.compare import UNPAIRED, compare
from clp_edge.bench.runner import BenchSettings
from clp_edge.cli import app
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.records import BenchRecord, RatioRecord, encode, to_plain
from tests.bench.world import DENSE, HEALED, World, bench

BROKEN = ("broken", "healed", "gguf-q4_0", 60.0, 0, "CPU")


def made(
    folder: Path, *, speed: float = 1.0, specs: tuple = (DENSE, HEALED, BROKEN)
) -> BenchRecord:
    faster = [(*spec[:3], spec[3] * speed, *spec[4:]) for spec in specs]
    settings = BenchSettings(64, 16, (0, 50), rounds=7, threads=1, cpus=(0, 1, 4))
    return bench(World(), faster, settings, folder)


@pytest.fixture
def record(tmp_path: Path) -> BenchRecord:
    return made(tmp_path)


def test_csv_and_json_lines_hold_a_row_for_each_artifact_and_test(record: BenchRecord) -> None:
    rows = list(csv.DictReader(io.StringIO(formats.as_csv(record))))
    lines = [json.loads(line) for line in formats.as_jsonl(record).splitlines()]
    assert len(rows) == len(lines) == 6
    for row, line, run in zip(rows, lines, record.runs, strict=True):
        assert list(row) == list(line)
        assert (row["artifact"], row["test"]) == (run.artifact, run.test.name)
        assert (line["n_prompt"], line["n_gen"], line["n_depth"]) == (64, 16, run.test.depth)
        assert (line["threads"], line["cpus"]) == (1, "0-1,4")
        assert line["taken"] == record.taken
        assert line["clp_edge"]
        if run.status == "ok":
            assert line["decode_tps_median"] == run.summary["decode_tps"].median
            assert float(row["decode_tps_median"]) == run.summary["decode_tps"].median
            assert (line["n"], line["load_ms"], line["gpu_layers"]) == (7, 12.5, 2)
    failed = lines[-1]
    assert failed["status"] == "failed"
    assert "could not load" in failed["reason"]
    assert failed["decode_tps_median"] is None  # not measured is not 0
    assert rows[-1]["decode_tps_median"] == ""
    assert lines[0]["test"] == "pp64 tg16"
    assert lines[1]["test"] == "pp64 tg16 @ d50"


def test_markdown_tells_what_the_table_tells(record: BenchRecord) -> None:
    text = formats.as_markdown(record)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in tables[:8]} == {len(formats.HEADER) + 1}
    assert "| dense | fake | CPU (2 of 6 layers) | pp64 tg16 |" in text
    assert "failed: llama.cpp could not load broken" in text
    assert "1 threads, pinned to processors 0-1,4" in text
    assert "- dense, healed on CPU (2 of 6 layers): asked for\n" in text
    assert "1.200x (1.200 to 1.200)" in text


@pytest.mark.parametrize(
    ("median", "low", "high", "said"),
    [
        (1.15, 1.10, 1.20, None),
        (1.04, 1.02, 1.06, None),
        (1.00, 0.98, 1.02, "what is not in the blocks"),
        (1.26, 1.20, 1.30, "more than memory bounds it here"),
        (1.26, 1.10, 1.30, "holds the ideal"),
        (1.40, 1.35, 1.45, "above the most that the blocks allow"),
    ],
)
def test_a_speed_up_far_from_its_ideal_is_explained(record, median, low, high, said) -> None:
    ratio = RatioRecord(100.0, 100.0 * median, median, low, high, 1.154, {"blocks": 1.25})
    pair = replace(record.speedup[0], decode=ratio)
    found = formats.beside_the_ideal(pair)
    assert (found is None) if said is None else (said in (found or ""))
    assert formats.beside_the_ideal(replace(pair, decode=replace(ratio, ideal=None))) is None


@pytest.mark.parametrize(
    ("cache", "said"), [(1.38, "last-level cache holds a larger share"), (1.30, "a mistake")]
)
def test_what_the_blocks_do_not_allow_the_cache_may(record, cache, said) -> None:
    bounds = {"bytes": 1.154, "blocks": 1.25, "cache": cache}
    ratio = RatioRecord(100.0, 140.0, 1.40, 1.35, 1.45, 1.154, bounds)
    found = formats.beside_the_ideal(replace(record.speedup[0], decode=ratio))
    assert said in (found or "")


def test_lines_are_only_added_and_the_last_one_is_read(record: BenchRecord, tmp_path: Path) -> None:
    path = tmp_path / "results" / "laptop.jsonl"
    history.append(path, record)
    first = path.read_bytes()
    later = replace(record, taken="2026-12-01T00:00:00Z")
    history.append(path, later)
    assert path.read_bytes().startswith(first)
    assert len(path.read_text().splitlines()) == 2
    assert history.read(path) == later
    whole = tmp_path / "one.json"
    whole.write_bytes(encode(record))
    assert history.read(whole) == record
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"schema": 2, "bench": to_plain(record)}))
    assert history.read(report) == record


@pytest.mark.parametrize("text", ["", "no json", "{}\n", "[1]\n", '{"bench": null}\n', "\xff\n"])
def test_a_file_that_holds_no_bench(record: BenchRecord, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"holds no bench|cannot read"):
        history.read(path)
    if text not in ("", "{}\n", '{"bench": null}\n'):
        with pytest.raises(UsageError, match="no file of bench records"):
            history.append(path, record)
        assert path.read_bytes() == text.encode("latin-1")
    with pytest.raises(UsageError, match="folder"):
        history.append(tmp_path, record)
    with pytest.raises(UsageError, match="cannot read"):
        history.read(tmp_path / "missing.json")
    with pytest.raises(ClpEdgeError, match="cannot append"):
        history.append(Path("/proc/nowhere/x.jsonl"), record)


def test_two_days_are_compared_without_pairing_and_say_so(tmp_path: Path) -> None:
    first, second = made(tmp_path), made(tmp_path, speed=1.5)
    second = replace(
        second,
        device={**second.device, "name": "Jetson Orin Nano"},
        settings=replace(second.settings, threads=6, cpus=None),
        taken="2026-12-01T00:00:00Z",
    )
    found = compare(first, second)
    assert [(row.artifact, row.test) for row in found.rows] == [
        (name, test) for name in ("dense", "healed") for test in ("pp64 tg16", "pp64 tg16 @ d50")
    ]
    row = found.rows[0]
    a, b = first.runs[0].summary["decode_tps"], second.runs[0].summary["decode_tps"]
    ratio = row.ratios["decode"]
    assert ratio.median == pytest.approx(b.median / a.median) == pytest.approx(1.5)
    assert (ratio.low, ratio.high) == (b.low / a.high, b.high / a.low)
    assert ratio.low < 1.5 < ratio.high  # wider than the paired one, which would be exact
    assert ratio.confidence == pytest.approx(1 - 2 * (1 - a.confidence))
    assert ratio.differs
    assert row.ratios["ttft"].median > 1.0  # fewer milliseconds are faster
    assert "not measured in the same rounds" in found.note == UNPAIRED
    text = "\n".join(found.differences)
    assert "and Jetson Orin Nano" in text
    assert "threads: 1 and 6" in text
    assert "processors: 0, 1, 4 and unknown" in text
    assert "taken:" in text
    assert any("failed in the first: broken" in one for one in found.unmatched)
    same = compare(first, first)
    assert same.differences == ()
    assert not any(one.differs for row in same.rows for one in row.ratios.values())


def test_files_of_other_names_are_matched_by_what_they_are(tmp_path: Path) -> None:
    renamed = (("base", *DENSE[1:]), ("cut", *HEALED[1:]))
    found = compare(made(tmp_path), made(tmp_path, specs=renamed))
    names = [(row.artifact, row.other_artifact) for row in found.rows]
    assert names == [("dense", "base")] * 2 + [("healed", "cut")] * 2
    # Two that could both be meant are not guessed.
    twice = (("base", *DENSE[1:]), ("base2", *DENSE[1:]))
    unsure = compare(made(tmp_path), made(tmp_path, specs=twice))
    assert unsure.rows == ()
    assert any("only in the first: dense" in one for one in unsure.unmatched)
    assert any("only in the second: base2" in one for one in unsure.unmatched)


@pytest.fixture
def measured(record: BenchRecord, monkeypatch: pytest.MonkeyPatch) -> list:
    """The verb's own call gives `record`; what it was asked for is kept."""
    asked: list = []

    def stand_in(paths, settings, **rest):
        asked.append(settings)
        return record

    monkeypatch.setattr("clp_edge.pipeline.verbs.bench.bench", stand_in)
    return asked


def told(*arguments: object):
    return CliRunner().invoke(app, ["bench", *(str(one) for one in arguments)])


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "md", "table"])
def test_every_output_stands_alone_on_stdout(record, measured, form: str) -> None:
    result = told("a.gguf", "-o", form, "--quiet")
    assert result.exit_code == 0, result.stderr
    if form == "json":
        assert json.loads(result.stdout) == to_plain(record)
    elif form == "jsonl":
        assert result.stdout == formats.as_jsonl(record)
    elif form == "csv":
        assert result.stdout == formats.as_csv(record)
    elif form == "md":
        assert result.stdout == formats.as_markdown(record)
    else:
        assert "round by round" in result.stdout
    if form != "md":
        assert "broken: llama.cpp could not load broken" in result.stderr


def test_the_options_reach_the_settings(measured, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    result = told(
        "a.gguf", "-p", "128,512", "-n", "32,128", "-d", "0,512", "--delay", "0.5", "--cpus", "0-1",
        "--gpu-layers", "12", "--device", "cpu", "--rounds", "7", "--time-budget", "9",
        "--append", path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    asked = measured[0]
    assert [t.name for t in asked.tests][:3] == ["pp128 tg32", "pp128 tg128", "pp512 tg32"]
    assert len(asked.tests) == 8
    assert (asked.delay_s, asked.cpus, asked.gpu_layers) == (0.5, (0, 1), 12)
    assert (asked.device, asked.rounds, asked.time_budget_s) == ("cpu", 7, 9.0)
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to measure"),
        (("a.gguf", "-p", "12,x"), "cannot read --prompt"),
        (("a.gguf", "-n", ""), "cannot read --generate"),
        (("a.gguf", "-d", "-1"), "depth must be at least 0"),
        (("a.gguf", "--cpus", "3-1"), "cannot read --cpus"),
        (("a.gguf", "--gpu-layers", "most"), "cannot read --gpu-layers"),
        (("a.gguf", "-o", "xml"), "cannot write -o xml"),
        (("a.gguf", "--json", "-o", "csv"), "cannot write --json with -o csv"),
        (("a.gguf", "--delay", "-2"), "--delay must be 0 s or more"),
        (("a.gguf", "--append", "."), "is a folder"),
        (("--compare", "a.json", "b.json"), "cannot read a.json"),
        (("a.gguf", "--compare", "a.json", "b.json"), "--compare measures nothing"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(measured, arguments, said: str) -> None:
    result = told(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not measured


def test_compare_on_the_command_line(record: BenchRecord, tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.jsonl"]
    paths[0].write_bytes(encode(record))
    history.append(paths[1], made(tmp_path, speed=0.5))
    result = told("--compare", *paths)
    assert result.exit_code == 0, result.stderr
    assert "0.500x" in result.stdout
    assert UNPAIRED in result.stdout
    assert "failed in the first: broken" in result.stderr
    plain = json.loads(told("--compare", *paths, "--json").stdout)
    assert plain["note"] == UNPAIRED
    assert plain["rows"][0]["ratios"]["decode"]["median"] == pytest.approx(0.5)
    assert told("--compare", *paths, "-o", "csv").exit_code == 2
