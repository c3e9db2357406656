"""Is a quantized file right, or is it the model that cannot bear the type? Two questions apart.

`tensor_errors`: every tensor lies within its type's rounding of the F16 file (sampled rows).
`own_weights`: what torch says with the file's own, dequantized weights. llama.cpp must agree with
it, up to the 8-bit activations of its products, even where the quantization costs a model dearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clp_edge.export.gguf import families
from clp_edge.export.torch_reference import Comparison, compare_logits
from clp_edge.gguf_file.contents import Contents
from clp_edge.models.quiet import quiet

_SAMPLED_ROWS = 64
# Bounds on the relative error (root mean square) of a tensor; one in the wrong place has about 1.4.
_WORST = {
    "F32": 0.0, "F16": 1e-3, "BF16": 0.01, "Q8_0": 0.02, "Q6_K": 0.1,
    "Q5_K": 0.15, "Q5_1": 0.15, "Q5_0": 0.15,
    "Q4_K": 0.3, "Q4_1": 0.3, "Q4_0": 0.3, "IQ4_NL": 0.3, "IQ4_XS": 0.3,
    "Q3_K": 0.5, "IQ3_S": 0.5, "IQ3_XXS": 0.6, "Q2_K": 0.7,
    "IQ2_S": 0.7, "IQ2_XS": 0.7, "IQ2_XXS": 0.8, "IQ1_M": 0.95, "IQ1_S": 0.95,
}  # fmt: skip
_BLOCK = 32


def tensor_errors(path: Path, source: Path) -> dict[str, float]:
    """Relative errors of the tensors of `path` that exceed their type's bound, against `source`.

    Both files hold the same tensors; a type without a known bound counts as exceeding.
    """
    made, originals = Contents(path), Contents(source)
    found = {}
    for name in made.tensors:
        last = made.rows(name) - 1
        rows = np.unique(np.linspace(0, last, num=_SAMPLED_ROWS).astype(np.int64))
        original = originals.values(name, rows).astype(np.float64)
        difference = made.values(name, rows) - original
        size = float(np.sqrt(np.mean(original**2)))
        error = float(np.sqrt(np.mean(difference**2))) / max(size, 1e-12)
        if not error <= _WORST.get(made.type_name(name), -1.0):
            found[name] = error
    return found


@torch.no_grad()
def own_weights(
    path: Path,
    folder: Path,
    config: Any,
    ids: tuple[int, ...],
    *,
    tensors: Sequence[families.Tensor] | None = None,
) -> tuple[torch.Tensor, Comparison]:
    """Torch's logits with the weights of a GGUF file, and what 8-bit activations do to them.

    `tensors`: those of the file, where another converter than ours made it.
    Returns: (tokens, vocabulary) float32, and the comparison of the same with rounded inputs.
    """
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
        ).eval()
    made = Contents(path)
    parameters = model.state_dict()
    for row in families.tensors(config) if tensors is None else tensors:
        values = torch.from_numpy(made.values(row.gguf_name)).reshape(row.shape)
        parameters[row.hf_name].copy_(families.to_model(row, values))
    tokens = torch.tensor([ids])
    logits = model(tokens, use_cache=False).logits[0].float()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(_round_input)
    rounded = model(tokens, use_cache=False).logits[0].float()
    return logits, compare_logits(logits, rounded)


def stored_as_they_are(
    source: Path, folder: Path, config: Any, tensors: Sequence[families.Tensor]
) -> bool:
    """Whether an F16 file holds the folder's tensors, all of them, neither moved nor scaled."""
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    made, ours = Contents(source), model.state_dict()
    named = {row.gguf_name: row for row in tensors}
    if set(named) != set(made.tensors):
        return False
    for name, row in named.items():
        values, wanted = made.values(name), ours[row.hf_name].half().float().numpy()
        if values.size != wanted.size or not np.allclose(
            values.reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-6
        ):
            return False
    return True


def _round_input(module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Inputs in 8 bits, one scale to 32 numbers, as llama.cpp's quantized products take them."""
    values = arguments[0]
    if values.shape[-1] % _BLOCK:
        return arguments
    blocks = values.reshape(*values.shape[:-1], -1, _BLOCK)
    scale = (blocks.abs().amax(-1, keepdim=True) / 127.0).clamp_min(1e-30)
    return ((torch.round(blocks / scale) * scale).reshape(values.shape), *arguments[1:])
