from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clp_edge
from clp_edge.errors import ClpEdgeError
from clp_edge.report import ReportError, build_report, validate, write_report
from clp_edge.report.document import plain
from tests.report.sample import parts, sample_report

# Keys that the contract leaves free to be there or not.
OPTIONAL = {"samples", "warnings", "segment", "name"}


def keys_of(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every key of every object of the contract (free maps left out)."""
    found: list[tuple] = []
    if isinstance(value, dict):
        for key, member in value.items():
            found.append((*path, key))
            if key not in {"environment", "device", "tasks", "verify"}:
                found += keys_of(member, (*path, key))
    elif isinstance(value, list) and value:
        found += keys_of(value[0], (*path, 0))
    return found


# Maps whose keys are names, so that any may be missing.
FREE = {("quality",), ("seconds",), ("peak_memory_mib",)}
REQUIRED = [
    path
    for path in keys_of(sample_report())
    if path[-1] not in OPTIONAL and path[:-1] not in FREE and path[0] not in OPTIONAL
]


def test_the_sample_keeps_the_contract():
    report = sample_report()
    validate(report)
    assert report["schema"] == 1
    assert report["version"] == clp_edge.__version__
    assert report["verdict"].startswith("Blocks 12-17 (6 of 30) are gone: ")
    assert len(REQUIRED) > 100


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
def test_each_missing_key_is_refused_by_its_name(path):
    report = sample_report()
    holder = report
    for step in path[:-1]:
        holder = holder[step]
    del holder[path[-1]]
    with pytest.raises(ReportError) as caught:
        validate(report)
    assert path[-1] in str(caught.value)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("schema",), 2),
        (("seed",), "0"),
        (("seed",), True),
        (("verdict",), None),
        (("model", "blocks"), 30.0),
        (("search", "criterion"), "cooked"),
        (("search", "dropped"), [12, "13"]),
        (("quality", "dense", "perplexity"), math.nan),
        (("quality", "dense"), None),
        (("artifacts", 0, "variant"), "sparse"),
        (("artifacts", 0, "verified"), 1),
        (("artifacts",), {}),
        (("bench", "runs", 0, "status"), "died"),
        (("bench", "runs", 0, "decode_tps"), [1.0, None]),
        (("bench", "runs", 0, "summary", "decode_tps"), 60.0),
        (("bench", "speedup", 0, "decode", "median"), None),
        (("bench", "settings", "memory_bandwidth_gb_s"), math.inf),
        (("seconds", "search"), "long"),
        (("samples",), [{"prompt": "x"}]),
    ],
)
def test_wrong_values_are_refused_with_their_place(path, wrong):
    report = sample_report()
    holder = report
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = wrong
    with pytest.raises(ReportError) as caught:
        validate(report)
    assert str(path[0]) in str(caught.value)


def test_contradictions_are_refused():
    def broken(change) -> str:
        report = copy.deepcopy(sample_report())
        change(report)
        with pytest.raises(ReportError) as caught:
            validate(report)
        return str(caught.value)

    assert "different lengths" in broken(lambda r: r["bench"]["runs"][0]["ttft_ms"].pop())
    assert "lacks decode_tps" in broken(
        lambda r: r["bench"]["runs"][0]["summary"].pop("decode_tps")
    )
    assert "without a reason" in broken(lambda r: r["bench"]["runs"][0].update(status="failed"))
    assert "not measured: 'tiny-healed'" in broken(
        lambda r: r["bench"]["runs"][1].update(status="failed", reason="died")
    )
    assert "search.dropped" in broken(lambda r: r["search"]["dropped"].pop())
    assert "same name" in broken(lambda r: r["artifacts"][1].update(name="tiny-dense"))


def test_what_was_not_done_is_null_and_valid():
    report = build_report(command="clp-edge export", model=parts()["model"], seed=3)
    assert report["search"] is report["bench"] is report["heal"] is report["evaluation"] is None
    validate(report)


def test_values_become_plain_json():
    assert plain(
        {
            "path": Path("a") / "b",
            "nan": math.nan,
            "numpy": np.float32(0.5),
            "double": np.float64(0.25),
            "whole": np.int64(7),
            "flag": np.bool_(True),
            "ids": range(2),
            "pair": (1, 2),
        }
    ) == {
        "path": "a/b",
        "nan": None,
        "numpy": 0.5,
        "double": 0.25,
        "whole": 7,
        "flag": True,
        "ids": [0, 1],
        "pair": [1, 2],
    }
    with pytest.raises(ReportError, match="cannot hold"):
        plain(object())


def test_pitfall_25_all_files_or_none_and_no_temporary_left(tmp_path):
    paths = write_report(sample_report(), tmp_path)
    assert [path.name for path in paths] == ["report.json", "report.md", "README.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in paths)
    assert json.loads(paths[0].read_text()) == sample_report()

    before = {path.name: path.read_bytes() for path in paths}
    broken = sample_report()
    del broken["seed"]
    with pytest.raises(ReportError, match="seed"):
        write_report(broken, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_pitfall_25_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_report(sample_report(), tmp_path)
    old = (tmp_path / "report.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    changed = sample_report()
    changed["seed"] = 9
    with pytest.raises(ClpEdgeError, match="No space left on device"):
        write_report(changed, tmp_path)
    assert (tmp_path / "report.json").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 3
