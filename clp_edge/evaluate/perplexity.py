"""Perplexity, KL to the dense model and top-1 agreement of a model or of a written artifact.

The protocol (METHODS.md, section 2): the same equal sequences for every candidate; mean negative
log-likelihood over the predicted tokens, so all positions but each sequence's last; KL(dense ||
candidate) over every position; standard errors over sequences. KL's percentiles are over positions,
in llama-perplexity's words (median, 90 %, 99 %, maximum). The mean NLL and KL of each sequence are
kept, so that any two candidates can be paired (`intervals.perplexity_ratio`). The dense model is
kept as its
final hidden states (tokens x hidden), never as logits (tokens x vocabulary): its logits are made
again from the head, `CHUNK` positions at a time, beside the candidate's.

>>> from clp_edge.models.anatomy import dissect
>>> reference = DenseReference.build(dissect(dense), ids)                    # doctest: +SKIP
>>> measure_dense(reference).perplexity                                     # doctest: +SKIP
30.62
>>> measure_model(dissect(pruned), ids, reference).kl                       # doctest: +SKIP
0.337
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from clp_edge.errors import ClpEdgeError, VerificationError
from clp_edge.evaluate.intervals import Estimate, perplexity_ratio
from clp_edge.metrics import (
    mean_and_standard_error,
    perplexity,
    token_kl,
    token_nll,
    top1_agreement,
)
from clp_edge.progress import Progress, silent

CHUNK = 128
"""Positions whose logits, of both models, are held at once."""

MEMORY_LIMIT_BYTES = 1 << 30
"""Hidden states beyond this go to a memory-mapped file without a name."""


class TwoPartModel(Protocol):
    """A causal language model in two parts; `clp_edge.models.anatomy.Anatomy` is one."""

    def final_hidden(self, ids: Tensor) -> Tensor:
        """(batch, tokens) ids -> (batch, tokens, hidden), after the final norm."""
        ...

    def logits(self, final_hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocabulary), with every transform the model has."""
        ...


class LogitSession(Protocol):
    """An open artifact; `clp_edge.runtimes.Session` is one."""

    def iter_logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        """Every position's logits of one fresh sequence in parts, in order: (part, vocabulary)."""
        ...


@dataclass(frozen=True)
class Quality:
    """How good a candidate is, beside the dense model; KL in nats, agreement from 0 to 1.

    Standard errors are over sequences, and NaN where there is only one; percentiles of KL are over
    positions.
    """

    perplexity: float
    perplexity_se: float
    kl: float
    kl_se: float
    top1_agreement: float
    tokens: int
    """Positions compared: sequences x length."""
    top1_agreement_se: float
    kl_median: float
    kl_90: float
    kl_99: float
    kl_max: float
    sequence_nll: tuple[float, ...]
    """mean over the predicted tokens of each sequence"""
    sequence_kl: tuple[float, ...]
    """mean over the positions of each sequence"""

    def ratio_to(self, other: Quality) -> Estimate:
        """This perplexity over the other's, with its paired interval; of the same sequences."""
        return perplexity_ratio(other.sequence_nll, self.sequence_nll)


class DenseReference:
    """The dense model over the evaluation sequences, from which its logits can be made again."""

    def __init__(
        self,
        ids: Tensor,
        hidden: Tensor,
        head: Callable[[Tensor], Tensor],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Args: ids (sequences, length); hidden (sequences, length, hidden) after the final norm.

        `head` gives logits from such states once they are on `device` in `dtype`, both those of
        the model that the head belongs to.
        """
        if ids.dim() != 2 or hidden.shape[:2] != ids.shape:
            raise ValueError(
                f"hidden {tuple(hidden.shape)} do not belong to ids {tuple(ids.shape)}"
            )
        self.ids = ids.cpu()
        self.hidden = hidden
        self._head = head
        self._device = device
        self._dtype = dtype

    def with_head(self, head: Callable[[Tensor], Tensor]) -> DenseReference:
        """The same reference with another model's copy of the dense head, so that the dense model
        itself may be let go; that model must have the dense one's device and dtype."""
        return DenseReference(self.ids, self.hidden, head, device=self._device, dtype=self._dtype)

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        dense: TwoPartModel,
        ids: Tensor,
        *,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        spill_folder: Path | None = None,
        progress: Progress = silent,
    ) -> DenseReference:
        """Run the dense model once over ids (sequences, length), on the device that ids are on.

        The states are kept in float32, in memory up to `memory_limit_bytes`, beyond that in a file
        that vanishes with this object (in `spill_folder`, or the system's place for such files).
        """
        check_sequences(ids)
        sequences, length = ids.shape
        kept: Tensor | None = None
        device, dtype = ids.device, torch.float32
        for index in range(sequences):
            states = dense.final_hidden(ids[index : index + 1])[0]
            if kept is None:
                shape = (sequences, length, int(states.shape[-1]))
                kept = _room_for(shape, memory_limit_bytes, spill_folder)
                device, dtype = states.device, states.dtype
            kept[index] = states.float().cpu()
            progress(index + 1, sequences, f"dense model, sequence {index + 1} of {sequences}")
        assert kept is not None  # check_sequences lets no empty batch pass
        return cls(ids, kept, dense.logits, device=device, dtype=dtype)

    @property
    def tokens(self) -> int:
        """Positions in all: sequences x length."""
        return self.ids.numel()

    @torch.no_grad()
    def logits(self, sequence: int, start: int = 0, stop: int | None = None) -> Tensor:
        """The dense logits of positions [start, stop) of one sequence: (positions, vocabulary)."""
        states = self.hidden[sequence, start:stop]
        return self._head(states.to(self._device, self._dtype))


def _room_for(shape: tuple[int, int, int], limit: int, folder: Path | None) -> Tensor:
    """An empty float32 tensor, in memory or mapped from a file that is already unlinked."""
    if 4 * shape[0] * shape[1] * shape[2] <= limit:
        return torch.empty(shape, dtype=torch.float32)
    with tempfile.TemporaryFile(dir=folder) as file:
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))


def check_sequences(ids: Tensor) -> None:
    """Refuse what cannot be measured: ids must be (sequences, length), length at least 2."""
    if ids.dim() != 2 or ids.shape[0] == 0:
        raise ClpEdgeError(
            "the evaluation text is shorter than one sequence", "give a longer --eval-text"
        )
    if ids.shape[1] < 2:
        raise ClpEdgeError("a sequence of one token predicts nothing", "use longer sequences")


class _Tally:
    """Sums over the positions of one sequence, then over sequences."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids.cpu()
        self.nll: list[float] = []
        self.kl: list[float] = []
        self.top1: list[float] = []
        self._position_kl: list[np.ndarray] = []

    def begin(self) -> None:
        self._sums = [0.0, 0.0, 0.0]
        self._position = 0

    def add(self, candidate: Tensor, dense: Tensor) -> None:
        """The next positions of the current sequence: logits (positions, vocabulary) of both."""
        if candidate.shape != dense.shape:
            raise VerificationError(
                f"the candidate gives {tuple(candidate.shape)} logits where the dense model gives "
                f"{tuple(dense.shape)}",
                "compare models of one vocabulary",
            )
        candidate = candidate.to(dense.device)
        kl = token_kl(dense, candidate)
        if not bool(torch.isfinite(kl).all()):  # one logit that is not finite spoils its row
            raise VerificationError(
                f"logits of sequence {len(self.nll)} are not finite",
                "the weights overflow at this precision; try another --dtype or --target",
            )
        start, stop = self._position, self._position + len(candidate)
        targets = self.ids[len(self.nll), start + 1 : stop + 1].to(dense.device)
        predicted = candidate[: len(targets)]
        self._sums[0] += token_nll(predicted, targets).double().sum().item()
        self._sums[1] += kl.double().sum().item()
        self._position_kl.append(kl.float().cpu().numpy())
        self._sums[2] += top1_agreement(dense, candidate).double().sum().item()
        self._position = stop

    def end(self) -> None:
        length = self.ids.shape[1]
        if self._position != length:
            raise VerificationError(
                f"logits of {self._position} positions came back for {length} tokens",
                "raise the context length of the runtime",
            )
        self.nll.append(self._sums[0] / (length - 1))
        self.kl.append(self._sums[1] / length)
        self.top1.append(self._sums[2] / length)

    def quality(self) -> Quality:
        value, value_se = perplexity(self.nll)
        kl, kl_se = mean_and_standard_error(self.kl)
        top1, top1_se = mean_and_standard_error(self.top1)
        median, high, higher = np.percentile(np.concatenate(self._position_kl), (50, 90, 99))
        return Quality(
            perplexity=value,
            perplexity_se=value_se,
            kl=kl,
            kl_se=kl_se,
            top1_agreement=top1,
            tokens=self.ids.numel(),
            top1_agreement_se=top1_se,
            kl_median=float(median),
            kl_90=float(high),
            kl_99=float(higher),
            kl_max=float(max(part.max() for part in self._position_kl)),
            sequence_nll=tuple(self.nll),
            sequence_kl=tuple(self.kl),
        )


def _chunks(length: int, chunk: int) -> Iterator[slice]:
    for start in range(0, length, chunk):
        yield slice(start, min(start + chunk, length))


def _same_sequences(ids: Tensor, reference: DenseReference) -> None:
    if not torch.equal(ids.cpu(), reference.ids):
        raise ValueError("the reference was built over other sequences")


@torch.no_grad()
def measure_dense(
    reference: DenseReference, progress: Progress = silent, *, chunk: int = CHUNK
) -> Quality:
    """The dense model itself; its KL of 0 and agreement of 1 hold by definition."""
    sequences, length = reference.ids.shape
    nll = []
    for index in range(sequences):
        total = 0.0
        for part in _chunks(length - 1, chunk):
            targets = reference.ids[index, part.start + 1 : part.stop + 1]
            logits = reference.logits(index, part.start, part.stop)
            total += token_nll(logits, targets.to(logits.device)).double().sum().item()
        nll.append(total / (length - 1))
        progress(index + 1, sequences, f"dense perplexity, sequence {index + 1} of {sequences}")
    value, value_se = perplexity(nll)
    return Quality(
        perplexity=value,
        perplexity_se=value_se,
        kl=0.0,
        kl_se=0.0,
        top1_agreement=1.0,
        tokens=reference.tokens,
        top1_agreement_se=0.0,
        kl_median=0.0,
        kl_90=0.0,
        kl_99=0.0,
        kl_max=0.0,
        sequence_nll=tuple(nll),
        sequence_kl=(0.0,) * sequences,
    )


@torch.no_grad()
def measure_model(
    model: TwoPartModel,
    ids: Tensor,
    reference: DenseReference,
    progress: Progress = silent,
    *,
    chunk: int = CHUNK,
) -> Quality:
    """A torch candidate over ids (sequences, length), which are on the candidate's device.

    Raises VerificationError where its logits are not finite or of another vocabulary.
    """
    _same_sequences(ids, reference)
    sequences, length = ids.shape
    tally = _Tally(ids)
    for index in range(sequences):
        states = model.final_hidden(ids[index : index + 1])[0]
        tally.begin()
        for part in _chunks(length, chunk):
            tally.add(model.logits(states[part]), reference.logits(index, part.start, part.stop))
        tally.end()
        progress(index + 1, sequences, f"sequence {index + 1} of {sequences}")
    return tally.quality()


@torch.no_grad()
def measure_artifact(
    session: LogitSession,
    ids: Tensor,
    reference: DenseReference,
    progress: Progress = silent,
    *,
    chunk: int = CHUNK,
) -> Quality:
    """A written artifact, open in its own runtime, over the same sequences.

    Raises VerificationError where its logits are not finite or of another vocabulary, and what the
    session raises when the runtime dies.
    """
    _same_sequences(ids, reference)
    sequences = ids.shape[0]
    tally = _Tally(ids)
    for index in range(sequences):
        tally.begin()
        position = 0
        for answer in session.iter_logits(ids[index].tolist()):
            for part in _chunks(len(answer), chunk):
                start, stop = position + part.start, position + part.stop
                candidate = torch.from_numpy(np.ascontiguousarray(answer[part], dtype=np.float32))
                tally.add(candidate, reference.logits(index, start, stop))
            position += len(answer)
        tally.end()
        progress(index + 1, sequences, f"sequence {index + 1} of {sequences}")
    return tally.quality()


@torch.no_grad()
def measure_pair(
    before: LogitSession,
    after: LogitSession,
    ids: Tensor,
    progress: Progress = silent,
    *,
    chunk: int = CHUNK,
) -> tuple[Quality, Quality]:
    """Two written artifacts beside each other, such as the dense model's file and the healed one's.

    Returns the quality of both with `before` in the dense model's place, so that the KL of `after`
    is KL(before || after). Logits are held for `chunk` positions and a runtime's part at a time.
    Raises as `measure_artifact` does.
    """
    check_sequences(ids)
    first, second = _Tally(ids), _Tally(ids)
    for index in range(ids.shape[0]):
        row = ids[index].tolist()
        first.begin()
        second.begin()
        for old, new in _aligned(before.iter_logits(row), after.iter_logits(row), chunk):
            dense, candidate = torch.from_numpy(old), torch.from_numpy(new)
            first.add(dense, dense)
            second.add(candidate, dense)
        first.end()
        second.end()
        progress(index + 1, ids.shape[0], f"sequence {index + 1} of {ids.shape[0]}")
    return first.quality(), second.quality()


def _aligned(
    first: Iterator[np.ndarray], second: Iterator[np.ndarray], chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both streams in parts of the same positions, whatever parts they come in; what one has more
    than the other is left out, and the tally then misses it."""
    held: list[np.ndarray | None] = [None, None]
    while True:
        for side, stream in enumerate((first, second)):
            now = held[side]
            if now is None or not len(now):
                held[side] = next(stream, None)
        old, new = held
        if old is None or new is None:
            return
        count = min(len(old), len(new), chunk)
        parts = [np.ascontiguousarray(one[:count], dtype=np.float32) for one in (old, new)]
        yield parts[0], parts[1]
        held = [old[count:], new[count:]]
