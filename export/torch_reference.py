"""What every format's reference asks torch, and how other logits stand to its answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clp_edge.errors import ClpEdgeError
from clp_edge.export.reference_text import TEXT
from clp_edge.gguf_file.rope import read_rope
from clp_edge.metrics import token_kl, top1_agreement
from clp_edge.models.quiet import quiet


@dataclass(frozen=True)
class Comparison:
    """How some logits stand to the reference's."""

    kl: float
    """Mean KL(reference || other), nats."""
    top1: float
    largest: float
    """The largest difference of a logit, as a share of the reference logits' deviation."""


def compare_logits(reference: torch.Tensor, other: torch.Tensor) -> Comparison:
    """How `other` stands to `reference`; both (tokens, vocabulary)."""
    return Comparison(
        kl=float(token_kl(reference, other).mean()),
        top1=float(top1_agreement(reference, other).mean()),
        largest=float((reference - other).abs().max() / reference.std()),
    )


def exact_model(folder: Path) -> Any:
    """The folder's model in float32 with plain attention: 4 bytes of memory per parameter."""
    from transformers import AutoModelForCausalLM

    with quiet():
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
        ).eval()


def text_ids(hf: Any, wanted: int) -> tuple[int, ...]:
    """So many tokens of the text, again and again, with the model's own BOS rule."""
    ids = hf.encode(TEXT)
    more = hf.encode(TEXT, add_special_tokens=False)
    while len(ids) < wanted:
        ids = ids + more
    return tuple(ids[:wanted])


@torch.no_grad()
def logits_of(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """(tokens, vocabulary) float32; ClpEdgeError where the model itself is broken."""
    logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    if not bool(torch.isfinite(logits).all()):
        raise ClpEdgeError("the model's own logits hold NaN or Inf", "the model is damaged")
    return logits


@torch.no_grad()
def greedy(
    model: Any, prompt: tuple[int, ...], ends: frozenset[int], new_tokens: int
) -> tuple[tuple[int, ...], torch.Tensor]:
    """The greedy continuation without the end token, and what each was chosen from, the end
    included: (up to tokens + 1, vocabulary)."""
    out = model(torch.tensor([prompt]), use_cache=True)
    chosen_from: list[torch.Tensor] = []
    continuation: list[int] = []
    for _ in range(new_tokens):
        chosen_from.append(out.logits[0, -1].float())
        token = int(chosen_from[-1].argmax())
        if token in ends:
            break
        continuation.append(token)
        out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
    return tuple(continuation), torch.stack(chosen_from)


def rotations(model: Any) -> tuple[dict[str, np.ndarray], float]:
    """Transformers' own inverse frequencies (rotated part / 2,), and what rotated q and k are
    multiplied by.

    Names: "full"; "local" for blocks with a window, where theirs differ; "short" and "long" instead
    of "full" where they depend on the context.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    decoder, config = model.get_decoder(), model.config
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None:  # positions are learnt, or ALiBi's
        return {}, 1.0
    names = {"full_attention_inv_freq": "full", "sliding_attention_inv_freq": "local"}
    found = {
        name: getattr(rotary, attribute).double().numpy()
        for attribute, name in names.items()
        if hasattr(rotary, attribute)
    }
    if found:  # Gemma 3 of transformers 5
        return found, 1.0
    gain = float(rotary.attention_scaling)
    if read_rope(config).kind == "longrope":
        original = read_rope(config).original_length
        for name, length in (("short", original), ("long", original + 1)):
            one, _ = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=length)
            found[name] = one.double().numpy()
        return found, gain
    found["full"] = rotary.inv_freq.double().numpy()
    if hasattr(decoder, "rotary_emb_local"):  # Gemma 3 of transformers 4
        found["local"] = decoder.rotary_emb_local.inv_freq.double().numpy()
    return found, gain
