"""The runner with real children that a signal ends."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from clp_edge.bench.runner import BenchItem, BenchSettings, run_bench
from clp_edge.runtimes import open_artifact


@pytest.mark.llama
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGABRT, signal.SIGILL])
def test_a_child_that_a_signal_ends_is_a_row_and_the_others_go_on(tmp_path, tiny_gguf, kind):
    killed = []

    def open_and_kill(path, **how):
        session = open_artifact(path, **how)
        if path.stem == "killed":
            real = session.time_once

            def time_once(**what):
                if killed:
                    os.kill(session.pid, kind)
                killed.append(1)
                return real(**what)

            session.time_once = time_once
        return session

    paths = {name: tmp_path / f"{name}.gguf" for name in ("killed", "fine", "text")}
    for name in ("killed", "fine"):
        shutil.copy(tiny_gguf, paths[name])
    paths["text"].write_text("no model at all")
    items = [BenchItem(name, path, "dense", "gguf-f16") for name, path in paths.items()]
    result = run_bench(
        items,
        BenchSettings(8, 4, rounds=3, threads=1, time_budget_s=60.0),
        open_artifact=open_and_kill,
        measure_bandwidth=lambda threads: None,
        root=tmp_path,
    )
    rows = {run.artifact: run for run in result.runs}
    assert rows["killed"].status == "failed"
    assert kind.name in rows["killed"].reason
    assert "no artifact that a runtime opens" in rows["text"].reason
    assert rows["fine"].status == "ok"
    assert len(rows["fine"].decode_tps) == 3
    assert rows["fine"].load_ms > 0
    assert len(rows["fine"].token_ms[0]) == 4
