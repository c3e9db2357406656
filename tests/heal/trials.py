"""Ideas for rungs, each tried beside the standing ladder at the same place (minutes, not a test).

    python -m tests.heal.trials NAMES TEXT EVAL [--fit-sequences 160] [--steps 120] [--cache FILE]
    python -m tests.heal.trials NAMES --tiny qwen3 [--steps 120]

The demo model without blocks 13-18, or a tiny trained model of a family (tests/trained.py) without
blocks 3-4 of 8: seconds, and no more than a hint. NAMES, with commas: bias, graft, bridge,
progressive (closed forms), tuned-graft, tuned-progressive, tuned-bridge, qat (rounding as in Q4_0),
qat-q5 (Q5_0; each trains). TEXT gives sequences of 256 to fit on and 32 held back; EVAL 16 unseen
ones of 512. Prints one JSON object a line: KL in nats under the learning stages' precision, and
paired differences with their standard errors.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clp_edge import data
from clp_edge.heal import TuningSettings
from clp_edge.models.anatomy import dissect
from clp_edge.models.precision import choose
from clp_edge.models.source import load_model, load_tokenizer, locate
from clp_edge.segment import Segment
from tests.heal.grafting import grafted, union, width_of
from tests.heal.ground import Chain, Ground, Judged, Text, local_loss
from tests.trained import sentences, trained

SEGMENT = Segment(13, 18)
LENGTH = 256
HELD = 32
UNSEEN = 16

Arms = Iterator[tuple[str, dict[str, Any]]]
"""what was tried, with its figures; each as soon as there is one"""


def bias(ground: Ground, steps: int) -> Arms:
    """A constant beside D, solved jointly, against D alone."""
    segment = ground.segment
    base = ground.judge(ground.plain())
    yield "refit", base.figures()
    cut = ground.chain(segment.blocks)
    chain, ridge = ground.refit(cut, segment.first - 1, segment.last + 1, bias=True)
    yield "refit with a bias", {**ground.judge(chain).figures(base), "ridge": ridge}


def graft(ground: Ground, steps: int) -> Arms:
    """Block s-1's width filled from the union, and the whole union, which no config holds."""
    base = ground.judge(ground.plain())
    yield "refit", base.figures()
    began = time.perf_counter()
    found = union(ground)
    collecting = time.perf_counter() - began
    width = width_of(ground, found)
    began = time.perf_counter()
    chosen = found.choose(width)
    took = {"collecting s": round(collecting, 1), "choosing s": round(time.perf_counter() - began)}
    for name, some in (
        ("own neurons alone", torch.arange(width)),
        ("equal width", chosen),
        ("whole union", torch.arange(len(found.neurons))),
    ):
        chain, facts = grafted(ground, found, some)
        yield name, {**ground.judge(chain).figures(base), **facts, **took}


def bridge(ground: Ground, steps: int) -> Arms:
    """As many blocks left, one of them in the middle of what is gone.

    A window of n + 1 blocks, of which one stays: its last matrix is refitted to what the block
    behind the window read, and, in the second form, the block before the window to what the one
    that stays read.
    """
    segment, total = ground.segment, len(ground.body)
    base = ground.judge(ground.plain())
    yield "refit", base.figures()
    raw: list[tuple[float, Segment, int]] = []
    for first in (segment.first - 1, segment.first):
        window = Segment(first, first + segment.count)
        if window.first < 2 or window.last + 1 >= total:
            continue
        for kept in window.blocks[1:-1]:
            gone = [i for i in window.blocks if i != kept]
            cut = ground.chain(gone, entry=window.first - 1)
            raw.append((ground.score(cut), window, kept))
    raw.sort(key=lambda one: one[0])
    yield "cut", {f"{window} but {kept}": round(kl, 4) for kl, window, kept in raw}
    for _, window, kept in raw[:2]:
        chain = one_stays(ground, window, kept, twice=False)
        yield f"{window} but {kept}", ground.judge(chain).figures(base)
        chain = one_stays(ground, window, kept, twice=True)
        yield f"{window} but {kept}, both refitted", ground.judge(chain).figures(base)


def one_stays(ground: Ground, window: Segment, kept: int, *, twice: bool) -> Chain:
    """The window out but for one block, refitted."""
    gone = [i for i in window.blocks if i != kept]
    chain = ground.chain(gone, entry=window.first - 1)
    if twice:
        chain, _ = ground.refit(chain, window.first - 1, kept)
    return ground.refit(chain, kept, window.last + 1)[0]


def halves(segment: Segment) -> tuple[Segment, Segment]:
    """The segment in two."""
    middle = segment.first + segment.count // 2
    return Segment(segment.first, middle - 1), Segment(middle, segment.last)


def progressive(ground: Ground, steps: int) -> Arms:
    """Two cuts of half, a refit after each, against one."""
    segment = ground.segment
    before, after = segment.first - 1, segment.last + 1
    base = ground.judge(ground.plain())
    yield "refit", base.figures()
    front, back = halves(segment)
    # Front half first: the same block mends twice.
    chain, _ = ground.refit(ground.chain(front.blocks), before, front.last + 1)
    chain = replace(chain, order=tuple(i for i in chain.order if i not in back.blocks))
    chain, _ = ground.refit(chain, before, after)
    yield f"{front}, then {back}", ground.judge(chain).figures(base)
    # Back half first: what was mended goes with the front half, whose own goal is what the half
    # mended model came to.
    half, _ = ground.refit(ground.chain(back.blocks, entry=before), back.first - 1, after)
    came = states_of(ground, half.until(back.first - 1))
    aimed = replace(ground, fit=replace(ground.fit, states={**ground.fit.states, after: came}))
    chain, _ = aimed.refit(ground.chain(segment.blocks), before, after)
    yield f"{back}, then {front}", ground.judge(chain).figures(base)


def states_of(ground: Ground, chain: Chain) -> Tensor:
    """The state behind a chain over the whole fit text."""
    return torch.cat([ground.run(chain, ground.fit, part) for part in ground.fit.batches()])


def tuned(
    ground: Ground, chain: Chain, blocks: tuple[int, ...], steps: int, *, rate: float | None = None
) -> tuple[Chain, dict[str, Any]]:
    """Local tuning of these blocks of a chain."""
    job = ground.job(
        ground.tail(chain, blocks),
        TuningSettings(epochs=1e9, checks=3),
        reach=max(*blocks, ground.segment.last) + 1,
    )
    found, how = ground.tune(
        job, local_loss(job.tail, job.fit), steps=steps, rate=rate, noun="local tuning"
    )
    return found, {
        "history": [(point.step, round(point.kl, 4)) for point in how.points],
        "step s": round(how.step_seconds, 3),
    }


def tuned_graft(ground: Ground, steps: int) -> Arms:
    """Local tuning from the grafted block, and from the refitted one."""
    chain, facts = tuned(ground, ground.plain(), ground.near, steps)
    base = ground.judge(chain)
    yield "refit, local", {**base.figures(), **facts}
    found = union(ground)
    start, _ = grafted(ground, found, found.choose(width_of(ground, found)))
    chain, facts = tuned(ground, start, ground.near, steps)
    yield "graft, local", {**ground.judge(chain).figures(base), **facts}


def tuned_progressive(ground: Ground, steps: int) -> Arms:
    """The back half, refit and local; then the front half, refit and local: equal steps."""
    segment = ground.segment
    before, after = segment.first - 1, segment.last + 1
    chain, facts = tuned(ground, ground.plain(), ground.near, steps)
    base = ground.judge(chain)
    yield "refit, local", {**base.figures(), **facts}
    _, back = halves(segment)
    behind = tuple(i for i in ground.near if i > segment.last)
    half, _ = ground.refit(ground.chain(back.blocks, entry=before), back.first - 1, after)
    half, _ = tuned(ground, half, (back.first - 1, *behind), steps // 3)
    mended = {i: m for i, m in half.changed.items() if i in behind}
    cut = replace(ground.chain(segment.blocks), changed=mended)
    chain, _ = ground.refit(cut, before, after)
    chain, facts = tuned(ground, chain, ground.near, steps - steps // 3)
    yield "halves", {**ground.judge(chain).figures(base), **facts}


def tuned_bridge(ground: Ground, steps: int) -> Arms:
    """The best bridge, and the plain cut: the same number of blocks tuned, for as many steps."""
    chain, facts = tuned(ground, ground.plain(), ground.near, steps)
    base = ground.judge(chain)
    yield "refit, local", {**base.figures(), **facts}
    segment = ground.segment
    behind = tuple(i for i in ground.near if i > segment.last)
    window = Segment(segment.first - 1, segment.last)
    starts = [one_stays(ground, window, kept, twice=True) for kept in window.blocks[1:-1]]
    scores = [ground.score(one) for one in starts]
    start = starts[scores.index(min(scores))]
    kept = next(i for i in start.order if i in window.blocks)
    for name, blocks in (
        ("in place of one behind", (window.first - 1, kept, *behind[:-1])),
        ("besides", (window.first - 1, kept, *behind)),
    ):
        chain, facts = tuned(ground, start, blocks, steps)
        yield f"bridge {kept} tuned {name}", {**ground.judge(chain).figures(base), **facts}


class Rounded(nn.Module):
    """A matrix as Q4_0 or Q5_0 holds it, differentiated as if it were not rounded.

    The straight-through gradient is Bengio et al.'s (arXiv 1308.3432).
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            rounded = q_0(weight, self.bits)
        return weight + (rounded - weight).detach()


def q_0(weight: Tensor, bits: int) -> Tensor:
    """(rows, columns) rounded to what Q4_0 or Q5_0 holds; columns a multiple of 32.

    ggml's rule: blocks of 32 along a row, d = (the entry of largest size, with its sign) / -8 (-16
    at 5 bits), levels -8 to 7 (-16 to 15) times d, d in float16.
    """
    half = 2 ** (bits - 1)
    parts = weight.detach().float().unflatten(-1, (-1, 32))
    top = parts.gather(-1, parts.abs().argmax(-1, keepdim=True))
    step = top / -half
    inverse = torch.where(step == 0, torch.zeros_like(step), 1.0 / step)
    levels = (parts * inverse + half + 0.5).floor().clamp(0, 2 * half - 1) - half
    return (levels * step.half().float()).flatten(-2).to(weight.dtype)


def rounded_copy(module: nn.Module, bits: int) -> nn.Module:
    """A block with every matrix rounded."""
    made = copy.deepcopy(module)
    with torch.no_grad():
        for one in made.modules():
            if isinstance(one, nn.Linear):
                one.weight.copy_(q_0(one.weight, bits))
    return made


@torch.no_grad()
def rounded_entry(ground: Ground, text: Text, entry: int, bits: int) -> Tensor:
    """What block `entry` reads where every block before it is rounded."""
    prefix = {i: rounded_copy(ground.body.blocks[i], bits) for i in range(entry)}
    found = []
    for part in text.batches():
        hidden, arguments = ground.body.prepare(text.ids[part])
        found.append(ground.body.run_blocks(range(entry), hidden, arguments, instead=prefix))
    return torch.cat(found)


def deployed(ground: Ground, texts: dict[str, Text], chain: Chain, bits: int) -> Judged:
    """A chain judged as the target would run it: all of its blocks rounded, and the prefix."""
    whole = {i: rounded_copy(ground.copy_of(chain, i), bits) for i in chain.order}
    there = replace(chain, changed=whole)
    return Judged(ground.kl(there, texts["held"]), ground.kl(there, texts["unseen"]))


def qat(ground: Ground, steps: int, bits: int = 4) -> Arms:
    """More local tuning, with and without the rounding; all judged after rounding all blocks."""
    start, facts = tuned(ground, ground.plain(), ground.near, steps)
    yield "refit, local", {**ground.judge(start).figures(), **facts}
    texts = {
        name: replace(
            getattr(ground, name),
            states={start.entry: rounded_entry(ground, getattr(ground, name), start.entry, bits)},
        )
        for name in ("fit", "held", "unseen")
    }
    before = deployed(ground, texts, start, bits)
    yield "refit, local, rounded", before.figures()
    more, settings = max(1, steps // 2), TuningSettings(epochs=1e9, checks=3)
    base: Judged | None = None
    for name, fake, around in (
        ("more local", False, False),
        ("with the tuned blocks rounded", True, False),
        ("with all blocks rounded", True, True),
    ):
        tail = ground.tail(start, ground.near)
        for index in tail.tuned if fake else ():
            for one in list(tail.trained[index].modules()):
                if isinstance(one, nn.Linear):
                    parametrize.register_parametrization(one, "weight", Rounded(bits))
        seen = ground
        if around:
            tail.frozen = {
                i: rounded_copy(ground.body.blocks[i], bits)
                for i in tail.order
                if i not in tail.trained
            }
            goals = {**ground.fit.states, **texts["fit"].states}
            seen = replace(
                ground, fit=replace(ground.fit, states=goals), held=texts["held"], _few=None
            )
        job = seen.job(tail, settings, reach=max(ground.near) + 1, seed=1)
        chain, how = seen.tune(
            job, local_loss(tail, job.fit), steps=more, rate=settings.rate / 2, noun=name
        )
        for module in chain.changed.values():
            for one in list(module.modules()):
                if parametrize.is_parametrized(one):
                    parametrize.remove_parametrizations(one, "weight", leave_parametrized=False)
        judged = deployed(ground, texts, chain, bits)
        base = base or judged
        yield (
            name,
            {
                **judged.figures(base),
                "not rounded": ground.judge(chain).figures(),
                "history": [(point.step, round(point.kl, 4)) for point in how.points],
                "step s": round(how.step_seconds, 3),
            },
        )


TRIALS: dict[str, Callable[[Ground, int], Arms]] = {
    "bias": bias,
    "graft": graft,
    "bridge": bridge,
    "progressive": progressive,
    "tuned-graft": tuned_graft,
    "tuned-progressive": tuned_progressive,
    "tuned-bridge": tuned_bridge,
    "qat": qat,
    "qat-q5": partial(qat, bits=5),
}


def demo_ground(asked: argparse.Namespace) -> Ground:
    """The demo model's states."""
    source = locate(None)
    body = dissect(load_model(source))
    body = dataclasses.replace(body, autocast=choose(asked.dtype, "cpu").dtype)
    if asked.cache and asked.cache.exists():
        return Ground.load(asked.cache, body)
    tokenizer = load_tokenizer(source)
    sequences = max(round(asked.fit_sequences / 0.8) + 2, 10 * HELD)
    text = data.calibrate(
        data.read_documents(asked.text), tokenizer, sequences=sequences, length=LENGTH, seed=0
    )
    unseen = data.evaluation_text(asked.eval, tokenizer, sequences=UNSEEN, length=512)

    def some(ids: Tensor, count: int) -> Tensor:
        return ids[torch.linspace(0, len(ids) - 1, min(count, len(ids))).round().long()]

    fit, held = some(text.fit, asked.fit_sequences), some(text.select, HELD)
    ground = Ground.of(body, SEGMENT, fit, held, unseen.ids)
    if asked.cache:
        ground.save(asked.cache)
    return ground


def tiny_ground(asked: argparse.Namespace) -> Ground:
    """A tiny model's that has learnt a language, in float32."""
    texts = [sentences(count, 32, seed=seed) for seed, count in ((1, 512), (2, 64), (3, 64))]
    return Ground.of(dissect(trained(asked.tiny)), Segment(3, 4), *texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", help=", ".join(TRIALS))
    parser.add_argument("text", nargs="?")
    parser.add_argument("eval", nargs="?")
    parser.add_argument("--tiny", metavar="FAMILY")
    parser.add_argument("--fit-sequences", type=int, default=160)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cache", type=Path, help="keep the states there, and take them again")
    asked = parser.parse_args()
    if not asked.tiny and not (asked.text and asked.eval):
        parser.error("give TEXT and EVAL, or --tiny FAMILY")
    began = time.perf_counter()
    ground = tiny_ground(asked) if asked.tiny else demo_ground(asked)
    print(json.dumps({"collected s": round(time.perf_counter() - began, 1)}), flush=True)
    for name in asked.names.split(","):
        for arm, facts in TRIALS[name](ground, asked.steps):
            seconds = round(time.perf_counter() - began, 1)
            said = {"trial": name, "arm": arm, **facts, "at s": seconds}
            print(json.dumps({**said, "fit": list(ground.fit.ids.shape)}), flush=True)


if __name__ == "__main__":
    main()
