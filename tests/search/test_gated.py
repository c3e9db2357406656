"""The gated model through the kernels against the eager gated model: loss and every d_g."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clp_edge.kernels import dispatch
from clp_edge.kernels.head_kl import head_kl, teacher
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.families import FAMILIES
from clp_edge.search import gated
from clp_edge.search.cost import cost_of
from clp_edge.search.gate import GateSettings, descend
from clp_edge.search.gated import (
    FUSED,
    activation_budget,
    blocks_to_recompute,
    gated_final_hidden,
    kept_bytes,
    path_of,
)
from clp_edge.search.method import Problem, Trace
from clp_edge.search.states import collect_states
from tests.interpreted import DEVICE, kernels_on
from tests.tiny import random_ids, tiny_model

GATES = [1.0, 0.7, 0.2, 1e-4, 0.9, -0.3]


def eager(body: Anatomy, hidden: Tensor, gates: Tensor, arguments: list, first: int) -> Tensor:
    """transformers' own blocks with the gates as hooks."""
    with body.gated(gates):
        hidden = body.run_blocks(range(first, len(body)), hidden, arguments)
    return body.normed(hidden)


def step(body: Anatomy, way, numbers: list[float], *, first: int = 0, **more) -> tuple:
    """The KL to the dense model and its gradient by every gate."""
    ids = random_ids(2, 20).to(body.embedding.weight.device)
    hidden, arguments = body.prepare(ids)
    with torch.no_grad():
        dense = teacher(body.head, body.final_hidden(ids).flatten(0, 1))
        hidden = body.run_blocks(range(first), hidden, arguments)
    gates = torch.tensor(numbers, device=hidden.device, requires_grad=True)
    if way is eager:
        final = eager(body, hidden, gates, arguments, first)
    else:
        final = way(body, hidden, gates, arguments, first=first, **more)
    loss = head_kl(body.head, dense, final.flatten(0, 1)).mean()
    loss.backward()
    assert gates.grad is not None
    return loss.detach(), gates.grad


def same(got: tuple, expected: tuple) -> None:
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-5)
    scale = float(expected[1].abs().max())
    assert scale > 1e-4, "no gate matters: the test sees nothing"
    torch.testing.assert_close(got[1], expected[1], rtol=1e-3, atol=2e-4 * scale)


def test_every_family_is_fused_and_says_how() -> None:
    assert set(FAMILIES) - set(FUSED) == {"stablelm"}  # its norms are no RMS norms
    assert path_of(dissect(tiny_model("qwen3", blocks=2))) == (True, "pre-norm blocks")
    assert "before and after" in path_of(dissect(tiny_model("gemma2", blocks=2))).reason
    assert "the gated sum" in path_of(dissect(tiny_model("olmo2", blocks=2))).reason


def test_a_family_without_a_row_and_a_model_in_training_take_the_hooks(monkeypatch) -> None:
    body = dissect(tiny_model("llama", blocks=6))
    expected = step(body, eager, GATES)
    monkeypatch.delitem(FUSED, "llama")
    assert path_of(body) == (False, "llama has no row in the table of fused families")
    same(step(body, gated_final_hidden, GATES, recompute=2), expected)
    monkeypatch.undo()
    body.model.train()
    assert path_of(body) == (False, "the model is in training mode, and dropout is not fused")
    same(step(body, gated_final_hidden, GATES), expected)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_loss_and_every_gate_gradient_equal_the_eager_model(model_type, first) -> None:
    body = dissect(tiny_model(model_type, blocks=6))
    expected = step(body, eager, GATES, first=first)
    same(step(body, gated_final_hidden, GATES, first=first), expected)
    assert not expected[1][:first].any()


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_all_gates_one_is_the_model(model_type) -> None:
    body = dissect(tiny_model(model_type, blocks=4))
    ids = random_ids(2, 20)
    with torch.no_grad():
        hidden, arguments = body.prepare(ids)
        final = gated_final_hidden(body, hidden, [1.0] * 4, arguments)
        torch.testing.assert_close(final, body.final_hidden(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_closed_block_is_skipped(model_type) -> None:
    body = dissect(tiny_model(model_type, blocks=6))
    numbers = [0.0, 0.7, 0.0, 0.0, 0.6, 0.0]
    seen: list[int] = []
    handles = [
        body.submodule(index, body.family.attention).register_forward_hook(
            lambda *_, index=index: seen.append(index)
        )
        for index in range(len(body))
    ]
    expected = step(body, eager, numbers)
    seen.clear()

    def watched(*args, **more):
        seen.clear()
        return gated_final_hidden(*args, **more)

    loss, slopes = step(body, watched, numbers)
    assert seen == [1, 4]
    for handle in handles:
        handle.remove()
    open_blocks = torch.tensor(numbers) != 0
    same((loss, slopes), (expected[0], expected[1] * open_blocks))
    assert not slopes[~open_blocks].any()


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_all_gates_closed_leaves_the_final_norm(model_type) -> None:
    body = dissect(tiny_model(model_type, blocks=3))
    with torch.no_grad():
        hidden, arguments = body.prepare(random_ids(2, 8))
        final = gated_final_hidden(body, hidden, [0.0] * 3, arguments)
        torch.testing.assert_close(final, body.normed(hidden))


@pytest.mark.parametrize("model_type", ["granite", "olmo2"])
@pytest.mark.parametrize("recompute", [1, 3, 99])
def test_recomputed_blocks_give_the_same_gradients(model_type, recompute) -> None:
    body = dissect(tiny_model(model_type, blocks=6))
    expected = step(body, gated_final_hidden, GATES)
    got = step(body, gated_final_hidden, GATES, recompute=recompute)
    same(got, expected)


def test_recomputing_keeps_less() -> None:
    body = dissect(tiny_model("llama", blocks=4))
    hidden, arguments = body.prepare(random_ids(2, 20))
    gates = torch.full((4,), 0.5, requires_grad=True)

    def kept(recompute: int) -> int:
        sizes: dict[int, int] = {}
        alive: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            gated_final_hidden(body, hidden, gates, arguments, recompute=recompute)
        return sum(sizes.values())

    weights = kept(4)
    assert kept(0) > kept(2) > weights


def test_what_a_block_keeps_is_measured() -> None:
    body = dissect(tiny_model("llama", blocks=4))
    sizes = []
    for tokens in (16, 32):
        hidden, arguments = body.prepare(random_ids(2, tokens))
        sizes.append(kept_bytes(body, hidden, arguments, block=1))
    stream = 2 * 16 * body.hidden_size * 4
    assert sizes[0] > 4 * stream  # two sums and two branches at the least
    assert 1.8 < sizes[1] / sizes[0] < 2.6


@pytest.mark.parametrize(
    ("budget", "expected"), [(10_000, 0), (1000, 0), (999, 1), (200, 10), (0, 10)]
)
def test_the_budget_says_how_many_blocks_run_again(budget, expected) -> None:
    assert blocks_to_recompute(100, 10, budget, 20) == expected


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh", "relu"])
def test_the_mlp_of_every_activation_equals_transformers(activation) -> None:
    for model_type in ("llama", "phi3"):
        body = dissect(tiny_model(model_type, blocks=1, hidden_act=activation))
        mlp = body.submodule(0, "mlp")
        x = torch.randn(3, body.hidden_size, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(gated.run_mlp(mlp, x, activation), mlp(x))


def test_the_wrong_number_of_gates_is_refused() -> None:
    body = dissect(tiny_model("llama", blocks=3))
    hidden, arguments = body.prepare(random_ids(1, 4))
    with pytest.raises(ValueError, match="2 gates for 3 blocks"):
        gated_final_hidden(body, hidden, [1.0, 1.0], arguments)


@pytest.mark.parametrize(
    ("model_type", "norms", "sums"),
    [("granite", 1 + 2 * 3, 0), ("gemma2", 1 + 4 * 3, 0), ("olmo2", 0, 2 * 3)],
)
def test_the_kernels_give_the_same_loss_and_gradients(model_type, norms, sums, monkeypatch) -> None:
    """Granite: the multiplier is folded into the gate. On the CPU the kernels are interpreted."""
    device = kernels_on(monkeypatch)
    body = dissect(tiny_model(model_type, blocks=3).to(device))
    numbers = [0.7, 0.2, 0.9]
    expected = step(body, eager, numbers)
    calls: list[str] = []
    for name in ("gated_residual_triton", "gated_add_triton"):
        real = getattr(dispatch, name)
        monkeypatch.setattr(
            dispatch,
            name,
            lambda *a, real=real, name=name, **k: (calls.append(name), real(*a, **k))[1],
        )
    same(step(body, gated_final_hidden, numbers), expected)
    assert calls.count("gated_residual_triton") == norms
    assert calls.count("gated_add_triton") == sums


def descended(model_type: str, **settings) -> Trace:
    """A short gate search of a tiny model."""
    body = dissect(tiny_model(model_type, blocks=6))
    body.model.requires_grad_(False)
    states = collect_states(body, random_ids(4, 20))
    problem = Problem(body, states, 2, range(1, 4), cost_of(body, 20))
    return descend(problem, GateSettings(steps=(3,), tokens=40, spacing=2, **settings))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "olmo2"])
def test_the_gate_descends_as_it_does_with_hooks(model_type, monkeypatch) -> None:
    fused = descended(model_type)
    monkeypatch.delitem(FUSED, model_type)
    hooked = descended(model_type)
    assert fused.forward_equivalents == hooked.forward_equivalents
    for one, other in zip(fused.losses, hooked.losses, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-5)
    for one, other in zip(fused.paths, hooked.paths, strict=True):
        assert one == pytest.approx(other, abs=0.02)


def test_a_gate_without_room_for_activations_descends_alike_and_pays_for_it() -> None:
    roomy, tight = descended("llama"), descended("llama", activation_bytes=0)
    for one, other in zip(tight.losses, roomy.losses, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert 1.2 * roomy.forward_equivalents < tight.forward_equivalents
    assert tight.forward_equivalents < 1.5 * roomy.forward_equivalents


def test_the_room_is_half_of_what_is_free_or_what_is_given(monkeypatch) -> None:
    body = dissect(tiny_model("llama", blocks=4))
    hidden, arguments = body.prepare(random_ids(2, 16))
    given = activation_budget(body, hidden, arguments, 10**6)
    assert given.room == 10**6
    assert given.inputs == 2 * hidden.numel() * 4
    assert given.kept_per_block == kept_bytes(body, hidden, arguments, block=2)
    assert given.recompute(4) < activation_budget(body, hidden, arguments, 0).recompute(4) == 4
    monkeypatch.setattr(gated, "free_bytes", lambda device: 600)
    assert activation_budget(body, hidden, arguments).room == 300
    monkeypatch.setattr(gated, "free_bytes", lambda device: None)
    assert activation_budget(body, hidden, arguments).recompute(4) == 0


def test_free_memory_of_the_device_is_known() -> None:
    if DEVICE == "cpu":
        pytest.importorskip("psutil")
    assert (free := gated.free_bytes(torch.device(DEVICE))) is not None
    assert 2**20 < free < 2**46
