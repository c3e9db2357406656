from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import UNSET

import clp_edge
from clp_edge.errors import ClpEdgeError
from clp_edge.records import Span, encode, to_plain
from clp_edge.report import (
    ReportError,
    build_report,
    load_report,
    parse_report,
    validate,
    write_report,
)
from tests.report.sample import (
    BENCH,
    DENSE,
    HEALED,
    MODEL,
    SEARCH,
    SPEEDUP,
    died,
    parts,
    quality,
    sample_report,
)

# The keys of schema 1 as they were promised, and no later ones. It is never edited.
CONTRACT: dict[str, Any] = {
    "schema": 1,
    "command": "clp-edge compress",
    "version": "0.1.0",
    "model": {"source": "m.gguf", "architecture": "llama", "blocks": 30, "parameters": 1000},
    "seed": 0,
    "verdict": "Block 12 (1 of 30) is gone.",
    "evaluation": {
        "text": "held-back text",
        "sha256": "cd",
        "tokens": 1024,
        "sequence_length": 512,
        "removed_as_leaked": 0,
    },
    "search": {
        "method": "exact",
        "criterion": "healed",
        "segment": {"first": 12, "last": 12},
        "segments": [{"first": 12, "last": 12}],
        "dropped": [12],
        "kl_raw": 0.7,
        "kl_healed": 0.3,
        "windows": [{"first": 12, "last": 12, "kl_raw": 0.7, "kl_healed": 0.3}],
        "regret": 0.0,
        "stability": None,
        "forward_equivalents": 14.2,
        "seconds": 30.0,
    },
    "heal": {
        "method": "endpoints",
        "trained_blocks": [11, 13],
        "kl_cut": 0.7,
        "kl_refit": 0.3,
        "kl_tuned": None,
        "seconds": 60.0,
    },
    "quality": {
        "dense": {
            "perplexity": 20.0,
            "perplexity_se": 0.6,
            "kl": 0.0,
            "kl_se": 0.0,
            "top1_agreement": 1.0,
            "tasks": {"sanity": {"passed": 2, "total": 4}},
        }
    },
    "artifacts": [
        {
            "name": "m",
            "target": "gguf-q4_0",
            "variant": "healed",
            "path": "gguf/m.gguf",
            "bytes": 1000,
            "bits_per_weight": 4.5,
            "fallback_tensors": 0,
            "sha256": "ab",
            "verified": True,
            "verify": {"kl": 0.001},
        }
    ],
    "bench": {
        "device": {"cpu_model": "a processor"},
        "settings": {
            "threads": 4,
            "batch": 1,
            "rounds": 6,
            "warmup_rounds": 3,
            "power_mode": None,
            "memory_bandwidth_gb_s": 30.0,
        },
        "runs": [
            {
                "artifact": "m",
                "variant": "healed",
                "target": "gguf-q4_0",
                "runtime": "llama.cpp",
                "runtime_version": "1.0",
                "backend": "CPU",
                "test": {"prompt": 512, "generate": 128, "depth": 0},
                "status": "ok",
                "reason": None,
                "prefill_tps": [200.0],
                "decode_tps": [60.0],
                "ttft_ms": [1000.0],
                "summary": {
                    name: {"median": 60.0, "low": 60.0, "high": 60.0, "n": 1}
                    for name in ("prefill_tps", "decode_tps", "ttft_ms")
                },
                "load_ms": 100.0,
                "peak_rss_mib": 120.0,
                "peak_gpu_mib": None,
                "j_per_token": None,
                "bytes_per_token": 1000,
                "ideal_decode_tps": 200.0,
                "mbu": 0.3,
            }
        ],
        "speedup": [
            {
                "target": "gguf-q4_0",
                "runtime": "llama.cpp",
                "test": {"prompt": 512, "generate": 128, "depth": 0},
                "before": "m",
                "after": "m",
                "confidence": 0.97,
                "n": 6,
                **{
                    name: {
                        "before": 1.0,
                        "after": 1.0,
                        "median": 1.0,
                        "low": 1.0,
                        "high": 1.0,
                        "ideal": None,
                    }
                    for name in ("prefill", "decode", "ttft")
                },
            }
        ],
    },
    "seconds": {"search": 30.0},
    "peak_memory_mib": {"search": None},
    "environment": {"python": "3.11"},
}


def held(value: Any, contract: Any, where: str = "$") -> None:
    """The value has every key of the contract, and what the contract says of it."""
    if isinstance(contract, dict):
        for key, member in contract.items():
            assert key in value, f"{where}.{key}"
            held(value[key], member, f"{where}.{key}")
    elif isinstance(contract, list):
        assert len(value) == len(contract), where
        for number, member in enumerate(contract):
            held(value[number], member, f"{where}[{number}]")
    else:
        assert value == contract, where


def test_a_report_of_the_first_schema_reads_and_none_of_its_keys_is_renamed():
    report = parse_report(json.dumps(CONTRACT))
    held(json.loads(encode(report)), CONTRACT)
    assert report.samples == report.warnings == ()
    assert report.model.license is UNSET
    assert report.bench is not None
    assert report.bench.settings.order == ()
    assert report.bench.speedup[0].decode.bounds == {}


def test_a_newer_report_reads_too():
    newer = json.loads(json.dumps(CONTRACT))
    newer["carbon"] = {"grams": 1}
    newer["search"]["windows"][0]["mood"] = "good"
    assert parse_report(json.dumps(newer)) == parse_report(json.dumps(CONTRACT))


def test_the_sample_is_what_a_reader_of_its_file_gets():
    report = sample_report()
    assert parse_report(encode(report)) == report
    assert report.schema == 1
    assert report.version == clp_edge.__version__
    assert report.verdict.startswith("Blocks 12-17 (6 of 30) are gone: ")
    assert "license" not in to_plain(report)["model"]  # nobody looked
    looked = sample_report(model=replace(MODEL, license=None))
    assert to_plain(looked)["model"]["license"] is None


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("schema",), 2),
        (("seed",), "0"),
        (("seed",), True),
        (("verdict",), None),
        (("model", "blocks"), 30.5),
        (("search", "criterion"), "cooked"),
        (("search", "dropped"), [12, "13"]),
        (("quality", "dense"), None),
        (("artifacts", 0, "variant"), "sparse"),
        (("artifacts", 0, "verified"), 1),
        (("artifacts",), {}),
        (("bench", "runs", 0, "status"), "died"),
        (("bench", "runs", 0, "decode_tps"), [1.0, None]),
        (("bench", "runs", 0, "summary", "decode_tps"), 60.0),
        (("bench", "speedup", 0, "decode", "median"), None),
        (("seconds", "search"), "long"),
        (("samples",), [{"prompt": "x"}]),
    ],
)
def test_wrong_values_are_refused_with_their_place(path, wrong):
    document = to_plain(sample_report())
    holder = document
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = wrong
    with pytest.raises(ReportError, match="not of schema 1") as caught:
        parse_report(json.dumps(document))
    assert f"$.{path[0]}" in str(caught.value)


def test_a_missing_key_is_refused_by_its_name():
    document = to_plain(sample_report())
    del document["bench"]["runs"][1]["mbu"]
    with pytest.raises(ReportError, match=r"`mbu` - at `\$\.bench\.runs\[1\]`"):
        parse_report(json.dumps(document))


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"schema": NaN}', b'{"command": "\xff"}'])
def test_what_is_no_report_is_an_error_of_ours(broken):
    with pytest.raises(ReportError, match="not of schema 1"):
        parse_report(broken)


def test_a_record_that_was_made_wrong_is_refused():
    report = replace(sample_report(), seed="0")  # type: ignore[arg-type]
    with pytest.raises(ReportError, match=r"\$\.seed"):
        validate(report)
    with pytest.raises(ReportError, match=r"\$\.search\.segments"):
        sample_report(search=replace(SEARCH, segments=((12, 17),)))


def test_contradictions_are_refused_with_their_place():
    def refused(**changes: Any) -> str:
        with pytest.raises(ReportError) as caught:
            sample_report(**changes)
        return str(caught.value)

    first, second = BENCH.runs
    short = replace(first, ttft_ms=first.ttft_ms[1:])
    told = refused(bench=replace(BENCH, runs=(short, second)))
    assert "$.bench.runs[0] has lists of different lengths" in told
    bare = replace(second, summary={"ttft_ms": second.summary["ttft_ms"]})
    told = refused(bench=replace(BENCH, runs=(first, bare)))
    assert "$.bench.runs[1].summary lacks prefill_tps, decode_tps" in told
    assert "$.bench.runs[1] is failed without a reason" in refused(bench=died(""))
    told = refused(bench=replace(died("died"), speedup=(SPEEDUP,)))
    assert "$.bench.speedup[0].after was not measured: 'tiny-healed'" in told
    told = refused(search=replace(SEARCH, dropped=SEARCH.dropped[:-1]))
    assert "$.search.dropped does not list the blocks" in told
    told = refused(artifacts=(DENSE, replace(HEALED, name="tiny-dense")), bench=None)
    assert "$.artifacts: two artifacts have the same name" in told


def test_what_was_not_done_is_null_and_valid():
    report = build_report(command="clp-edge export", model=MODEL, seed=3)
    assert report.search is report.bench is report.heal is report.evaluation is None
    assert validate(report) == report
    several = (Span(3, 5), Span(9, 9))
    cut = replace(SEARCH, segment=None, segments=several, dropped=(3, 4, 5, 9))
    assert sample_report(search=cut).search == cut  # a search without the one segment


def test_values_become_plain_json():
    free = {
        "path": Path("a") / "b",
        "nan": math.nan,
        "numpy": np.float32(0.5),
        "double": np.float64(0.25),
        "whole": np.int64(7),
        "flag": np.bool_(True),
        "ids": range(2),
        "pair": (1, 2),
        "lost": np.float64(math.nan),
    }
    report = sample_report(environment=free, quality={"dense": quality(math.nan, 0.0, math.inf)})
    assert report.environment == {
        "path": "a/b",
        "nan": None,
        "numpy": 0.5,
        "double": 0.25,
        "whole": 7,
        "flag": True,
        "ids": [0, 1],
        "pair": [1, 2],
        "lost": None,
    }
    assert report.quality["dense"].perplexity is report.quality["dense"].top1_agreement is None
    with pytest.raises(ReportError, match="cannot hold a object"):
        sample_report(environment={"x": object()})


def test_pitfall_25_all_files_or_none_and_no_temporary_left(tmp_path):
    paths = write_report(sample_report(), tmp_path)
    assert [path.name for path in paths] == ["report.json", "report.html", "report.md", "README.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in paths)
    assert load_report(tmp_path) == load_report(paths[0]) == sample_report()

    before = {path.name: path.read_bytes() for path in paths}
    broken = replace(sample_report(), seed=None)  # type: ignore[arg-type]
    with pytest.raises(ReportError, match="seed"):
        write_report(broken, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_pitfall_25_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_report(sample_report(), tmp_path)
    old = (tmp_path / "report.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ClpEdgeError, match="No space left on device"):
        write_report(replace(sample_report(), seed=9), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 4


def test_the_parts_of_the_sample_are_fresh_each_time():
    parts()["quality"].clear()
    assert len(parts()["quality"]) == 5


def test_a_folder_without_a_report_says_what_to_give(tmp_path):
    for path in (tmp_path, tmp_path / "report.json", tmp_path / "nowhere"):
        with pytest.raises(ClpEdgeError, match=r"cannot be read: No such file.*; give the output"):
            load_report(path)
