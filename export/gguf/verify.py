"""Prove that a GGUF file does what the Hugging Face folder does, in the real runtime.

The file is read back, then opened by llama.cpp in a child process, and compared with the folder's
weights in float32 torch: structure, rope frequencies, token ids of hard texts and of a chat turn,
the tokens that end a generation, logits, and a greedy continuation. Every check raises
VerificationError with what it measured; what was measured is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clp_edge.errors import ClpEdgeError, RuntimeDiedError, VerificationError
from clp_edge.export.base import Target
from clp_edge.export.gguf import families, tokenizer
from clp_edge.export.gguf.layout import Layout
from clp_edge.export.gguf.own_weights import own_weights, stored_as_they_are, tensor_errors
from clp_edge.export.gguf.reference import Reference
from clp_edge.export.reference_text import HARD_TEXTS
from clp_edge.export.torch_reference import Comparison
from clp_edge.gguf_file.contents import Contents
from clp_edge.gguf_file.family_table import sliding_blocks
from clp_edge.gguf_file.rope import read_rope
from clp_edge.metrics import token_kl, top1_agreement
from clp_edge.runtimes import GpuLayers, Session, open_artifact

F16_KL = 1e-4
F16_TOP1 = 0.99
F16_LARGEST = 0.02
"""The largest logit difference allowed in an F16 file, as a share of the logits' deviation."""
NEAR_TIE = 1e-2
OWN_KL = 0.05
WIDEST_OWN_KL = 0.6
ROPE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Limits:
    """What a file's logits must keep to."""

    kl: float
    top1: float
    largest: float


WIDEST = Limits(kl=5e-3, top1=0.95, largest=0.25)


def f16_limits(rounding: Comparison) -> Limits:
    """The plain limits, widened for a model that amplifies float16 rounding by itself: to three
    times what rounding alone does, but never to where a mistake could hide."""
    return Limits(
        kl=min(max(F16_KL, 3.0 * rounding.kl), WIDEST.kl),
        top1=max(min(F16_TOP1, 1.0 - 3.0 * (1.0 - rounding.top1)), WIDEST.top1),
        largest=min(max(F16_LARGEST, 3.0 * rounding.largest), WIDEST.largest),
    )


def _require(holds: bool, file: Path, what: str, cure: str = "") -> None:
    if not holds:
        raise VerificationError(
            f"{file.name} failed verification: {what}", cure or "please report this with the model"
        )


def read_back(path: Path) -> Contents:
    """The finished file's head; a truncated one is a failed verification."""
    try:
        return Contents(path)
    except ClpEdgeError as error:
        raise VerificationError(f"{path.name} failed verification: {error.cause}") from error


def check_structure(made: Contents, path: Path, config: Any, layout: Layout | None = None) -> None:
    """The block count, per-block arrays and tensors agree with each other and with the config.

    Where another converter than ours (`layout`) made the file, its tensors may be others.
    """
    arch = layout.architecture if layout else families.family_of(config).architecture
    said = made.header.value("general.architecture")
    _require(said == arch, path, f"it says that it is {said}, not {arch}")
    blocks = int(config.num_hidden_layers)
    stated = made.header.value(f"{arch}.block_count")
    _require(stated == blocks, path, f"it says {stated} blocks, the model has {blocks}")
    for name, key in made.header.keys.items():
        if name.startswith(f"{arch}.") and isinstance(key.value, list):
            length = len(key.value)
            _require(length == blocks, path, f"{name} has {length} entries for {blocks} blocks")
    if layout is not None and layout.peer is not None:
        return
    expected = {row.gguf_name: row.shape for row in families.tensors(config)}
    expected |= {name: value.shape for name, value in families.computed_tensors(config).items()}
    found = {name: made.shape(name) for name in made.tensors}
    wrong = sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n))
    _require(not wrong, path, f"tensors missing, added or of another shape: {wrong[:5]}")


def check_windows(made: Contents, path: Path, config: Any) -> None:
    """Each block is local or global as in the model, and the window is as wide (PITFALLS 15a)."""
    family = families.family_of(config)
    if not family.windows:
        return
    prefix = f"{family.architecture}.attention.sliding_window"
    window = made.header.value(prefix)
    _require(window == config.sliding_window, path, f"its sliding window is {window}")
    stated = [bool(kind) for kind in made.header.value(f"{prefix}_pattern") or []]
    wrong = [i for i, kind in enumerate(sliding_blocks(config)) if stated[i : i + 1] != [kind]]
    _require(not wrong, path, f"blocks {wrong[:5]} are local for global, or the other way round")


def check_rope(
    made: Contents, path: Path, config: Any, reference: Reference, architecture: str | None = None
) -> float:
    """The rotations the file asks for are transformers' own, at every length (PITFALLS 15).

    Returns the largest relative difference of a frequency.
    """
    prefix = f"{architecture or families.family_of(config).architecture}.rope"
    size = int(made.header.value(f"{prefix}.dimension_count", 0))
    exponents = np.arange(0, size, 2, dtype=np.float64) / max(size, 1)
    base = float(made.header.value(f"{prefix}.freq_base", 10_000.0))
    local = float(made.header.value(f"{prefix}.freq_base_swa", base))
    scaled = base**-exponents / float(made.header.value(f"{prefix}.scaling.factor", 1.0))
    worst = 0.0
    for name, frequencies in reference.inverse_frequencies.items():
        written = local**-exponents if name == "local" else scaled
        tensor = {"full": "rope_freqs.weight"}.get(name, f"rope_factors_{name}.weight")
        if tensor in made.tensors:
            written = written / made.values(tensor).reshape(-1)
        same = written.shape == frequencies.shape
        _require(same, path, f"it rotates {written.size} pairs, not {frequencies.size}")
        worst = max(worst, float(np.max(np.abs(written / frequencies - 1.0))))
    gain = float(made.header.value(f"{prefix}.scaling.attn_factor", 1.0))
    worst = max(worst, abs(gain / reference.rotary_gain - 1.0))
    _require(
        worst <= ROPE_TOLERANCE,
        path,
        f"rope frequencies differ by {worst:.2%} from the model's ({read_rope(config).kind})",
    )
    return worst


def check_tokens(session: Session, path: Path, hf: Any, *, ours: bool = True) -> int:
    """Token ids equal on the hard texts, on a chat turn and with the BOS rule (PITFALLS 13).

    `ours`: whether our own rules wrote the tokenizer, with the few differences that `notes` tells.
    Returns how many texts were compared.
    """
    texts = [(text, False) for text in HARD_TEXTS] + [(HARD_TEXTS[0], True), ("a", True)]
    turn = tokenizer.chat_turn(hf)
    if turn is not None:
        texts.append((turn, False))
    written = tokenizer.as_written(hf) if ours else hf
    for text, special in texts:
        theirs = session.tokenize(text, add_special=special)
        expected = written.encode(text, add_special_tokens=special)
        # an older llama.cpp may leave ordinary tokens alone that `written` marks
        _require(
            theirs == expected or theirs == hf.encode(text, add_special_tokens=special),
            path,
            f"token ids differ on {text[:48]!r}: llama.cpp {_around(theirs, expected)}, "
            f"transformers {_around(expected, theirs)}",
        )
    return len(texts)


def _around(ids: Sequence[int], other: Sequence[int]) -> str:
    """The ids from a little before the first difference."""
    at = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), 0)
    return f"{list(ids[max(0, at - 1) : at + 4])} at {at} of {len(ids)}"


def check_ends(session: Session, path: Path, hf: Any) -> list[int]:
    """llama.cpp ends a generation at EOS and at the token that ends a chat turn."""
    ends = session.end_tokens()
    wanted = {hf.eos_token_id, tokenizer.end_of_turn(hf)} - {None}
    missing = sorted(wanted - ends)
    _require(not missing, path, f"llama.cpp does not stop at token {missing}, only at {ends}")
    return sorted(ends)


def compare(session: Session, path: Path, ids: Sequence[int], logits: torch.Tensor) -> Comparison:
    """KL(torch || file), top-1 agreement, largest difference; logits (tokens, vocabulary)."""
    shape = (session.info.vocabulary, logits.shape[1])
    _require(shape[0] == shape[1], path, f"it has {shape[0]} tokens, the model {shape[1]}")
    spread = float(logits.std())
    kl, same, largest, row = 0.0, 0.0, 0.0, 0
    for part in session.iter_logits(ids):
        _require(bool(np.isfinite(part).all()), path, "its logits hold NaN or Inf")
        ours = logits[row : row + len(part)]
        theirs = torch.from_numpy(part)
        kl += float(token_kl(ours, theirs).sum())
        same += float(top1_agreement(ours, theirs).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
        row += len(part)
    return Comparison(kl / row, same / row, largest / spread)


def check_f16_generation(
    session: Session, path: Path, reference: Reference, comparison: Comparison
) -> int:
    """The greedy continuation is torch's, unless a near tie explains the first difference.

    Two logits may change places when they are closer than twice the largest difference measured.
    Returns how many tokens were equal.
    """
    ours = list(reference.continuation)
    ended = len(reference.continuation_logits) > len(ours)
    theirs = session.generate(reference.prompt, len(ours) + ended)
    allowed = max(NEAR_TIE, 2.0 * comparison.largest * float(reference.logits.std()))
    for at in range(len(ours) + ended):
        wanted = ours[at] if at < len(ours) else None  # None: here it ends
        said = theirs[at] if at < len(theirs) else None
        if said == wanted:
            continue
        candidates = session.end_tokens() if said is None else {said}
        gap = min(reference.gap(at, token) for token in candidates)
        _require(
            gap <= allowed,
            path,
            f"greedy token {at} is {said or 'the end'}, torch says {wanted or 'the end'} by "
            f"{gap:.3g} logits",
        )
        return at
    return len(ours)


def check_generation(session: Session, path: Path, reference: Reference) -> int:
    """A greedy continuation follows the file's own logits: the cache and the whole agree."""
    fresh = session.generate(reference.prompt, 16)
    whole = session.logits([*reference.prompt, *fresh])
    rows = whole[len(reference.prompt) - 1 : len(reference.prompt) - 1 + len(fresh)]
    spread = float(whole.std())
    for at, (row, token) in enumerate(zip(rows, fresh, strict=True)):
        gap = float(row.max() - row[token])
        _require(
            gap <= 0.1 * spread, path, f"generated token {at} is {gap:.3g} logits off its best"
        )
    return len(fresh)


def check_tensors(path: Path, source: Path) -> None:
    """Every tensor is the F16 file's, within the rounding of its type."""
    found = tensor_errors(path, source)
    worst = max(found, key=lambda name: found[name], default="")
    _require(not found, path, f"{worst} differs by {found.get(worst, 0.0):.0%} from the F16 file's")


def check_own_weights(
    session: Session,
    path: Path,
    folder: Path,
    config: Any,
    reference: Reference,
    tensors: Sequence[families.Tensor] | None = None,
) -> Comparison:
    """Beyond the target's limit: llama.cpp still computes what torch does with the same weights.

    Then the type costs this model that much, and the file is right. Returns that comparison.
    """
    logits, rounding = own_weights(path, folder, config, reference.ids, tensors=tensors)
    found = compare(session, path, reference.ids, logits)
    limit = min(max(OWN_KL, 3.0 * rounding.kl), WIDEST_OWN_KL)
    _require(
        found.kl <= limit,
        path,
        f"KL to torch with the file's own weights is {found.kl:.3g}, limit {limit:.3g}",
    )
    return found


def _comparable(source: Path | None, folder: Path, config: Any, layout: Layout) -> bool:
    """Whether torch can take the weights of another converter's file."""
    return source is not None and stored_as_they_are(source, folder, config, layout.tensors(config))


def verify(
    path: Path,
    target: Target,
    *,
    folder: Path,
    config: Any,
    hf: Any,
    reference: Reference,
    threads: int,
    source: Path | None = None,
    gpu_layers: GpuLayers = "auto",
    layout: Layout | None = None,
) -> dict[str, Any]:
    """Run every check on one file made from `folder`; return what was measured.

    `layout` says who made the file, our own writer by default.

    `source` is the verified F16 file that a quantized file was made from. A quantized file beyond
    `target.max_kl` fails too, unless torch with the file's own weights says the same as llama.cpp.
    Raises VerificationError naming the check and its numbers, also when llama.cpp dies of the file.
    """
    exact = target.quantization == "F16"
    made = read_back(path)
    layout = layout or Layout(families.family_of(config).architecture)
    ours = layout.peer is None
    check_structure(made, path, config, layout)
    rope: float | None = None
    if ours:
        check_windows(made, path, config)
    # a file of another converter may leave what is llama.cpp's default to it
    if ours or made.header.value(f"{layout.architecture}.rope.dimension_count") is not None:
        rope = check_rope(made, path, config, reference, layout.architecture)
    if source is not None:
        check_tensors(path, source)
    room = max(len(reference.ids), len(reference.prompt) + 64)
    try:
        with open_artifact(
            path, threads=threads, context=room, kv_type="f32", gpu_layers=gpu_layers
        ) as session:
            blocks = session.info.blocks
            _require(blocks == config.num_hidden_layers, path, f"llama.cpp sees {blocks} blocks")
            texts = check_tokens(session, path, hf, ours=ours)
            ends = check_ends(session, path, hf)
            found = compare(session, path, reference.ids, reference.logits)
            limits = f16_limits(reference.rounding)
            own: Comparison | None = None
            kl = limits.kl if exact else target.max_kl
            if (
                not exact
                and found.kl > kl
                and (ours or _comparable(source, folder, config, layout))
            ):
                tensors = layout.tensors(config)
                own = check_own_weights(session, path, folder, config, reference, tensors)
            else:
                _require(found.kl <= kl, path, f"KL to torch is {found.kl:.3g}, limit {kl:.3g}")
            if exact:
                top1 = f"top-1 agreement is {found.top1:.3f}, limit {limits.top1:.3f}"
                _require(found.top1 >= limits.top1, path, top1)
                share = f"a logit is off by {found.largest:.2%} of the deviation"
                allowed = f"{share}, limit {limits.largest:.2%}"
                _require(found.largest <= limits.largest, path, allowed)
                generated = check_f16_generation(session, path, reference, found)
            else:
                generated = check_generation(session, path, reference)
            runtime = f"{session.info.runtime_version}, {session.info.where}"
            reason = session.info.backend_reason
    except RuntimeDiedError as error:
        raise VerificationError(f"{path.name} failed verification: {error.cause}") from error
    return {
        "runtime": runtime,
        "backend_reason": reason,
        "reference": "torch float32",
        "converter": layout.converter,
        "tokens": len(reference.ids),
        "kl": found.kl,
        "kl_limit": kl,
        "kl_own_weights": own.kl if own is not None else None,
        "top1_agreement": found.top1,
        "largest_logit_difference": found.largest,
        "float16_rounding_kl": reference.rounding.kl,
        "float16_rounding_largest": reference.rounding.largest,
        "rope_difference": rope,
        "texts_with_equal_ids": texts,
        "end_tokens": ends,
        "greedy_tokens": generated,
    }
