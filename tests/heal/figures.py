"""The figures of docs/LOG.md about healing, each taken by one command (minutes, not a test).

    python -m tests.heal.figures ladder TEXT EVAL [--preset best] [--heal endpoints]
                                 [--tune-blocks near] [--dtype auto] [--rate R]
                                 [--sequences N] [--steps N]
    python -m tests.heal.figures step TEXT

The demo model without blocks 13-18. `ladder` heals on TEXT as `clp-edge compress --blocks 13-18
--preset P --calibration TEXT` does (TEXT "own": the model writes it, as without --calibration) and
judges on EVAL (sequences of 512) and on TEXT's own report split (32 sequences); with `--kept
FOLDER` a run that was ended while it judged goes on from its healed weights. `step` times a step on
KL beside the naive one, in turns. Both print JSON.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clp_edge import data
from clp_edge.config import PRESETS
from clp_edge.evaluate import DenseReference, measure_dense, measure_model
from clp_edge.heal import TuningSettings, heal
from clp_edge.heal.blocks import tuned_blocks
from clp_edge.heal.collect import Teachers, collect_tail, light_head
from clp_edge.heal.fast_head import fast_kl
from clp_edge.heal.tail import Tail
from clp_edge.kernels.head_kl import head_kl
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.precision import choose
from clp_edge.models.source import load_model, load_tokenizer, locate
from clp_edge.models.surgery import remove_blocks
from clp_edge.pipeline.stages.calibrate import OWN_TEXT_BATCH
from clp_edge.segment import Segment

SEGMENT = Segment(13, 18)
LENGTH = 256


def _learner(dtype: str) -> tuple[Anatomy, Any, str]:
    source = locate(None)
    learning = choose(dtype, "cpu")
    body = dissect(load_model(source))
    return dataclasses.replace(body, autocast=learning.dtype), load_tokenizer(source), learning.name


def _key(asked: argparse.Namespace, text: data.Calibration) -> str:
    """Of what the healed weights depend on."""
    parts = {"preset's work": str(PRESETS[asked.preset]), "sha256": text.sha256}
    parts |= {
        k: str(v)
        for k, v in vars(asked).items()
        if k not in ("work", "eval", "eval_sequences", "kept")
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _text(asked: argparse.Namespace, body: Anatomy, tokenizer: Any) -> data.Calibration:
    work = PRESETS[asked.preset]
    if asked.text == "own":
        with body.precision():
            return data.write_own_text(
                body.model,
                tokenizer,
                sequences=asked.sequences or work.own_sequences,
                length=LENGTH,
                seed=0,
                batch=OWN_TEXT_BATCH,
                cache_dir=asked.kept,
                fingerprint=f"demo {body.autocast}",
            )
    return data.calibrate(
        data.read_documents(asked.text),
        tokenizer,
        sequences=asked.sequences or work.given_sequences,
        length=LENGTH,
        seed=0,
    )


def ladder(asked: argparse.Namespace) -> dict[str, Any]:
    """Heal, then perplexity over the dense one and KL on unseen text, in float32."""
    work = PRESETS[asked.preset]
    body, tokenizer, learning = _learner(asked.dtype)
    began = time.perf_counter()
    text = _text(asked, body, tokenizer)
    print(f"text: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    began = time.perf_counter()
    said = [began]

    def speak(done: int, total: int, note: str) -> None:
        if time.perf_counter() - said[0] > 20:
            said[0] = time.perf_counter()
            print(f"{said[0] - began:.0f} s: {note} ({done}/{total})", file=sys.stderr, flush=True)

    kept = asked.kept / f"healed-{_key(asked, text)}.pt" if asked.kept else None
    if kept is not None and kept.exists():
        found, seconds = torch.load(kept, weights_only=False)
    else:
        found = heal(
            body,
            SEGMENT,
            text.fit,
            text.select,
            rungs=asked.heal,
            tune_blocks=asked.tune_blocks,
            tuning=TuningSettings(
                steps=asked.steps or work.tuning_steps, rate=asked.rate or work.tuning_rate
            ),
            progress=speak,
        )
        seconds = time.perf_counter() - began
        if kept is not None:
            torch.save((found, seconds), kept)
    came = [(rung.name, rung.kl_after, rung.kept, round(rung.seconds, 1)) for rung in found.rungs]
    print(f"{seconds:.0f} s: {found.kl_cut:.4f}, {came}; judging", file=sys.stderr, flush=True)
    exact = dataclasses.replace(body, autocast=None)
    cut = copy.deepcopy(body.model)
    remove_blocks(cut, SEGMENT.blocks)
    found.apply(cut)
    judged = {}
    unseen = data.evaluation_text(asked.eval, tokenizer, sequences=asked.eval_sequences, length=512)
    for name, ids in {"eval": unseen.ids, "report split": text.report[:32]}.items():
        reference = DenseReference.build(exact, ids)
        ours = measure_model(dissect(cut), ids, reference)
        ratio = ours.ratio_to(measure_dense(reference))
        judged[name] = {
            "ratio": dataclasses.asdict(ratio),
            "kl": ours.kl,
            "kl_se": ours.kl_se,
            "sequences": len(ids),
        }
    return {
        "learning": learning,
        "fit": list(text.fit.shape),
        "seconds": seconds,
        "parts": found.seconds,
        "kl_cut": found.kl_cut,
        "rungs": [dataclasses.asdict(rung) for rung in found.rungs],
        "notes": found.notes,
        "judged": judged,
    }


def step(asked: argparse.Namespace) -> dict[str, Any]:
    """Ours and the naive step (teacher, student, full logits), in turns; the same precision."""
    body, tokenizer, learning = _learner(asked.dtype)
    text = data.calibrate(
        data.read_documents(asked.text), tokenizer, sequences=40, length=LENGTH, seed=0
    )
    tail = Tail(body, SEGMENT, tuned_blocks(asked.tune_blocks, SEGMENT, len(body)))
    reach = max(*tail.tuned, SEGMENT.last) + 1
    inputs = collect_tail(body, SEGMENT, text.fit, entry=tail.entry, reach=reach)
    light, head = light_head(body), body.head
    teachers = Teachers(tail, inputs, light)
    for index in tail.tuned:
        tail.trained[index].requires_grad_(True)
    student = copy.deepcopy(body.model)
    remove_blocks(student, SEGMENT.blocks)
    left = [i for i in range(len(body)) if i not in SEGMENT.blocks]
    for index in tail.tuned:
        dissect(student).blocks[left.index(index)].requires_grad_(True)

    def ours(pick: Tensor) -> None:
        _, arguments = body.prepare(text.fit[pick])
        dense = teachers.of(pick)
        final = tail(inputs.entry[pick], arguments).flatten(0, 1)
        exact = light is None
        loss = head_kl(head, dense, final) if exact else fast_kl(light, head.scale, dense, final)
        loss.mean().backward()

    def naive(pick: Tensor) -> None:
        with body.precision():
            with torch.no_grad():
                dense = body.model(text.fit[pick]).logits.float().log_softmax(-1)
            candidate = student(text.fit[pick]).logits.float().log_softmax(-1)
        (dense.exp() * (dense - candidate)).sum(-1).mean().backward()

    taken: dict[str, list[float]] = {"ours": [], "naive": []}
    for turn in range(asked.turns):
        pick = torch.tensor([2 * turn, 2 * turn + 1]) % len(text.fit)
        for name, work in (("ours", ours), ("naive", naive)):
            began = time.perf_counter()
            work(pick)
            taken[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(values[1:]) for name, values in taken.items()}
    # In blocks of the model; the head counts as 8. Backward: activations one forward, and weights
    # one more in the tuned blocks. Ours takes the dense model from its stored state on.
    after, tuned, rest = len(body) - reach, len(tail.tuned), len(tail.order)
    small = rest + 8 + (rest - 1 + tuned + 8) + after + 16
    large = len(body) + 8 + (len(left) + 8) + (rest - 1 + tuned + 8)
    return {
        "learning": learning,
        "seconds": taken,
        "median": middle,
        "ratio": middle["ours"] / middle["naive"],
        "ratio by operations": small / large,
        "turns": asked.turns,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True)
    for work in (ladder, step):
        verb = verbs.add_parser(work.__name__)
        verb.set_defaults(work=work)
        verb.add_argument("text")
        verb.add_argument("--dtype", default="auto")
        verb.add_argument("--tune-blocks", default="near")
        if work is ladder:
            verb.add_argument("eval")
            verb.add_argument("--preset", default="best")
            verb.add_argument("--heal", default="endpoints")
            verb.add_argument("--rate", type=float)
            verb.add_argument("--sequences", type=int)
            verb.add_argument("--eval-sequences", type=int, default=32)
            verb.add_argument("--steps", type=int, help="on KL; three times as many local ones")
            verb.add_argument("--kept", type=Path, help="a folder for own text and healed weights")
        else:
            verb.add_argument("--turns", type=int, default=7)
    asked = parser.parse_args()
    print(json.dumps(asked.work(asked), indent=1))


if __name__ == "__main__":
    main()
