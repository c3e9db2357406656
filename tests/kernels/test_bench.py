"""The bench of the kernels: what it times, what it refuses, what it says; figures need a GPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from clp_edge.bench import kernel_contenders, kernels
from clp_edge.bench.gate_step import blocks_that_fit, build, step_parts
from clp_edge.bench.kernel_contenders import SHAPES, TINY, operations
from clp_edge.bench.kernel_rounds import Contender, ProcessorClock, disagreement, take_turns
from clp_edge.bench.kernels import KernelSettings, bench_kernels
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.search.gated import gated_final_hidden

CPU = torch.device("cpu")


def command(*arguments: str) -> Any:
    """Run the command line, where it is installed."""
    for package in ("typer", "rich", "msgspec"):
        pytest.importorskip(package)
    from typer.testing import CliRunner

    from clp_edge.cli import app

    return CliRunner().invoke(app, list(arguments))


class Counting:
    """A clock that reads the same for everyone, and notes whose turn it is."""

    def __init__(self) -> None:
        self.turns: list[Any] = []

    def __call__(self, contender: Contender) -> float:
        self.turns.append(contender.run(contender.prepare()))
        return float(len(self.turns))


def test_contenders_take_turns_in_a_changing_order() -> None:
    clock = Counting()
    names = ("a", "b", "c")
    contenders = {name: Contender(lambda _, name=name: name) for name in names}
    found = take_turns(contenders, clock, rounds=6, repeats=1)
    assert list(found) == list(names)
    rounds = [tuple(clock.turns[at : at + 3]) for at in range(6, 24, 3)]
    assert all(set(one) == set(names) for one in rounds)
    assert len(set(rounds)) > 1
    assert all(len(outcome.samples_ms) == 6 for outcome in found.values())


def test_a_sample_is_the_median_of_its_round() -> None:
    times = iter([0.0, 0.0, 5.0, 1.0, 3.0, 9.0, 7.0, 8.0])
    found = take_turns(
        {"x": Contender(lambda _: None)}, lambda contender: next(times), rounds=2, repeats=3
    )
    assert found["x"].samples_ms == (3.0, 8.0)


def test_a_peer_that_fails_or_disagrees_is_not_measured_and_says_why() -> None:
    def broken(_: Any) -> Any:
        raise TypeError("unexpected\n argument 'w'")

    one = torch.ones(3)
    found = take_turns(
        {
            "broken": Contender(broken),
            "wrong": Contender(lambda _: (1.2 * one,), reference=lambda: (one,)),
            "nan": Contender(lambda _: (one * float("nan"),), reference=lambda: (one,)),
            "good": Contender(lambda _: (1.001 * one,), reference=lambda: (one,)),
        },
        ProcessorClock(),
        rounds=2,
    )
    assert found["broken"].reason == "TypeError: unexpected argument 'w'"
    assert "0.2 off the reference" in found["wrong"].reason
    assert "inf off" in found["nan"].reason
    assert len(found["good"].samples_ms) == 2


def test_a_kernel_of_ours_that_fails_or_is_wrong_is_an_error() -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("launch failed")

    with pytest.raises(RuntimeError, match="launch failed"):
        take_turns({"ours": Contender(broken, ours=True)}, ProcessorClock(), rounds=1)
    wrong = Contender(lambda _: (torch.zeros(3),), reference=lambda: (torch.ones(3),), ours=True)
    with pytest.raises(ClpEdgeError, match="a kernel of ours is wrong here"):
        take_turns({"ours": wrong}, ProcessorClock(), rounds=1)


def test_the_gpu_s_memory_running_out_is_a_reason_even_for_ours() -> None:
    def full(_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("no")

    found = take_turns({"ours": Contender(full, ours=True)}, ProcessorClock(), rounds=1)
    assert "too little memory" in found["ours"].reason


def test_disagreement_is_relative_to_the_reference() -> None:
    assert disagreement([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])]) == pytest.approx(
        0.5 / (3.0**2 + 4.5**2) ** 0.5
    )
    with pytest.raises(ValueError, match="zip"):
        disagreement([], [torch.ones(1)])


def test_the_bytes_of_an_operation_are_its_inputs_and_outputs_once() -> None:
    found = {(one.name, one.direction): one for one in operations(TINY, rows=8, device=CPU)}
    stream, wide = 8 * TINY.hidden * 4, 8 * TINY.intermediate * 4
    assert {key: one.bytes for key, one in found.items()} == {
        ("gated_residual", "forward"): 4 * stream,
        ("gated_residual", "backward"): 6 * stream,
        ("gated_add", "forward"): 3 * stream,
        ("gated_add", "backward"): 3 * stream,
        ("swiglu", "forward"): 3 * wide,
        ("swiglu", "backward"): 5 * wide,
        ("head_rows", "forward"): 2 * 8 * TINY.vocabulary * 4,
    }
    assert all("ours" in one.contenders and "eager" in one.contenders for one in found.values())


def test_a_peer_s_functions_are_compared_with_the_ungated_sum(monkeypatch) -> None:
    """Liger-Kernel is not here: functions of its signature stand in for it."""

    def join(r: torch.Tensor, b: torch.Tensor, g: torch.Tensor, w: torch.Tensor) -> Any:
        x = r + b
        return x, kernel_contenders.rms_norm(x, w)

    liger = {"join": join, "product": kernel_contenders.eager_product}
    monkeypatch.setattr(kernel_contenders, "peers", lambda: (liger, ""))
    real = kernel_contenders._ways

    def as_on_cuda(case: Any, direction: Any, ours: Any, device: Any, peer: Any, *a: Any, **k: Any):
        found, missing = real(case, direction, ours, device, None, *a, **k)
        if peer is not None:
            make = case.forward if direction == "forward" else case.backward
            found["Liger"] = make(peer, reference=k.get("ungated") or case.eager)
        return found, missing

    monkeypatch.setattr(kernel_contenders, "_ways", as_on_cuda)
    found = {(one.name, one.direction): one for one in operations(TINY, rows=8, device=CPU)}
    for key in (
        ("gated_residual", "forward"),
        ("gated_residual", "backward"),
        ("swiglu", "forward"),
    ):
        outcome = take_turns(found[key].contenders, ProcessorClock(), rounds=1)["Liger"]
        assert outcome.samples_ms, outcome.reason
    backward = found["gated_residual", "backward"]
    assert backward.contenders["Liger"].bytes == 4 * 8 * TINY.hidden * 4
    assert "Liger" not in backward.missing


def test_eager_and_ours_are_the_same_step() -> None:
    built = build(TINY, tokens=32, blocks=2, device=CPU)
    assert built.tokens == 32
    for part, contenders in step_parts(built, gated_final_hidden).items():
        values = {
            name: contender.run(contender.prepare()) for name, contender in contenders.items()
        }
        for name, value in values.items():
            for one, other in zip(value, values["eager"], strict=True):
                torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-5, msg=f"{part} {name}")
        if part == "step":
            assert float(values["ours"][1].abs().max()) > 1e-6


def test_a_step_gets_the_blocks_that_memory_allows() -> None:
    big = SHAPES["Llama-3-70B"]
    counts = [blocks_that_fit(big, 4096, gib << 30) for gib in (1, 80, 140, 4000)]
    assert counts[0] == 1
    assert counts[-1] == big.blocks
    assert counts == sorted(counts)
    # A block of it is 1.7 GB of weights and 3 GB of an eager step's activations.
    assert 4 <= counts[1] <= 12


def test_the_smoke_run_measures_all_it_can_and_says_what_it_cannot() -> None:
    found = bench_kernels(KernelSettings(cpu=True, rounds=2, repeats=1), gated_final_hidden)
    assert {one.name for one in found.steps} == {"blocks", "head", "forward", "step"}
    assert len(found.kernels) == 7
    for one in (*found.kernels, *found.steps):
        ours = one.timing("ours")
        assert ours.interval is not None
        assert ours.interval.n == len(ours.samples_ms) == 2
        assert one.speedup() == pytest.approx(
            one.timing("eager").interval.median / ours.interval.median
        )
    norm = found.kernels[0].timing("ours")
    assert norm.bytes is not None
    assert norm.gb_per_s == pytest.approx(norm.bytes / norm.interval.median / 1e6)
    assert norm.share_of_copy == pytest.approx(norm.gb_per_s / found.copy.gb_per_s)
    missing = found.kernels[0].timing("Liger")
    assert missing.interval is None
    assert missing.reason
    assert found.kernels[0].speedup("Liger") is None
    assert any("no figure" in note for note in found.notes)
    assert found.versions["torch"] == torch.__version__


def test_settings_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(UsageError, match="no shape 'GPT-2'; known: SmolLM2-135M"):
        KernelSettings(shapes=("GPT-2",))
    with pytest.raises(UsageError, match="at least 1"):
        KernelSettings(rounds=0)


def test_without_cuda_there_is_nothing_to_measure(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command("bench-kernels")
    assert done.exit_code == 1
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    assert lines == [
        "error: no CUDA device here, so there is nothing to measure; run it on a machine with a "
        "GPU, or try the code with --cpu"
    ]
    done = command("bench-kernels", "--shape", "GPT-2")
    assert done.exit_code == 2


def test_the_command_line_prints_a_table_or_one_document() -> None:
    arguments = ["bench-kernels", "--cpu", "--rounds", "1"]
    done = command(*arguments, "--json", "--no-step")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["steps"] == []
    assert document["kernels"][0]["timings"][0]["contender"] == "ours"
    assert document["settings"]["rounds"] == 1
    done = command(*arguments, "--no-kernels")
    assert done.exit_code == 0, done.output
    assert "recomputed" in done.stdout
    assert "gated_residual" not in done.stdout


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_are_timed_beside_torch_compile() -> None:
    settings = KernelSettings(
        shapes=("SmolLM2-135M",), rows=512, rounds=2, repeats=1, blocks=2, kernels=True
    )
    found = kernels.bench_kernels(settings, gated_final_hidden)
    for one in found.kernels:
        assert one.timing("ours").interval is not None
        assert one.timing("eager").interval is not None
        compiled = one.timing("torch.compile")
        assert compiled.interval is not None, compiled.reason
    step = next(one for one in found.steps if one.name == "step")
    assert step.timing("ours").peak_bytes < step.timing("eager").peak_bytes
