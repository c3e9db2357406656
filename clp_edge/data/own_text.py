"""Calibration text that the model writes itself: no data needed, works offline.

Each sequence starts with the BOS (by the model's own rule) and the first words of an ordinary text
(openings.py), and goes on by sampling from the model at temperature 1: its own distribution is what
the cut model must keep (after data-free quantization, LLM-QAT, arXiv 2305.17888). Ends of text and
other special tokens are banned, so all sequences have equal length. Text of the user's own field is
better where there is some.

>>> write_own_text(model, tokenizer, sequences=64, length=256, seed=0).fit.shape  # doctest: +SKIP
torch.Size([52, 256])
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clp_edge.data.calibration import Calibration, split_sequences
from clp_edge.data.grouped_attention import groups_as_rows
from clp_edge.data.growing_cache import growing_cache
from clp_edge.data.kept_casts import casts_kept
from clp_edge.data.openings import openings as own_openings
from clp_edge.data.openings import templates
from clp_edge.data.packing import follows_bos
from clp_edge.durable import whole_file
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.progress import Progress, silent

VERSION = 4  # goes into the cache's key: raise it when the way of writing changes
OPENING_TOKENS = 12
"""At most so many of an opening are taken, and a quarter of a sequence."""
NOTHING = -1
"""stands behind an opening that is shorter than others"""
UNUSED = re.compile(r"^[<\[]\|?(unused|reserved|pad|extra_id|dummy|placeholder)", re.I)
REPLACEMENT = "\ufffd"  # what half a character decodes to


def write_own_text(
    model: Any,
    tokenizer: Any,
    *,
    sequences: int,
    length: int,
    seed: int,
    batch: int = 32,
    progress: Progress = silent,
    temperature: float = 1.0,
    openings: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    fingerprint: str | None = None,
) -> Calibration:
    """Let the model write `sequences` sequences of `length` tokens; each is a document of its own.

    Args: openings, what the sequences begin with, each after the other in a random order and no
        more than OPENING_TOKENS of it; None: our own. Without any that the tokenizer knows, each
        begins with a random ordinary token.

    The result depends on the model, openings, seed, sizes, batch, temperature and on what is
    computed in: the weights' type, the kind of device and the autocast around the call, under which
    it is written (bfloat16 where the CPU has such products, see `models/precision.py`; the draw is
    float32). With a `cache_dir` and the model's `fingerprint` it is kept there under all of these
    and read back. Raises UsageError for sizes that cannot be, ClpEdgeError where the model's logits
    are not finite or nearly all that it writes is alike.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if sequences < 3 or length < 4 or batch < 1 or temperature <= 0:
        raise UsageError(
            f"cannot write {sequences} sequences of {length} tokens (batch {batch}, temperature "
            f"{temperature})",
            "use at least 3 sequences of 4 tokens, a batch of 1 and a temperature above 0",
        )
    if isinstance(limit, int) and length > limit:
        raise UsageError(
            f"sequences of {length} tokens exceed the model's context of {limit}",
            f"use at most {limit}",
        )
    begun = templates() if openings is None else openings
    sizes = (sequences, length, seed, batch, temperature)
    path = key = None
    if cache_dir is not None and fingerprint is not None:
        parts = (VERSION, fingerprint, _computed_in(model), *sizes, *begun)
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        path = Path(cache_dir) / f"own-text-{key[:16]}.safetensors"
    ids = None if path is None else _read_cache(path, str(key), (sequences, length))
    if ids is None:
        ids = _write(model, tokenizer, openings, *sizes, progress)
        if path is not None:
            _write_cache(path, str(key), ids)
    skip = int(follows_bos(tokenizer) is not None)
    texts = tokenizer.batch_decode(
        ids[:, skip:], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return split_sequences(
        ids,
        texts,
        origin=f"written by the model itself ({sequences} x {length} tokens, seed {seed})",
        sha256=hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
        seed=seed,
    )


def banned_ids(tokenizer: Any, vocabulary: int) -> Tensor:
    """(vocabulary,) bool: special, unused and padding ids, which ordinary text never holds."""
    banned = torch.zeros(vocabulary, dtype=torch.bool)
    known = min(vocabulary, len(tokenizer))
    banned[known:] = True
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    special.update(i for i in tokenizer.all_special_ids if i is not None)
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(known)))):
        if index in special or token is None or UNUSED.match(str(token)):
            banned[index] = True
    return banned


def _computed_in(model: Any) -> tuple[str, ...]:
    """Device, type of the weights, and autocast if any: other roundings write another text."""
    device = torch.device(model.device).type
    told = (device, str(model.get_input_embeddings().weight.dtype))
    if not torch.is_autocast_enabled(device):
        return told
    return (*told, str(torch.get_autocast_dtype(device)))


@torch.no_grad()
def _write(
    model: Any,
    tokenizer: Any,
    openings: Sequence[str] | None,
    sequences: int,
    length: int,
    seed: int,
    batch: int,
    temperature: float,
    progress: Progress,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = model.get_input_embeddings().weight.shape[0]
    banned = banned_ids(tokenizer, rows)
    if openings is None:
        openings = own_openings(sequences, generator)
    starts = _beginnings(tokenizer, openings, banned, sequences, length, generator)
    bos = follows_bos(tokenizer)
    written = []
    with casts_kept(model), groups_as_rows():
        for first in range(0, sequences, batch):
            given = starts[first : first + batch]
            ids = given[:, :1]
            if bos is not None:
                ids = torch.cat([torch.full_like(ids, bos), ids], dim=1)
            step, cache = ids, growing_cache(model.config)
            while ids.shape[1] < length:
                out = model(step.to(model.device), past_key_values=cache, use_cache=True)
                step = _sample(out.logits[:, -1], banned, temperature, generator)
                at = ids.shape[1] - (bos is not None)
                if at < given.shape[1]:
                    there = given[:, at : at + 1]
                    step = torch.where(there == NOTHING, step, there)
                ids = torch.cat([ids, step], dim=1)
                done = first * length + ids.numel()
                progress(done, sequences * length, "the model writes its calibration text")
            written.append(ids)
    return torch.cat(written)


def _sample(logits: Tensor, banned: Tensor, temperature: float, generator: Any) -> Tensor:
    """(batch, 1) ids drawn from softmax(logits / temperature) without the banned ones.

    By the inverse of the cumulative distribution: one random number a row instead of one a token
    of the vocabulary, which at this batch is what torch.multinomial spends its time on.
    """
    size = logits.shape[1]
    mask = banned[:size]
    if size > len(mask):  # a head wider than the embedding
        mask = torch.cat([mask, torch.ones(size - len(mask), dtype=torch.bool)])
    scores = logits.float() / temperature
    cumulative = torch.softmax(scores.masked_fill_(mask.to(scores.device), -torch.inf), dim=-1)
    cumulative = cumulative.cumsum(dim=-1)
    total = cumulative[:, -1:]
    if bool(total.isnan().any()):  # one bad logit spoils its whole row
        raise ClpEdgeError(
            "the model's logits are not finite, so it cannot write text",
            "load it in float32, or give text with --calibration",
        )
    drawn = torch.rand(len(logits), 1, generator=generator).to(total.device) * total
    # The first id whose cumulative weight exceeds the draw has a weight of its own; rounding may
    # bring the draw up to the total, where the last id with a weight is meant.
    chosen = torch.searchsorted(cumulative, drawn, right=True)
    last = torch.searchsorted(cumulative, total.contiguous())
    return torch.minimum(chosen, last).cpu()


def _beginnings(
    tokenizer: Any, openings: Sequence[str], banned: Tensor, count: int, length: int, generator: Any
) -> Tensor:
    """(count, tokens) ids that sequences begin with, NOTHING behind those that are shorter."""
    most = max(1, min(OPENING_TOKENS, length // 4))
    known = []
    for opening in openings:
        ids = tokenizer(opening, add_special_tokens=False)["input_ids"][:most]
        if ids and max(ids) < len(banned) and not bool(banned[ids].any()):
            known.append(torch.tensor(ids))
    if not known:
        return _first_tokens(tokenizer, banned, count, generator)[:, None]
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(len(known), generator=generator).tolist()
    chosen = [known[index] for index in order[:count]]
    return pad_sequence(chosen, batch_first=True, padding_value=NOTHING)


def _first_tokens(tokenizer: Any, banned: Tensor, count: int, generator: Any) -> Tensor:
    """(count,) random ordinary ids, each of which is readable text by itself."""
    allowed = torch.nonzero(~banned).flatten()
    if len(allowed) == 0:
        raise ClpEdgeError("the tokenizer has no ordinary token", "give text with --calibration")
    chosen: list[int] = []
    for _ in range(100 * count):
        index = int(allowed[torch.randint(len(allowed), (1,), generator=generator)])
        text = tokenizer.decode([index], clean_up_tokenization_spaces=False)
        if text.strip() and REPLACEMENT not in text:
            chosen.append(index)
            if len(chosen) == count:
                return torch.tensor(chosen, dtype=torch.int64)
    raise ClpEdgeError(
        "the tokenizer has hardly a token that is text by itself", "give text with --calibration"
    )


def _read_cache(path: Path, key: str, shape: tuple[int, int]) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            ids = file.get_tensor("ids")
    except (SafetensorError, OSError):  # damaged: write it anew
        return None
    return ids if tuple(ids.shape) == shape and ids.dtype == torch.int64 else None


def _write_cache(path: Path, key: str, ids: Tensor) -> None:
    with whole_file(path) as temporary:
        save_file({"ids": ids.contiguous()}, str(temporary), metadata={"key": key})
