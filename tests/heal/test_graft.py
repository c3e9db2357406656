"""Grafting: neurons that move compute the same, the choice is the least loss, and it folds in."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from clp_edge.heal import HealResult, Ranks, heal
from clp_edge.heal import graft as grafting
from clp_edge.heal.collect import collect_tail
from clp_edge.heal.graft import GRAFT, GraftStates, Union, places, united
from clp_edge.heal.neurons import Neurons, gated_mlp
from clp_edge.heal.ranks import SINGLE
from clp_edge.metrics import token_kl
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.saving import save_model
from clp_edge.models.surgery import remove_blocks
from clp_edge.segment import Segment
from tests.conftest import byte_level_tokenizer
from tests.heal.test_ranks import in_two
from tests.tiny import random_ids, tiny_model
from tests.trained import WORDS, sentences, trained

SEGMENT = Segment(3, 4)
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "granite"]
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}


def small(model_type: str, **changes: Any) -> Anatomy:
    return dissect(tiny_model(model_type, **{**SMALL, **changes}))


@cache
def _learnt(model_type: str) -> Any:
    return trained(model_type)


def learnt(model_type: str) -> Any:
    """A trained model that may be changed."""
    return copy.deepcopy(_learnt(model_type))


def parts_of(block: Any) -> Any:
    found = gated_mlp(block, dissect(tiny_model("llama")).family)
    assert found is not None
    return found


def watched(body: Anatomy, ids: torch.Tensor) -> GraftStates:
    states = GRAFT.watch(body, SEGMENT)
    collect_tail(body, SEGMENT, ids, observe=states.add)
    return states


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_states_are_what_the_mlp_reads_and_the_neurons_what_it_makes(model_type: str) -> None:
    """Residual multipliers, fused matrices and all: against hooks in the block itself."""
    body = small(model_type)
    states = watched(body, random_ids(6, 24, seed=1))
    seen: dict[str, list[torch.Tensor]] = {"a": [], "m": []}
    norm = body.submodule(2, body.family.mlp_norm)
    down = body.submodule(2, body.family.down_projection)
    norm.register_forward_pre_hook(lambda _m, inputs: seen["a"].append(inputs[0]))
    down.register_forward_pre_hook(lambda _m, inputs: seen["m"].append(inputs[0]))
    collect_tail(body, SEGMENT, random_ids(6, 24, seed=1))
    a, m = (torch.cat([part.flatten(0, 1) for part in seen[name]]) for name in ("a", "m"))
    kept = torch.cat([part for part, _, _ in states.parts(torch.device("cpu"))])
    torch.testing.assert_close(kept, a, rtol=1e-4, atol=1e-4)
    mlp = gated_mlp(body.blocks[2], body.family)
    assert mlp is not None
    torch.testing.assert_close(mlp.neurons()(mlp.normed(a), torch.float32), m, rtol=1e-3, atol=1e-3)


def test_neurons_in_the_places_of_others_compute_what_they_did() -> None:
    """And the others what they did, gains near zero and below it included."""
    model = tiny_model("llama", mlp_bias=True, **SMALL)
    body = dissect(model)
    host: Any = copy.deepcopy(body.blocks[2])
    with torch.no_grad():
        host.post_attention_layernorm.weight[:4] = torch.tensor([1e-9, -1e-3, 0.0, -0.5])
        host.mlp.gate_proj.weight[:, 2] = host.mlp.up_proj.weight[:, 2] = 0.0
    mine, theirs = parts_of(host), parts_of(body.blocks[3])
    a = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    z = mine.normed(a)
    before, others = mine.neurons()(z, torch.float32), theirs.neurons()(z, torch.float32)
    slots, taken = torch.tensor([5, 17, 40]), torch.tensor([90, 2, 33])
    down = torch.randn(64, 96, generator=torch.Generator().manual_seed(2))
    mine.graft(slots, theirs.neurons().pick(taken), down)
    expected = before.clone()
    expected[:, slots] = others[:, taken]
    with torch.no_grad():
        came = host.mlp(host.post_attention_layernorm(a))
    wanted = expected @ down.T + host.mlp.down_proj.bias
    torch.testing.assert_close(came, wanted, rtol=1e-4, atol=1e-3)


def planted(wanted: list[int], count: int = 24, hidden: int = 10) -> Union:
    """Normal equations of a target that is a sum of some of the neurons, and noise."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, count, generator=generator, dtype=torch.float64)
    x = x + 0.3 * x.roll(1, dims=1)
    weights = torch.zeros(hidden, count, dtype=torch.float64)
    weights[:, wanted] = torch.randn(hidden, len(wanted), generator=generator, dtype=torch.float64)
    y = x @ weights.T
    y += 0.05 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    none = torch.empty(count, 1)
    neurons = Neurons(none, none, None, None, torch.nn.functional.silu)
    return Union(neurons, torch.zeros(count), x.T @ x, y.T @ x, torch.zeros_like(weights))


def test_the_neurons_that_make_the_target_are_chosen() -> None:
    wanted = [1, 2, 3, 8, 9, 15, 20, 23]
    assert planted(wanted).choose(len(wanted)).tolist() == wanted


def test_the_neuron_that_goes_is_the_one_whose_loss_costs_least() -> None:
    """Against solving without each of them in turn; then, with one gone, again."""
    union = planted(list(range(24)))
    union.prior = 0.1 * union.cross
    size = 0.003 * union.gram.diagonal().mean()

    def cost(chosen: torch.Tensor) -> float:
        """min over T of ||y - T x||² + lambda ||T - P||², P's dropped columns paid for too."""
        gram = union.gram[chosen][:, chosen] + size * torch.eye(len(chosen))
        right = (union.cross + size * union.prior)[:, chosen]
        return -float((torch.linalg.solve(gram, right.T).T * right).sum())

    left = torch.arange(24)
    for width in (23, 22):
        without = [torch.cat([left[:i], left[i + 1 :]]) for i in range(len(left))]
        left = min(without, key=cost)
        assert union.choose(width).tolist() == left.tolist()


def test_own_neurons_stay_in_their_places() -> None:
    own, slots, taken = places(torch.tensor([0, 2, 5, 7, 9]), 5)
    assert (own.tolist(), slots.tolist(), taken.tolist()) == ([0, 2], [1, 3, 4], [5, 7, 9])


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi3"])
def test_a_trained_model_gains_by_it_and_the_folder_holds_it(
    model_type: str, tmp_path: Path
) -> None:
    """Only block s-1 differs, in the shapes it had; plain transformers computes the KL told."""
    tokenizer = byte_level_tokenizer()
    model = learnt(model_type)
    held = sentences(12, 32, seed=2)
    body = dissect(model)
    found = heal(body, SEGMENT, sentences(96, 32, seed=1), held, rungs="graft")
    refit, graft = found.rung("refit"), found.rung("graft")
    assert refit is not None
    assert graft is not None
    assert graft.kept
    assert refit.kl_after is not None
    assert found.kl < 0.95 * refit.kl_after
    counts = graft.facts["neurons"]
    assert sum(counts.values()) == model.config.intermediate_size
    assert len(counts) > 1
    assert set(found.state) == {2}
    cut = copy.deepcopy(model)
    remove_blocks(cut, SEGMENT.blocks)
    found.apply(cut)
    save_model(cut, tokenizer, tmp_path / "hf", dtype=torch.float32, source=None)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        kl = token_kl(model(held).logits, loaded(held).logits).mean()
    assert float(kl) == pytest.approx(found.kl, rel=1e-3)


def test_it_holds_under_autocast_too() -> None:
    body = replace(dissect(learnt("llama")), autocast=torch.bfloat16)
    text = sentences(96, 32, seed=1), sentences(12, 32, seed=2)
    found = heal(body, SEGMENT, *text, rungs="graft")
    graft = found.rung("graft")
    assert graft is not None
    assert graft.kept


@pytest.mark.parametrize(
    ("model_type", "segment", "why"),
    [
        ("gemma3_text", SEGMENT, "a norm stands between the MLP and the residual stream"),
        ("stablelm", SEGMENT, "is not known as a gated one"),
        ("llama", Segment(0, 1), "the cut begins at block 0"),
    ],
)
def test_where_it_cannot_be_done_it_says_why(model_type: str, segment: Segment, why: str) -> None:
    found = heal(
        small(model_type, head_dim=16),
        segment,
        random_ids(4, 24, seed=1),
        random_ids(3, 24, seed=2),
        rungs="graft",
    )
    assert found.rung("graft") is None
    assert any(note.startswith("no graft: ") and why in note for note in found.notes)


def test_the_kept_tokens_are_few_and_spread_over_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that bear their number, in batches of 37, of which at most 100 may stay."""
    monkeypatch.setattr(grafting, "TOKENS", 100)
    states = GRAFT.watch(small("llama"), SEGMENT)
    numbers = torch.arange(1.0, 926.0)
    for some in numbers.split(37):
        rows = some[:, None].expand(-1, 64).clone()
        states.add(torch.zeros(len(some), 96), rows, rows)
    kept = torch.cat([goal[:, 0] for _, goal, _ in states.parts(torch.device("cpu"))]).tolist()
    assert 50 <= len(kept) == states.tokens <= 100
    assert kept[0] == 1.0
    assert kept[-1] > 880.0
    gaps = [after - before for before, after in pairwise(kept)]
    assert min(gaps) > 0.0
    assert max(gaps) <= 2 * states.stride


def test_neurons_outlive_blocks_that_go_for_good() -> None:
    """`compress` spends the model: its removed blocks lose their weights before the rung."""
    texts = sentences(64, 32, seed=1), sentences(8, 32, seed=2)
    kept = heal(dissect(learnt("llama")), SEGMENT, *texts, rungs="graft")
    spent = heal(dissect(learnt("llama")), SEGMENT, *texts, rungs="graft", spent=True)
    assert spent.kl == kept.kl
    assert all(torch.equal(spent.state[2][name], value) for name, value in kept.state[2].items())


def together(ranks: Ranks) -> HealResult:
    texts = sentences(40, 32, seed=1), sentences(8, 32, seed=2)
    return heal(dissect(tiny_model("llama", vocab_size=WORDS, **SMALL)), SEGMENT, *texts,
                rungs="graft", ranks=ranks)  # fmt: skip


def test_two_processes_choose_as_one_does(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone, first, second = together(SINGLE), *in_two(together, tmp_path)
    finally:
        torch.set_num_threads(before)
    for name, value in alone.state[2].items():
        assert torch.equal(first.state[2][name], second.state[2][name])
        torch.testing.assert_close(first.state[2][name], value, rtol=1e-3, atol=1e-3)
    graft = first.rung("graft")
    assert graft is not None
    assert graft.facts["neurons"] == alone.rungs[-1].facts["neurons"]


def test_a_union_is_no_larger_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    body = small("llama")
    states = watched(body, random_ids(8, 24, seed=1))
    mlp = parts_of(body.blocks[2])
    assert len(united(states, mlp, 2).neurons) == 3 * 96
    monkeypatch.setattr(grafting, "EXTRA_AT_MOST", 7)
    union = united(states, mlp, 2)
    assert len(union.neurons) == len(union.origin) == len(union.gram) == 96 + 7
    assert union.origin[:96].unique().tolist() == [2]
    assert set(union.origin[96:].tolist()) <= {3, 4}
