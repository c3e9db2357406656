"""What healing learns from text that the model writes in other ways (minutes, not a test).

    python -m tests.data.text_figures VARIANT [--eval TEXT] [--sequences N] [--draw SEED]
                                      [--prefixes TEXT] [--heal RUNG] [--kept DIR]
                                      [--append FILE]
    python -m tests.data.text_figures compare FILE
    python -m tests.data.text_figures seconds [--sequences N] [--length N] [--turns N]

The demo model without blocks 13-18 is healed (refit, local rung, KL; the balanced preset's sizes)
on N sequences of 256 that a VARIANT makes, under the learning precision, and judged in float32 on
32 sequences of 512 of TEXT. Every variant but `more` gives healing as many tokens as `plain` does:

    plain     as clp_edge writes it: a random ordinary token, then temperature 1
    more      twice as many sequences
    chat      half of them through the chat template, the user's turn written by the model too
              (Xu et al., Magpie, arXiv 2406.08464)
    tails     1.5 times as many, without the sixth of least and the sixth of most perplexity
    spread    1.5 times as many, of these the N farthest from each other in mean hidden state at the
              cut (greedy k-center, Sener and Savarese, arXiv 1708.00489)
    openings  after up to 12 tokens of an opening that clp_edge brings along (data/openings.txt)
    mixed     half plain, half openings
    documents as the model begins a document: after <|endoftext|>
    prefixes  after 8 tokens of real text (--prefixes) in place of one random token; openings that
              TEXT holds are not taken

--kept keeps written text, for other variants too, and what was healed: a run that was stopped goes
on there. --append adds the result as a line, and `compare`
prints every line beside the `plain` ones of the same draw, with paired standard errors over the
judge's sequences. `seconds` times the writing. All print JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import statistics
import sys
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clp_edge import data
from clp_edge.config import PRESETS
from clp_edge.data import kept_casts, own_text
from clp_edge.data.calibration import split_sequences
from clp_edge.data.grouped_attention import groups_as_rows
from clp_edge.data.growing_cache import growing_cache
from clp_edge.data.openings import openings, templates
from clp_edge.data.own_text import OPENING_TOKENS, _first_tokens, _sample, banned_ids
from clp_edge.data.packing import follows_bos
from clp_edge.evaluate import DenseReference, measure_dense, measure_model
from clp_edge.heal import TuningSettings, heal
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.surgery import remove_blocks
from clp_edge.pipeline.stages.calibrate import OWN_TEXT_BATCH
from tests.heal.figures import LENGTH, SEGMENT, _learner

VARIANTS = (
    "plain", "more", "chat", "tails", "spread", "openings", "mixed", "documents", "prefixes",
)  # fmt: skip
PREFIX = 8
"""tokens of real text"""
USER_TOKENS = 64
"""a user's turn is ended there"""
SHORTEST_TURN = 4
MARKS = ("QMARKQ", "AMARKA", "ZMARKZ")


@dataclass(frozen=True)
class Turns:
    """The chat template as ids: what stands before the user's words, and after each turn."""

    opening: list[int]
    to_model: list[int]
    to_user: list[int]

    @classmethod
    def of(cls, tokenizer: Any) -> Turns:
        """Rendered about marks; an end of turn that is no single special id is a ValueError."""
        roles = ("user", "assistant", "user")
        turns = [{"role": r, "content": m} for r, m in zip(roles, MARKS, strict=True)]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        opening, rest = text.split(MARKS[0])
        to_model, rest = rest.split(MARKS[1])
        to_user, _ = rest.split(MARKS[2])
        parts = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in
                 (opening, to_model, to_user)]  # fmt: skip
        if parts[1][0] != parts[2][0] or parts[1][0] not in tokenizer.all_special_ids:
            raise ValueError("this chat template has no one end of turn")
        bos = follows_bos(tokenizer)
        if bos is not None and parts[0][0] != bos:
            parts[0].insert(0, bos)
        return cls(*parts)

    @property
    def end(self) -> int:
        return self.to_model[0]


@dataclass(frozen=True)
class Written:
    """Rows (sequences, length) int64; which tokens the model drew; their mean negative log-prob."""

    ids: Tensor
    drawn: Tensor
    nll: Tensor

    def __getitem__(self, rows: Any) -> Written:
        return Written(self.ids[rows], self.drawn[rows], self.nll[rows])

    def texts(self, tokenizer: Any) -> list[str]:
        """What the model wrote: without the template, which all of them share."""
        rows = zip(self.ids, self.drawn, strict=True)
        return [tokenizer.decode(row[own].tolist()) for row, own in rows]


@torch.no_grad()
def write(
    body: Anatomy, tokenizer: Any, starts: list[list[int]], seed: int, turns: Turns | None = None
) -> Written:
    """Go on from each start to LENGTH tokens, in turns where `turns` is given.

    A row draws its next token, or takes it from its queue: what the template has between turns.
    """
    generator = torch.Generator().manual_seed(seed)
    banned = banned_ids(tokenizer, body.model.get_input_embeddings().weight.shape[0])
    if turns is not None:
        banned[turns.end] = False
    shared = min(len(start) for start in starts)
    ids = torch.tensor([start[:shared] for start in starts])
    own = torch.zeros_like(ids, dtype=torch.bool)
    surprise = torch.zeros(len(ids))
    queues = [deque(start[shared:]) for start in starts]
    said, users = [0] * len(starts), [True] * len(starts)
    step, cache = ids, growing_cache(body.model.config)
    with body.precision(), kept_casts.casts_kept(body.model), groups_as_rows():
        while ids.shape[1] < LENGTH:
            logits = body.model(step, past_key_values=cache, use_cache=True).logits[:, -1].float()
            if turns is not None:
                short = [row for row, count in enumerate(said) if count < SHORTEST_TURN]
                logits[short, turns.end] = -torch.inf
            step = _sample(logits, banned, 1.0, generator)
            free = torch.tensor([not queue for queue in queues])
            for row, queue in enumerate(queues):
                if queue:
                    step[row, 0] = queue.popleft()
                elif turns is not None:
                    said[row] += 1
                    if users[row] and said[row] > USER_TOKENS:
                        step[row, 0] = turns.end
                    if int(step[row, 0]) == turns.end:
                        queue.extend((turns.to_model if users[row] else turns.to_user)[1:])
                        said[row], users[row] = 0, not users[row]
            allowed = logits.masked_fill(banned[: logits.shape[1]], -torch.inf)
            told = allowed.log_softmax(-1).gather(1, step)[:, 0]
            # an end of turn that was forced has no probability of its own
            surprise -= torch.where(free & told.isfinite(), told, 0.0)
            ids = torch.cat([ids, step], dim=1)
            own = torch.cat([own, free[:, None]], dim=1)
    return Written(ids, own, surprise / own.sum(1))


class Desk:
    """Writes rows of a kind, and keeps them in a folder where there is one."""

    def __init__(self, body: Anatomy, tokenizer: Any, asked: argparse.Namespace) -> None:
        self.body, self.tokenizer, self.asked = body, tokenizer, asked
        self.seconds = 0.0

    def rows(self, kind: str, count: int) -> Written:
        """The first `count` rows of this kind and draw, written OWN_TEXT_BATCH at a time."""
        pages: list[Written] = []
        while sum(len(page.ids) for page in pages) < count:
            pages.append(self._page(kind, len(pages)))
        parts = ([getattr(p, f.name) for p in pages] for f in dataclasses.fields(Written))
        return Written(*map(torch.cat, parts))[:count]

    def _page(self, kind: str, number: int) -> Written:
        """A page's seconds count as if they were spent now, however long ago it was written."""
        asked, body = self.asked, self.body
        seed = 1_000 * asked.draw + number
        begun = {"prefixes": PREFIX, "openings": (OPENING_TOKENS, templates())}.get(kind, False)
        told = repr((kind, asked.page, LENGTH, seed, body.autocast, begun))
        name = hashlib.sha256(told.encode()).hexdigest()[:12]
        path = asked.kept and asked.kept / f"{kind}-{name}.safetensors"
        if path and path.is_file():
            found = load_file(str(path))
            self.seconds += float(found.pop("seconds"))
            return Written(**found)
        began = time.perf_counter()
        made = write(body, self.tokenizer, self._starts(kind, seed), seed, self._turns(kind))
        seconds = time.perf_counter() - began
        print(f"{seconds:.0f} s: {asked.page} rows of {kind}", file=sys.stderr, flush=True)
        self.seconds += seconds
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = dataclasses.asdict(made) | {"seconds": torch.tensor(seconds)}
            save_file(kept, str(path))
        return made

    def _turns(self, kind: str) -> Turns | None:
        return Turns.of(self.tokenizer) if kind == "chat" else None

    def _starts(self, kind: str, seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        bos = follows_bos(self.tokenizer)
        head = [bos] if bos is not None else []
        page: int = self.asked.page
        if kind == "chat":
            return [Turns.of(self.tokenizer).opening] * page
        if kind == "openings":
            lines = openings(page, generator)
            told = (self.tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines)
            return [head + one[:OPENING_TOKENS] for one in told]
        if kind == "documents":
            return [[*head, self.tokenizer.convert_tokens_to_ids("<|endoftext|>")]] * page
        if kind == "prefixes":
            return [head + one for one in self._openings(page, generator)]
        banned = banned_ids(self.tokenizer, self.body.model.get_input_embeddings().weight.shape[0])
        first = _first_tokens(self.tokenizer, banned, page, generator)
        return [[*head, one] for one in first.tolist()]

    def _openings(self, count: int, generator: torch.Generator) -> list[list[int]]:
        """The first tokens of documents, none of which the judge's text holds."""
        judge = Path(self.asked.eval).read_text(encoding="utf-8")
        texts = data.read_documents(self.asked.prefixes).texts
        found: list[list[int]] = []
        for index in torch.randperm(len(texts), generator=generator).tolist():
            ids = self.tokenizer(texts[index][:200], add_special_tokens=False)["input_ids"]
            if len(ids) >= PREFIX and self.tokenizer.decode(ids[:PREFIX]).strip() not in judge:
                found.append(ids[:PREFIX])
            if len(found) == count:
                return found
        raise ValueError(f"{self.asked.prefixes} has {len(found)} openings, {count} needed")


def choose(variant: str, desk: Desk, count: int) -> Written:
    """The rows that healing gets."""
    if variant == "plain":
        return desk.rows("plain", count)
    if variant == "more":
        return desk.rows("plain", 2 * count)
    if variant in ("prefixes", "openings", "documents"):
        return desk.rows(variant, count)
    if variant in ("chat", "mixed"):
        kind = {"chat": "chat", "mixed": "openings"}[variant]
        parts = (desk.rows("plain", count - count // 2), desk.rows(kind, count // 2))
        fields = dataclasses.fields(Written)
        return Written(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields))
    rows = desk.rows("plain", count + count // 2)
    if variant == "tails":
        tail = (len(rows.ids) - count) // 2
        return rows[rows.nll.argsort()[tail : tail + count].sort().values]
    return rows[farthest(mean_states(desk.body, rows.ids), count)]


@torch.no_grad()
def mean_states(body: Anatomy, ids: Tensor) -> Tensor:
    """(sequences, hidden): the mean over tokens of what block 13 reads, each entry standardised."""
    found = []
    for part in ids.split(8):
        hidden, arguments = body.prepare(part)
        hidden = body.run_blocks(range(SEGMENT.first), hidden, arguments)
        found.append(hidden.float().mean(1))
    states = torch.cat(found)
    return (states - states.mean(0)) / states.std(0)


def farthest(points: Tensor, count: int) -> Tensor:
    """Indices, in order, of greedy k-center: from the middlemost, always the farthest point."""
    chosen = [int(points.norm(dim=1).argmin())]
    distance = torch.cdist(points, points[chosen])[:, 0]
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, torch.cdist(points, points[chosen[-1:]])[:, 0])
    return torch.tensor(sorted(chosen))


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Write, heal, judge; with --kept, what an earlier run was stopped after is read back."""
    work = PRESETS["balanced"]
    count = asked.sequences or work.own_sequences
    body, tokenizer, learning = _learner("auto")
    told = (asked.variant, asked.draw, count, asked.page, asked.heal, LENGTH, body.autocast)
    name = hashlib.sha256(repr(told).encode()).hexdigest()[:12]
    path = asked.kept and asked.kept / f"healed-{asked.variant}-{name}"
    if path and path.with_suffix(".json").is_file():
        state = load_file(str(path.with_suffix(".safetensors")))
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    else:
        state, facts = _healed(asked, count, body, tokenizer)
        if path:
            asked.kept.mkdir(parents=True, exist_ok=True)
            save_file(state, str(path.with_suffix(".safetensors")))
            path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
    exact = dataclasses.replace(body, autocast=None)
    unseen = data.evaluation_text(asked.eval, tokenizer, sequences=asked.eval_sequences, length=512)
    reference = DenseReference.build(exact, unseen.ids)
    dense = measure_dense(reference)
    for key, value in state.items():
        body.model.get_parameter(key).copy_(value)
    remove_blocks(body.model, SEGMENT.blocks)
    ours = measure_model(dissect(body.model), unseen.ids, reference)
    return {
        "variant": asked.variant,
        "draw": asked.draw,
        "learning": learning,
        **facts,
        "ratio": dataclasses.asdict(ours.ratio_to(dense)),
        "kl": ours.kl,
        "kl_se": ours.kl_se,
        "dense_nll": dense.sequence_nll,
        "nll": ours.sequence_nll,
        "sequence_kl": ours.sequence_kl,
    }


def _healed(
    asked: argparse.Namespace, count: int, body: Anatomy, tokenizer: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors that healing on the variant's text changes, by their names in the dense model,
    and how it went."""
    work = PRESETS["balanced"]
    desk = Desk(body, tokenizer, asked)
    rows = choose(asked.variant, desk, count)
    texts = rows.texts(tokenizer)
    text = split_sequences(rows.ids, texts, origin=asked.variant, sha256="", seed=0)
    # refused where the judge's text has what healing learns from
    data.evaluation_text(asked.eval, tokenizer, sequences=1, length=512, against=text)
    began = time.perf_counter()
    found = heal(
        body,
        SEGMENT,
        text.fit,
        text.select,
        rungs=asked.heal,
        tuning=TuningSettings(steps=work.tuning_steps, rate=work.tuning_rate),
    )
    seconds = time.perf_counter() - began
    came = [(rung.name, rung.kl_after, rung.kept, round(rung.seconds, 1)) for rung in found.rungs]
    print(f"{seconds:.0f} s: {found.kl_cut:.4f}, {came}", file=sys.stderr, flush=True)
    blocks = {id(parameter): name for name, parameter in body.model.named_parameters()}
    state = {
        blocks[id(body.blocks[index].get_parameter(name))]: value.contiguous()
        for index, tensors in found.state.items()
        for name, value in tensors.items()
    }
    facts = {
        "fit": list(text.fit.shape),
        "select": len(text.select),
        "repeats": str(text.repeats),
        "perplexity of the text": float(rows.nll.mean().exp()),
        "seconds of writing": desk.seconds,
        "seconds of healing": seconds,
        "kl_cut": found.kl_cut,
        "rungs": came,
    }
    return state, facts


def difference(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Mean of the paired differences, and its standard error over sequences."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    return statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5


def compare(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Each result less the plain one of its draw, in nats: of perplexity's logarithm, and of KL."""
    lines = Path(asked.file).read_text(encoding="utf-8").splitlines()
    results = [json.loads(line) for line in lines]
    plain = {one["draw"]: one for one in results if one["variant"] == "plain"}
    told = []
    for one in results:
        row = {key: one[key] for key in ("variant", "draw", "fit", "kl", "kl_se")}
        row["ratio"] = one["ratio"]["value"]
        if one["variant"] != "plain" and one["draw"] in plain:
            base = plain[one["draw"]]
            row["nll less plain, se"] = difference(one["nll"], base["nll"])
            row["kl less plain, se"] = difference(one["sequence_kl"], base["sequence_kl"])
        told.append(row)
    return told


def seconds(asked: argparse.Namespace) -> dict[str, Any]:
    """Writing in float32, under bfloat16, and so with each weight cast at every step, or with
    transformers' attention, in turns."""
    body, tokenizer, _ = _learner("float32")
    fast = dataclasses.replace(body, autocast=torch.bfloat16)
    room = kept_casts.LARGEST_BYTES
    rows = groups_as_rows
    ways = {
        "float32": (body, room, rows),
        "bfloat16": (fast, room, rows),
        "cast at every step": (fast, 0, rows),
        "attention of transformers": (fast, room, nullcontext),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(asked.turns):
        for name, (way, largest, attention) in ways.items():
            kept_casts.LARGEST_BYTES = largest
            own_text.groups_as_rows = attention
            began = time.perf_counter()
            with way.precision():
                data.write_own_text(
                    way.model,
                    tokenizer,
                    sequences=asked.sequences,
                    length=asked.length,
                    seed=turn,
                    batch=OWN_TEXT_BATCH,
                )
            taken[name].append(round(time.perf_counter() - began, 2))
            print(name, taken[name], file=sys.stderr, flush=True)
    return {"sequences": asked.sequences, "length": asked.length, "seconds": taken}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="variant", required=True)
    for variant in VARIANTS:
        verb = verbs.add_parser(variant)
        verb.set_defaults(work=run)
        verb.add_argument("--eval", required=True, help="a text that nothing was tuned on")
        verb.add_argument("--eval-sequences", type=int, default=32)
        verb.add_argument("--sequences", type=int)
        verb.add_argument("--draw", type=int, default=0, help="the seed of the writing")
        verb.add_argument("--heal", default="endpoints", help="the last rung to climb")
        verb.add_argument("--page", type=int, default=56, help="sequences written at once")
        verb.add_argument("--prefixes", help="a text of many documents")
        verb.add_argument("--kept", type=Path, help="a folder in which written text is kept")
        verb.add_argument("--append", type=Path, help="a .jsonl that the result is added to")
    verb = verbs.add_parser("compare")
    verb.set_defaults(work=compare, append=None)
    verb.add_argument("file")
    verb = verbs.add_parser("seconds")
    verb.set_defaults(work=seconds, append=None)
    verb.add_argument("--sequences", type=int, default=64)
    verb.add_argument("--length", type=int, default=LENGTH)
    verb.add_argument("--turns", type=int, default=2)
    asked = parser.parse_args()
    if asked.variant == "prefixes" and not asked.prefixes:
        parser.error("prefixes needs --prefixes")
    result = asked.work(asked)
    print(json.dumps(result, indent=1))
    if asked.append:
        with asked.append.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
