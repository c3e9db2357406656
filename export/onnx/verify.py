"""Prove that an ONNX folder does what the Hugging Face folder does, in the real runtime.

onnx's checker, the cache's size, every matrix against the model's, then onnxruntime-genai in a
child process: token ids of hard texts, logits of a prefill and of steps on a cache, a greedy
generation. Every check raises VerificationError with what it measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clp_edge.errors import RuntimeDiedError, VerificationError
from clp_edge.export.base import Target
from clp_edge.export.onnx.angles import check_angles
from clp_edge.export.onnx.contents import Graph
from clp_edge.export.onnx.own_weights import check, own_weights
from clp_edge.export.onnx.reference import Reference
from clp_edge.export.reference_text import HARD_TEXTS
from clp_edge.export.torch_reference import Comparison
from clp_edge.metrics import token_kl, top1_agreement
from clp_edge.runtimes import Session, open_artifact, run_in_child

EXACT = ("fp32", "fp16")
LARGEST = {"fp32": 2e-3, "fp16": 0.05}
"""The largest logit difference allowed, as a share of the logits' deviation. In half precision the
demo model is off by 1.4 % (CPU)."""
NEAR_TIE = 1e-2
OWN_KL = 0.05
WIDEST_OWN_KL = 0.6
_STEPS = 16


def require(holds: bool, folder: Path, what: str) -> None:
    """Raise VerificationError about this folder unless it holds."""
    if not holds:
        raise VerificationError(
            f"{folder.name} failed verification: {what}", "please report this with the model"
        )


def check_with_onnx(path: str) -> None:
    """In the child: onnx.checker on the file, so that its weights' file is looked at too.

    ONNX Runtime registers two of its own operators under ONNX's name; for the checker a copy beside
    the file says whose they are. Raises what the checker raises.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.domain == "" and not onnx.defs.has(node.op_type):
            node.domain = "com.microsoft"
    copy = Path(path).with_name(".checked.onnx")
    try:
        onnx.save(model, str(copy))
        onnx.checker.check_model(str(copy), full_check=False)
    finally:
        copy.unlink(missing_ok=True)


def check_structure(graph: Graph, config: Any, metadata: dict[str, str]) -> None:
    """A key and a value for each block going in and coming out; the metadata is in the graph."""
    blocks = int(config.num_hidden_layers)
    ins, outs = graph.cache_slots()
    folder = graph.folder
    require(ins == outs == blocks, folder, f"its cache has {ins}/{outs} blocks, not {blocks}")
    kept = graph.metadata
    lost = [key for key, value in metadata.items() if kept.get(key) != value]
    require(not lost, folder, f"its metadata lacks {', '.join(lost)}")


def check_tokens(session: Session, folder: Path, hf: Any) -> int:
    """Token ids equal on the hard texts; returns how many texts were compared."""
    for text in HARD_TEXTS:
        theirs, ours = session.tokenize(text), hf.encode(text, add_special_tokens=False)
        at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), 0)
        require(
            theirs == ours,
            folder,
            f"token ids differ on {text[:48]!r}: {session.info.runtime} {theirs[at : at + 4]}, "
            f"transformers {ours[at : at + 4]} at {at}",
        )
    return len(HARD_TEXTS)


def compare(
    session: Session, folder: Path, ids: tuple[int, ...], logits: torch.Tensor
) -> Comparison:
    """KL(torch || graph), top-1 agreement, largest difference; logits (tokens, vocabulary)."""
    width = session.info.vocabulary
    require(width == logits.shape[1], folder, f"{width} tokens, the model {logits.shape[1]}")
    spread = float(logits.std())
    kl, same, largest, row = 0.0, 0.0, 0.0, 0
    for part in session.iter_logits(ids):
        require(bool(np.isfinite(part).all()), folder, "its logits hold NaN or Inf")
        ours, theirs = logits[row : row + len(part)], torch.from_numpy(part)
        kl += float(token_kl(ours, theirs).sum())
        same += float(top1_agreement(ours, theirs).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
        row += len(part)
    return Comparison(kl / row, same / row, largest / spread)


def check_exact(
    folder: Path, target: Target, what: str, found: Comparison, largest: Mapping[str, float]
) -> None:
    """A graph of floats says what torch says; `largest` as `LARGEST` has it."""
    require(found.kl <= target.max_kl, folder, f"{what}: KL is {found.kl:.3g}")
    limit = largest[target.quantization]
    off = f"{what}: a logit is off by {found.largest:.2%} of the deviation, limit {limit:.2%}"
    require(found.largest <= limit, folder, off)
    if target.quantization == "fp32":
        require(found.top1 == 1.0, folder, f"{what}: top-1 agreement is {found.top1:.3f}")


def check_same_text(session: Session, folder: Path, reference: Reference, off: float) -> int:
    """The greedy continuation is torch's, unless a near tie explains the first difference."""
    ours = list(reference.continuation)
    ended = len(reference.continuation_logits) > len(ours)
    theirs = session.generate(reference.prompt, len(ours) + ended, stop=reference.ends)
    allowed = max(NEAR_TIE, 2.0 * off)
    for at in range(len(ours) + ended):
        wanted = ours[at] if at < len(ours) else None  # None: here it ends
        said = theirs[at] if at < len(theirs) else None
        if said == wanted:
            continue
        row = reference.continuation_logits[at]
        others = session.end_tokens() if said is None else {said}
        gap = min((float(row.max() - row[token]) for token in others), default=np.inf)
        require(
            gap <= allowed,
            folder,
            f"greedy token {at} is {said or 'the end'}, torch says {wanted or 'the end'}",
        )
        return at
    return len(ours)


def check_own_text(session: Session, folder: Path, reference: Reference) -> int:
    """A greedy continuation follows the graph's own logits: the cache and the whole agree."""
    fresh = session.generate(reference.prompt, _STEPS)
    whole = session.logits([*reference.prompt, *fresh])
    rows = whole[len(reference.prompt) - 1 : len(reference.prompt) - 1 + len(fresh)]
    spread = float(whole.std())
    for at, (row, token) in enumerate(zip(rows, fresh, strict=True)):
        gap = float(row.max() - row[token])
        allowed = 0.3 * spread  # 8-bit inputs round differently in a prefill and in a step
        require(gap <= allowed, folder, f"generated token {at} is {gap:.3g} logits off its best")
    return len(fresh)


def verify(
    path: Path,
    target: Target,
    *,
    folder: Path,
    config: Any,
    hf: Any,
    reference: Reference,
    metadata: dict[str, str],
    threads: int,
) -> dict[str, Any]:
    """Run every check on one folder made from `folder`; return what was measured.

    A quantized graph beyond `target.max_kl` fails, unless torch with the graph's own matrices says
    the same: then the type costs this model that much. Raises VerificationError naming the check
    and its numbers, also when the runtime dies of the graph.
    """
    exact = target.quantization in EXACT
    graph = Graph(path)
    check_structure(graph, config, metadata)
    spec = "clp_edge.export.onnx.verify:check_with_onnx"
    own: Comparison | None = None
    try:
        run_in_child(spec, what="onnx.checker", path=str(path / "model.onnx"))
        bits = check(graph, reference.model)
        tables = check_angles(graph, reference.model)
        ids = reference.ids
        room = max(len(ids), len(reference.prompt) + 64)
        few = len(reference.step_logits)
        with open_artifact(path, threads=threads, context=room, kv_type="f32", batch=1) as session:
            stepped = compare(session, path, ids[:few], reference.step_logits)
        with open_artifact(
            path, threads=threads, context=room, kv_type="f32", batch=len(ids)
        ) as session:
            texts = check_tokens(session, path, hf)
            found = compare(session, path, ids, reference.logits)
            if exact:
                check_exact(path, target, "prefill", found, LARGEST)
                check_exact(path, target, "steps on the cache", stepped, LARGEST)
                spread = float(reference.logits.std())
                generated = check_same_text(session, path, reference, found.largest * spread)
            else:
                if max(found.kl, stepped.kl) > target.max_kl:
                    own = _check_own(session, graph, folder, ids)
                generated = check_own_text(session, path, reference)
            runtime = f"{session.info.runtime_version}, {session.info.backend}"
    except RuntimeDiedError as error:
        raise VerificationError(f"{path.name} failed verification: {error.cause}") from error
    return {
        "runtime": runtime,
        "reference": "torch float32",
        "tokens": len(reference.ids),
        "kl": found.kl,
        "kl_limit": target.max_kl,
        "kl_cached_steps": stepped.kl,
        "kl_own_weights": own.kl if own is not None else None,
        "top1_agreement": found.top1,
        "largest_logit_difference": found.largest,
        "matrices_by_bits": {str(key): count for key, count in sorted(bits.items())},
        "angle_tables": tables,
        "texts_with_equal_ids": texts,
        "greedy_tokens": generated,
    }


def _check_own(session: Session, graph: Graph, folder: Path, ids: tuple[int, ...]) -> Comparison:
    """Beyond the target's limit: the runtime still computes what torch does with its matrices."""
    logits, rounding = own_weights(graph, folder, ids)
    found = compare(session, graph.folder, ids, logits)
    limit = min(max(OWN_KL, 3.0 * rounding.kl), WIDEST_OWN_KL)
    require(
        found.kl <= limit,
        graph.folder,
        f"KL to torch with the graph's own weights is {found.kl:.3g}, limit {limit:.3g}",
    )
    return found
