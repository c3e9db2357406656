"""What leaves memory while healing tunes: nothing that runs; and the peak is as predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import clp_edge.heal as healing
from clp_edge.heal import HealResult, TuningSettings, heal
from clp_edge.heal.memory import META, HealMemory, Work, away_from, idle_blocks, parked, predict
from clp_edge.heal.refit import RefitSums
from clp_edge.heal.tail import Tail
from clp_edge.heal.train import _Mean
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.segment import Segment
from tests.tiny import random_ids, tiny_model

SEGMENT = Segment(4, 5)
NEAR = (3, 6, 7, 8)
FEW = TuningSettings(steps=4, warmup=1, checks=2, local_steps=4)
CPU = torch.device("cpu")


def learner(kind: str = "llama", *, autocast: bool = False, **changes: Any) -> Anatomy:
    body = dissect(tiny_model(kind, blocks=10, **changes))
    return dataclasses.replace(body, autocast=torch.bfloat16) if autocast else body


def healed(body: Anatomy, **more: Any) -> HealResult:
    return heal(body, SEGMENT, random_ids(16, 32), random_ids(4, 32, seed=1), tuning=FEW, **more)


def meta_blocks(body: Anatomy) -> list[int]:
    return [i for i, b in enumerate(body.blocks) if next(b.parameters()).device == META]


def same(a: HealResult, b: HealResult) -> None:
    assert a.kl_cut == b.kl_cut
    assert [r.kl_after for r in a.rungs] == [r.kl_after for r in b.rungs]
    assert a.state.keys() == b.state.keys()
    for index, state in a.state.items():
        for name, value in state.items():
            assert torch.equal(value, b.state[index][name]), (index, name)


@pytest.mark.parametrize(
    ("kind", "autocast", "gone"),
    [
        ("llama", False, [0, 1, 2, 4, 5]),
        ("gemma3_text", False, [0, 1, 2, 4, 5]),
        # Under autocast the frozen blocks of the tail run as lighter copies.
        ("llama", True, [0, 1, 2, 4, 5, 9]),
    ],
)
def test_a_spent_model_loses_what_does_not_run_and_the_numbers_stay(
    kind: str, autocast: bool, gone: list[int]
) -> None:
    """A block without storage cannot have run: meta tensors give no numbers."""
    kept, spent = learner(kind, autocast=autocast), learner(kind, autocast=autocast)
    same(healed(kept), healed(spent, spent=True))
    assert meta_blocks(kept) == []
    assert meta_blocks(spent) == gone


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_parked_comes_back(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, walked with the CPU as either place: moves are recorded."""
    want = healed(learner(tie_word_embeddings=tied))
    body = learner(tie_word_embeddings=tied)
    before = {name: t.clone() for name, t in body.model.state_dict().items()}
    moves: list[int] = []
    for index, block in enumerate(body.blocks):
        move = block.to

        def to(place: Any, index: int = index, move: Any = move) -> Any:
            moves.append(index)
            return move(place)

        monkeypatch.setattr(block, "to", to)
    monkeypatch.setattr(healing, "away_from", lambda *_a, **_k: CPU)
    same(want, healed(body))
    assert moves == [0, 1, 2, 3, 4, 5, 6, 7, 8] * 2
    assert not body.embedding._forward_hooks
    assert not body.embedding._forward_pre_hooks
    assert all(torch.equal(t, before[name]) for name, t in body.model.state_dict().items())


def test_an_embedding_elsewhere_is_looked_up_there() -> None:
    """Ids go to it and its rows come out where the tail is, by hooks that leave with `parked`."""
    body = learner()
    tail = Tail(body, SEGMENT, NEAR)
    want, _ = body.prepare(random_ids(2, 8))
    with parked(tail, 9, CPU) as gone:
        assert gone == (0, 1, 2, 3, 4, 5, 6, 7, 8)
        assert len(body.embedding._forward_hooks) == len(body.embedding._forward_pre_hooks) == 1
        got, _ = body.prepare(random_ids(2, 8))
    assert torch.equal(got, want)


def test_hooks_leave_after_an_error() -> None:
    body = learner()
    with pytest.raises(ZeroDivisionError), parked(Tail(body, SEGMENT, NEAR), 9, CPU):
        raise ZeroDivisionError
    assert not body.embedding._forward_hooks


def test_a_new_shape_needs_no_block_0() -> None:
    """`prepare` used to run block 0 for every new shape, to see whether it returns a tuple."""
    body = learner()
    body.prepare(random_ids(2, 8))
    body.blocks[0].to(META)
    hidden, arguments = body.prepare(random_ids(3, 5))
    assert hidden.shape[:2] == (3, 5)
    assert torch.isfinite(body.run_block(1, hidden, arguments)).all()


def test_the_teacher_keeps_the_endpoint_behind_the_cut() -> None:
    """With the goal right behind the cut, the teacher runs the original of block s+n."""
    tail = Tail(learner(), SEGMENT, SEGMENT.endpoints(10))
    assert idle_blocks(tail, 6) == (0, 1, 2, 3, 4, 5)
    assert idle_blocks(tail, 7) == (0, 1, 2, 3, 4, 5, 6)


def test_where_blocks_go() -> None:
    assert away_from(torch.device("cuda"), spent=False) == CPU
    assert away_from(torch.device("cuda"), spent=True) == CPU
    assert away_from(CPU, spent=False) is None
    assert away_from(CPU, spent=True) == META


def test_sums_and_states_are_in_host_memory() -> None:
    sums = RefitSums()
    for seed in (0, 1):
        torch.manual_seed(seed)
        sums.add(torch.randn(9, 5), torch.randn(9, 3), torch.randn(9, 3))
    assert sums.gram is not None
    assert sums.gram.device == CPU
    assert torch.equal(sums.change(0.1), sums.change(0.1))  # the ridge is not left in the sum
    tail = Tail(learner(), SEGMENT, NEAR)
    state = tail.state()
    with torch.no_grad():
        for p in tail.trained[3].parameters():
            p.add_(1.0)
    assert sorted(tail.changes()) == [3]
    tail.restore(state)
    assert tail.changes() == {}


@contextmanager
def peak_bytes(found: list[int]) -> Iterator[None]:
    """The most that torch has held while open, all of it made inside."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        yield
    events = watched.profiler.kineto_results.events()
    held, most = 0, 0
    memory = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    for _, size in sorted(memory):
        held += size
        most = max(most, held)
    found.append(most)


@pytest.mark.parametrize(
    ("spent", "autocast", "rungs"),
    [
        (False, False, "endpoints"),
        (True, False, "endpoints"),
        (True, True, "endpoints"),
        (True, False, "refit"),
        (True, False, "graft"),
        (True, True, "graft"),
    ],
)
def test_the_peak_is_as_predicted(spent: bool, autocast: bool, rungs: str) -> None:
    found: list[int] = []
    with peak_bytes(found):
        body = learner(autocast=autocast, intermediate_size=768)
        fit, held = random_ids(24, 64), random_ids(8, 64, seed=1)
        heal(body, SEGMENT, fit, held, rungs=rungs, tuning=FEW, spent=spent)
    work = Work(
        torch.float32,
        "cpu",
        fit.numel(),
        held.numel(),
        length=64,
        autocast=body.autocast,
        spent=spent,
        tunes=rungs == "endpoints",
        grafts=rungs != "refit",
    )
    # A body of the meta device says the same: nothing is read but shapes.
    with torch.device("meta"):
        shapes = dissect(type(body.model)(body.config))
    told = predict(shapes, SEGMENT, NEAR, work)
    assert 0.8 * told.peak < found[0] < 1.05 * told.peak


def eight_b(segment: Segment) -> HealMemory:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        body = dissect(LlamaForCausalLM(config))
    work = Work(torch.bfloat16, "cuda", fit_tokens=28672, held_tokens=4096)
    after = segment.last + 1
    return predict(body, segment, (segment.first - 1, *range(after, after + 3)), work)


def test_an_8b_model_heals_in_24_gib_where_the_cut_is_in_the_middle() -> None:
    found = eight_b(Segment(13, 18))
    assert found.peak < 21.5 * 2**30
    assert found.tuning == pytest.approx(20.3 * 2**30, rel=0.01)
    late = eight_b(Segment(20, 25))
    assert late.tuning < found.tuning


def test_the_mean_of_the_weights_takes_nothing_of_the_device() -> None:
    """Counted on tensors that say they are a GPU's and hold no storage."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        parameters = [torch.nn.Parameter(torch.empty(64, 8, device="cuda")) for _ in range(3)]
        mean = _Mean(parameters)
        for _ in range(2):
            mean.add()
    assert {p.device.type for p in parameters} == {"cuda"}
    assert [(s.device, s.numel(), s.dtype) for s in mean.sums] == [(CPU, 512, torch.float32)] * 3


def test_the_mean_of_the_weights_is_the_running_one_bit_by_bit() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(7, 5))
    mean, want = _Mean([weight]), torch.zeros(7, 5)
    for count in range(1, 6):
        with torch.no_grad():
            weight.add_(torch.randn(7, 5))
        mean.add()
        seen = weight.detach().clone()
        want = seen if count == 1 else want.add(seen - want, alpha=1.0 / count)
    mean.load()
    assert torch.equal(weight, want)
