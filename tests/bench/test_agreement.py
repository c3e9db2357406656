"""The bench's medians beside those of a plain loop over llama_decode, round by round.

Timings of seconds on a machine that others use: run it alone, it is not part of `make test`.

    CLP_EDGE_TIMED=FILE.gguf python -m pytest tests/bench/test_agreement.py -s
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clp_edge.bench.affinity import choose_cpus
from clp_edge.runtimes import default_threads, open_artifact
from clp_edge.waiting import short_spin

FILE = os.environ.get("CLP_EDGE_TIMED")
PROMPT, GENERATE, WARM, ROUNDS = 512, 128, 3, 15
LIMIT = 0.05


@pytest.mark.llama
@pytest.mark.skipif(FILE is None, reason="a timed test: CLP_EDGE_TIMED=FILE.gguf runs it")
def test_prefill_and_decode_agree_with_a_plain_loop_within_5_percent() -> None:
    assert FILE is not None
    threads = default_threads()
    cpus = choose_cpus(threads)
    loop = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("plain_loop.py")), FILE]
        + [str(number) for number in (PROMPT, GENERATE, threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**short_spin(os.environ), **os.environ},
        preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus is not None else None,
    )
    assert loop.stdin is not None
    assert loop.stdout is not None
    ours, theirs = [], []
    try:
        assert loop.stdout.readline() == "ready\n"
        context = PROMPT + GENERATE + 1
        with open_artifact(
            Path(FILE), threads=threads, context=context, cpus=cpus, gpu_layers=0
        ) as session:
            for index in range(WARM + ROUNDS):
                for turn in (index % 2, 1 - index % 2):
                    if turn:
                        loop.stdin.write("\n")
                        loop.stdin.flush()
                        said = loop.stdout.readline()
                        assert said, f"the plain loop ended with {loop.wait()}"
                        theirs.append([float(one) for one in said.split()])
                    else:
                        one = session.time_once(prompt=PROMPT, generate=GENERATE, seed=index)
                        ours.append([one.prefill_s, one.decode_s])
    finally:
        loop.kill()
        loop.communicate()
    mine, plain = (np.array(found)[WARM:] for found in (ours, theirs))
    for part, tokens, name in ((0, PROMPT, "prefill"), (1, GENERATE, "decode")):
        speeds = [tokens / np.median(found[:, part]) for found in (mine, plain)]
        paired = np.median(plain[:, part] / mine[:, part])
        print(
            f"{name}: bench {speeds[0]:.1f}, plain loop {speeds[1]:.1f} tokens/s, ratio of medians "
            f"{speeds[0] / speeds[1]:.3f}, median of the rounds' ratios {paired:.3f}"
        )
        assert abs(speeds[0] / speeds[1] - 1) < LIMIT
