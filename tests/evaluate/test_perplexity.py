"""Quality against straightforward float64, and against transformers' own loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch

from clp_edge.errors import ClpEdgeError, VerificationError
from clp_edge.evaluate import (
    DenseReference,
    measure_artifact,
    measure_dense,
    measure_model,
    measure_pair,
)
from clp_edge.models.anatomy import dissect
from tests.tiny import random_ids, tiny_model

SEQUENCES, LENGTH = 5, 37


@pytest.fixture(scope="module")
def dense() -> Any:
    return tiny_model("llama", blocks=4, seed=0)


@pytest.fixture(scope="module")
def candidate(dense: Any) -> Any:
    """The dense model with some noise on one block: close, but not the same."""
    other = tiny_model("llama", blocks=4, seed=0)
    generator = torch.Generator().manual_seed(9)
    weight = other.model.layers[2].mlp.down_proj.weight
    weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return other


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return random_ids(SEQUENCES, LENGTH)


@pytest.fixture(scope="module")
def reference(dense: Any, ids: torch.Tensor) -> DenseReference:
    return DenseReference.build(dissect(dense), ids)


def straightforward(dense: Any, candidate: Any, ids: torch.Tensor) -> dict[str, float]:
    """The definitions, all logits at once, in float64."""
    with torch.no_grad():
        p = scipy.special.log_softmax(dense(ids).logits.double().numpy(), axis=-1)
        q = scipy.special.log_softmax(candidate(ids).logits.double().numpy(), axis=-1)
    nll = -np.take_along_axis(q[:, :-1], ids[:, 1:, None].numpy(), axis=-1)[..., 0]
    kl = (np.exp(p) * (p - q)).sum(-1)
    per_sequence_nll, per_sequence_kl = nll.mean(1), kl.mean(1)
    root = math.sqrt(len(ids))
    return {
        "perplexity": math.exp(nll.mean()),
        "perplexity_se": math.exp(nll.mean()) * per_sequence_nll.std(ddof=1) / root,
        "kl": kl.mean(),
        "kl_se": per_sequence_kl.std(ddof=1) / root,
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).mean(),
        "top1_agreement_se": (p.argmax(-1) == q.argmax(-1)).mean(1).std(ddof=1) / root,
        "kl_median": np.median(kl),
        "kl_90": np.quantile(kl, 0.9),
        "kl_99": np.quantile(kl, 0.99),
        "kl_max": kl.max(),
    }


class ArraySession:
    """An artifact that answers with a torch model's logits, in parts of its own size."""

    def __init__(self, model: Any, part: int, *, drop: int = 0, columns: int | None = None) -> None:
        self.model, self.part, self.drop, self.columns = model, part, drop, columns

    def iter_logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        with torch.no_grad():
            logits = self.model(torch.tensor([list(ids)])).logits[0].numpy()
        logits = logits[: len(logits) - self.drop, : self.columns]
        for start in range(0, len(logits), self.part):
            yield logits[start : start + self.part]


def test_a_model_against_float64(dense, candidate, ids, reference) -> None:
    quality = measure_model(dissect(candidate), ids, reference)
    for name, expected in straightforward(dense, candidate, ids).items():
        assert getattr(quality, name) == pytest.approx(expected, rel=2e-4), name
    assert quality.tokens == SEQUENCES * LENGTH
    assert quality.sequence_kl == pytest.approx(
        [straightforward(dense, candidate, row[None].repeat(2, 1))["kl"] for row in ids], rel=1e-3
    )
    assert math.exp(np.mean(quality.sequence_nll)) == pytest.approx(quality.perplexity)
    assert quality.kl > 0.001
    assert 0.0 < quality.top1_agreement < 1.0


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_perplexity_is_that_of_transformers_loss(family: str) -> None:
    model = tiny_model(family, blocks=3, seed=1)
    ids = random_ids(3, 24, seed=2)
    quality = measure_dense(DenseReference.build(dissect(model), ids))
    with torch.no_grad():
        losses = [float(model(row[None], labels=row[None]).loss) for row in ids]
    assert quality.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


def test_the_dense_model_by_both_ways(dense, ids, reference) -> None:
    by_definition = measure_dense(reference)
    measured = measure_model(dissect(dense), ids, reference)
    assert measured.perplexity == pytest.approx(by_definition.perplexity, rel=1e-6)
    assert measured.perplexity_se == pytest.approx(by_definition.perplexity_se, rel=1e-4)
    assert measured.kl == pytest.approx(0.0, abs=1e-6)
    assert measured.top1_agreement == by_definition.top1_agreement == 1.0


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 1000])
def test_the_chunk_makes_no_difference(candidate, ids, reference, chunk: int) -> None:
    whole = measure_model(dissect(candidate), ids, reference)
    parts = measure_model(dissect(candidate), ids, reference, chunk=chunk)
    for name in ("perplexity", "perplexity_se", "kl", "kl_se", "top1_agreement"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5), name
    assert measure_dense(reference, chunk=chunk).perplexity == pytest.approx(
        measure_dense(reference).perplexity, rel=1e-6
    )


@pytest.mark.parametrize("part", [7, 64])
def test_an_artifact_gives_what_the_model_gives(candidate, ids, reference, part: int) -> None:
    expected = measure_model(dissect(candidate), ids, reference)
    found = measure_artifact(ArraySession(candidate, part), ids, reference, chunk=10)
    for name in ("perplexity", "perplexity_se", "kl", "kl_se", "top1_agreement"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4), name


def test_states_in_a_file_are_the_states_in_memory(dense, candidate, ids, reference, tmp_path):
    spilled = DenseReference.build(
        dissect(dense), ids, memory_limit_bytes=1000, spill_folder=tmp_path
    )
    assert torch.equal(spilled.hidden, reference.hidden)
    assert list(tmp_path.iterdir()) == []
    assert measure_model(dissect(candidate), ids, spilled) == measure_model(
        dissect(candidate), ids, reference
    )


def test_only_hidden_states_are_kept(dense, ids, reference) -> None:
    assert reference.hidden.shape == (SEQUENCES, LENGTH, dense.config.hidden_size)
    assert reference.hidden.dtype == torch.float32
    with torch.no_grad():
        expected = dense(ids[3:4]).logits[0, 10:20]
    torch.testing.assert_close(reference.logits(3, 10, 20), expected, rtol=1e-4, atol=1e-4)


def test_another_model_with_the_same_head_can_stand_in(dense, candidate, ids, reference) -> None:
    stand_in = reference.with_head(dissect(candidate).logits)
    assert measure_dense(stand_in) == measure_dense(reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_head_keeps_the_dtype_and_the_device(dtype: torch.dtype, ids) -> None:
    """Pitfall 29: one constructor that fell back to float32 and the CPU killed stage 7 of 8."""
    body = dissect(tiny_model("llama", blocks=2).to(dtype))
    seen: list[tuple[torch.dtype, torch.device]] = []

    def head(states: torch.Tensor) -> torch.Tensor:
        seen.append((states.dtype, states.device))
        return body.logits(states.to("cpu"))

    reference = DenseReference.build(body, ids)
    other = reference.with_head(body.logits).with_head(head)
    assert torch.equal(other.logits(1), reference.logits(1))
    assert seen == [(dtype, ids.device)]
    elsewhere = DenseReference(
        ids, reference.hidden, body.logits, device=torch.device("meta"), dtype=dtype
    )
    seen.clear()
    with pytest.raises(NotImplementedError):  # states without values cannot come back
        elsewhere.with_head(head).logits(1)
    assert seen == [(dtype, torch.device("meta"))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_keeps_its_states_and_its_logits_are_not_rounded(
    dtype: torch.dtype, ids
) -> None:
    model = tiny_model("llama", blocks=2).to(dtype)
    body = dissect(model)
    reference = DenseReference.build(body, ids)
    assert reference.hidden.dtype == torch.float32
    with torch.no_grad():
        states = body.final_hidden(ids[:1])[0]
        assert states.dtype == dtype
        exact = states.double() @ model.lm_head.weight.double().T
        assert (reference.logits(0) - exact).abs().max() < 1e-4
        assert (model(ids[:1]).logits[0] - exact).abs().max() > 1e-3  # its own are rounded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_candidate_is_measured_as_float32_measures_it(
    dense, candidate, ids, dtype: torch.dtype
) -> None:
    exact = measure_model(dissect(candidate), ids, DenseReference.build(dissect(dense), ids))
    halves = [copy.deepcopy(model).to(dtype) for model in (dense, candidate)]
    reference = DenseReference.build(dissect(halves[0]), ids)
    got = measure_model(dissect(halves[1]), ids, reference)
    assert got.kl == pytest.approx(exact.kl, rel=0.1, abs=2e-3)
    assert got.perplexity == pytest.approx(exact.perplexity, rel=0.05)
    assert measure_model(dissect(halves[0]), ids, reference).kl < 1e-6


def test_other_sequences_are_refused(candidate, reference) -> None:
    with pytest.raises(ValueError, match="other sequences"):
        measure_model(dissect(candidate), random_ids(SEQUENCES, LENGTH, seed=5), reference)


def test_logits_that_overflow_are_an_error_not_a_number(dense, ids, reference) -> None:
    broken = tiny_model("llama", blocks=4, seed=0)
    broken.model.layers[1].mlp.down_proj.weight.mul_(float("inf"))
    with pytest.raises(VerificationError, match="not finite"):
        measure_model(dissect(broken), ids, reference)


def test_an_artifact_of_another_vocabulary_or_length_is_an_error(dense, ids, reference) -> None:
    with pytest.raises(VerificationError, match="one vocabulary"):
        measure_artifact(ArraySession(dense, 64, columns=300), ids, reference)
    with pytest.raises(VerificationError, match="36 positions came back for 37 tokens"):
        measure_artifact(ArraySession(dense, 64, drop=1), ids, reference)


@pytest.mark.parametrize("shape", [(0, 16), (3, 1)])
def test_text_that_is_too_short(dense, shape: tuple[int, int]) -> None:
    with pytest.raises(ClpEdgeError):
        DenseReference.build(dissect(dense), torch.zeros(shape, dtype=torch.int64))


def test_progress_ends_at_the_whole(candidate, ids, reference) -> None:
    seen: list[tuple[float, float]] = []
    measure_model(dissect(candidate), ids, reference, lambda d, t, note="": seen.append((d, t)))
    assert seen == [(i, SEQUENCES) for i in range(1, SEQUENCES + 1)]


def test_the_ratio_to_the_dense_model_is_paired(candidate, ids, reference) -> None:
    quality, dense = measure_model(dissect(candidate), ids, reference), measure_dense(reference)
    ratio = quality.ratio_to(dense)
    assert ratio.value == pytest.approx(quality.perplexity / dense.perplexity)
    assert ratio.n == SEQUENCES
    assert ratio.low < ratio.value < ratio.high
    alone = 1.96 * quality.perplexity_se / quality.perplexity
    assert (ratio.high - ratio.low) / 2 < alone


@pytest.mark.parametrize(("first", "second"), [(7, 10), (64, 5), (37, 37)])
def test_two_artifacts_beside_each_other(
    dense, candidate, ids, reference, first: int, second: int
) -> None:
    """Whatever parts each runtime answers in."""
    old, new = measure_pair(
        ArraySession(dense, first), ArraySession(candidate, second), ids, chunk=8
    )
    expected = measure_model(dissect(candidate), ids, reference)
    for name in ("perplexity", "perplexity_se", "kl", "kl_se", "kl_99", "top1_agreement"):
        assert getattr(new, name) == pytest.approx(getattr(expected, name), rel=1e-3), name
    assert old.perplexity == pytest.approx(measure_dense(reference).perplexity, rel=1e-5)
    assert (old.kl, old.top1_agreement) == (0.0, 1.0)


def test_two_artifacts_that_do_not_belong_together(dense, ids) -> None:
    whole = ArraySession(dense, 64)
    with pytest.raises(VerificationError, match="one vocabulary"):
        measure_pair(whole, ArraySession(dense, 64, columns=300), ids)
    with pytest.raises(VerificationError, match="36 positions came back for 37 tokens"):
        measure_pair(whole, ArraySession(dense, 64, drop=1), ids)
