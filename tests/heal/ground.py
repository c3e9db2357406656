"""Where ideas for rungs are tried: dense states collected once, any chain of blocks judged on them.

A `Chain` is a cut model from some block's input on: which blocks run, in what order, and which of
them are changed copies. `Ground` holds the dense model's states of three texts (to fit on, held
back to choose by, unseen), so that a chain costs its own blocks and the head, and nothing before.
Held-back and unseen KL come per sequence: two chains are compared in pairs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clp_edge.heal.blocks import tuned_blocks
from clp_edge.heal.collect import TailInputs
from clp_edge.heal.held import judge_tail
from clp_edge.heal.refit import RefitSums
from clp_edge.heal.rung import Job, TuningSettings
from clp_edge.heal.tail import Tail
from clp_edge.heal.train import Loss, Trained, train
from clp_edge.kernels.head_kl import Teacher, head_kl, teacher, token_rows
from clp_edge.models.anatomy import Anatomy, BlockArguments
from clp_edge.progress import silent
from clp_edge.segment import Segment

RIDGES = (0.003, 0.01, 0.03)
"""lambda of every closed form here, relative to the mean diagonal; the best on FEW sequences."""
FEW = 12
"""held-back sequences, evenly spread, for choices within an arm: a whole judgement is dear"""
BATCH = 8


@dataclass(frozen=True)
class Text:
    """The dense model's states of one text."""

    ids: Tensor
    """(sequences, tokens)"""
    states: dict[int, Tensor]
    """by block: its input (sequences, tokens, hidden)"""
    dense: Teacher | None = None

    def batches(self) -> Iterator[slice]:
        """Slices of sequences."""
        return (slice(i, i + BATCH) for i in range(0, len(self.ids), BATCH))

    def some(self, count: int) -> Text:
        """An even choice of so many sequences."""
        pick = torch.linspace(0, len(self.ids) - 1, min(count, len(self.ids))).round().long()
        rows = token_rows(pick, self.ids.shape[1])
        return Text(
            self.ids[pick],
            {index: state[pick] for index, state in self.states.items()},
            None if self.dense is None else self.dense.select(rows),
        )


@dataclass(frozen=True)
class Chain:
    """A cut model from the input of block `entry` on; ids are the dense model's."""

    entry: int
    order: tuple[int, ...]
    changed: dict[int, nn.Module] = field(default_factory=dict)
    """what runs in place of some of them"""

    def put(self, index: int, module: nn.Module) -> Chain:
        """The same with one block in another form."""
        return replace(self, changed={**self.changed, index: module})

    def until(self, block: int) -> Chain:
        """Its beginning, up to and with this block."""
        return replace(self, order=self.order[: self.order.index(block) + 1])


@dataclass(frozen=True)
class Judged:
    """KL in nats per sequence."""

    held: Tensor
    unseen: Tensor

    def figures(self, base: Judged | None = None) -> dict[str, Any]:
        """Means, and the paired difference to another chain with its standard error."""
        found: dict[str, Any] = {}
        for name in ("held", "unseen"):
            values = getattr(self, name)
            found[name] = round(float(values.mean()), 5)
            if base is not None:
                gap = values - getattr(base, name)
                error = float(gap.std()) / math.sqrt(len(gap))
                found[f"{name} less base"] = [round(float(gap.mean()), 5), round(error, 5)]
        return found


@dataclass
class Ground:
    """The model, the cut and the texts."""

    body: Anatomy
    segment: Segment
    fit: Text
    held: Text
    unseen: Text
    _plain: tuple[Chain, float] | None = field(default=None, repr=False)
    _few: Text | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        body: Anatomy,
        segment: Segment,
        fit: Tensor,
        held: Tensor,
        unseen: Tensor,
        *,
        keep: Iterable[int] | None = None,
    ) -> Ground:
        """Run the dense model over ids (sequences, tokens) of each text.

        Args: keep, blocks whose inputs are stored; by default from two before the cut to where
            the local rung ends.
        """
        near = tuned_blocks("near", segment, len(body))
        last = near[-1] + 1
        wanted = set(range(max(0, segment.first - 2), last + 1)) if keep is None else set(keep)
        texts = [
            collect(body, ids, wanted, teach=teach)
            for ids, teach in ((fit, False), (held, True), (unseen, True))
        ]
        return cls(body, segment, *texts)

    @property
    def near(self) -> tuple[int, ...]:
        """The blocks that the ladder tunes."""
        return tuned_blocks("near", self.segment, len(self.body))

    def chain(self, gone: Iterable[int], entry: int | None = None) -> Chain:
        """The model without these blocks, from `entry` on (the block before the first of them)."""
        without = set(gone)
        begin = min(without) - 1 if entry is None else entry
        order = tuple(i for i in range(begin, len(self.body)) if i not in without)
        return Chain(begin, order)

    @torch.no_grad()
    def run(self, chain: Chain, text: Text, part: slice) -> Tensor:
        """The hidden state behind the chain's last block: (batch, tokens, hidden)."""
        _, arguments = self.body.prepare(text.ids[part])
        hidden = text.states[chain.entry][part]
        return self.body.run_blocks(chain.order, hidden, arguments, instead=chain.changed)

    @torch.no_grad()
    def kl(self, chain: Chain, text: Text) -> Tensor:
        """(sequences,) mean KL(dense || chain) over the tokens of each sequence, nats."""
        assert text.dense is not None
        found = []
        for part in text.batches():
            final = self.body.normed(self.run(chain, text, part)).flatten(0, 1)
            rows = token_rows(torch.arange(len(text.ids))[part], text.ids.shape[1])
            values = head_kl(self.body.head, text.dense.select(rows), final)
            found.append(values.view(-1, text.ids.shape[1]).mean(-1))
        return torch.cat(found)

    def score(self, chain: Chain) -> float:
        """Mean KL on FEW held-back sequences, to choose by within an arm."""
        if self._few is None:
            self._few = self.held.some(FEW)
        return float(self.kl(chain, self._few).mean())

    def judge(self, chain: Chain) -> Judged:
        """On the held-back and on the unseen text."""
        return Judged(self.kl(chain, self.held), self.kl(chain, self.unseen))

    def copy_of(self, chain: Chain, index: int) -> nn.Module:
        """A float32 copy of what runs as block `index`."""
        return copy.deepcopy(chain.changed.get(index, self.body.blocks[index])).float()

    def refit(
        self, chain: Chain, index: int, goal: int, *, bias: bool = False
    ) -> tuple[Chain, float]:
        """Closed form of block `index`'s last matrix: its output becomes the input of `goal`.

        Args: bias, solve for a constant beside the matrix, jointly.
        Returns: the chain of least score over RIDGES, and its lambda.
        """
        sums = self.sums(chain, index, goal, constant=bias)
        found: tuple[float, Chain, float] | None = None
        for ridge in RIDGES:
            module = self.copy_of(chain, index)
            down: Any = module.get_submodule(self.body.family.down_projection)
            change = solved(sums, ridge, constant=bias).float()
            if bias:
                offset = torch.zeros(len(change)) if down.bias is None else down.bias.detach()
                down.bias = nn.Parameter(offset + change[:, -1], requires_grad=False)
                change = change[:, :-1]
            with torch.no_grad():
                down.weight.add_(change)
            fitted = chain.put(index, module)
            kl = self.score(fitted)
            if found is None or kl < found[0]:
                found = (kl, fitted, ridge)
        assert found is not None
        return found[1], found[2]

    @torch.no_grad()
    def sums(self, chain: Chain, index: int, goal: int, *, constant: bool) -> RefitSums:
        """Gram sums of the MLP intermediate of block `index` in the chain, over the fit text."""
        if self.body.family.norm_after_mlp:
            raise ValueError("a norm stands behind the MLP: its last matrix is not refitted")
        sums = RefitSums(self.body.residual_multiplier)
        head = chain.until(index)
        module = chain.changed.get(index, self.body.blocks[index])
        with intermediate(module, self.body.family.down_projection) as inner:
            for part in self.fit.batches():
                out = self.run(head, self.fit, part).flatten(0, 1)
                m = inner.pop().flatten(0, 1).float()
                if constant:
                    m = torch.cat([m, m.new_ones(len(m), 1)], dim=-1)
                sums.add(m, out, self.fit.states[goal][part].flatten(0, 1))
        return sums

    def plain(self) -> Chain:
        """The standing first rung: the segment out, the block before it refitted."""
        if self._plain is None:
            cut = self.chain(self.segment.blocks)
            self._plain = self.refit(cut, self.segment.first - 1, self.segment.last + 1)
        return self._plain[0]

    def save(self, path: Path) -> None:
        """The texts and the refit, for `load`."""
        self.plain()
        torch.save((self.segment, self.fit, self.held, self.unseen, self._plain), path)

    @classmethod
    def load(cls, path: Path, body: Anatomy) -> Ground:
        """What `save` wrote, of the same model in the same precision: nobody checks."""
        segment, fit, held, unseen, plain = torch.load(path, weights_only=False, mmap=True)
        return cls(body, segment, fit, held, unseen, plain)

    def tail(self, chain: Chain, tuned: Sequence[int]) -> Tail:
        """The chain as what the tuning rungs train, in place on copies of its blocks."""
        return ChainTail(self, chain, tuned)

    def job(self, tail: Tail, settings: TuningSettings, *, reach: int, seed: int = 0) -> Job:
        """A tuning's work, judged on the held-back text."""
        entry = tail.entry
        fit = TailInputs(
            self.fit.ids, self.fit.states[entry], goal=self.fit.states[reach], reach=reach
        )
        held = TailInputs(
            self.held.ids, self.held.states[entry], dense=self.held.dense, reach=len(self.body)
        )
        return Job(tail, fit, held, judge_tail(held, tail, batch=BATCH), settings, seed, BATCH)

    def tune(
        self, job: Job, loss: Loss, *, steps: int, rate: float | None = None, noun: str
    ) -> tuple[Chain, Trained]:
        """Train the tail of a job for so many steps; what came of it, as a chain."""
        usual = job.settings.rate
        found = train(
            job,
            loss,
            steps=steps,
            rate=usual if rate is None else rate,
            seed=job.seed,
            progress=silent,
            noun=noun,
        )
        tail = job.tail
        return Chain(tail.entry, tail.order, copy.deepcopy(tail.trained)), found


class ChainTail(Tail):
    """A tail whose blocks are those of any chain."""

    def __init__(self, ground: Ground, chain: Chain, tuned: Sequence[int]) -> None:
        super().__init__(ground.body, ground.segment, [i for i in tuned if i in chain.order])
        self.entry, self.order = chain.entry, chain.order
        kept = {*self.tuned, *chain.changed}
        self.trained = {i: ground.copy_of(chain, i) for i in sorted(kept)}
        self.frozen = {i: m for i, m in self.frozen.items() if i not in kept}


@contextmanager
def intermediate(module: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """While open, the list gets what the sub-module at `path` reads, call by call."""
    seen: list[Tensor] = []
    handle = module.get_submodule(path).register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )
    try:
        yield seen
    finally:
        handle.remove()


def solved(sums: RefitSums, ridge: float, *, constant: bool) -> Tensor:
    """D (hidden, intermediate) float64; with a constant column last, which bears no ridge.

    The mean diagonal is the intermediate's own with and without the constant, so that one lambda
    means the same in both.
    """
    assert sums.gram is not None
    assert sums.cross is not None
    r = sums.multiplier
    gram = r * r * sums.gram
    size = len(gram) - constant
    diagonal = gram.diagonal()
    diagonal[:size].add_(ridge * diagonal[:size].mean())
    factor = torch.linalg.cholesky(gram)
    return r * torch.cholesky_solve(sums.cross.T, factor).T


@torch.no_grad()
def collect(body: Anatomy, ids: Tensor, keep: Iterable[int], *, teach: bool) -> Text:
    """The inputs of the blocks `keep` in the dense model; `teach` keeps its distributions too."""
    wanted = sorted(set(keep))
    total = len(body)
    states: dict[int, list[Tensor]] = {index: [] for index in wanted}
    teachers = []
    for start in range(0, len(ids), BATCH):
        hidden, arguments = body.prepare(ids[start : start + BATCH])
        for index in range((total if teach else wanted[-1]) + 1):
            if index in states:
                states[index].append(hidden)
            if index < (total if teach else wanted[-1]):
                hidden = body.run_block(index, hidden, arguments)
        if teach:
            teachers.append(teacher(body.head, body.normed(hidden).flatten(0, 1)))
    dense = Teacher.cat(teachers) if teach else None
    return Text(ids, {index: torch.cat(parts) for index, parts in states.items()}, dense)


def local_loss(tail: Tail, inputs: TailInputs) -> Loss:
    """The local rung's, on any tail (heal/local.py)."""
    from clp_edge.heal.local import relative_error

    goal = inputs.goal
    assert goal is not None

    def loss(pick: Tensor) -> Tensor:
        arguments: BlockArguments = tail.body.prepare(inputs.ids[pick])[1]
        return relative_error(tail.until(inputs.reach, inputs.entry[pick], arguments), goal[pick])

    return loss
