"""Is a quantized file right, or is it the model that cannot bear the type? Two questions apart.

`tensor_errors`: every tensor lies within its type's rounding of the F16 file (sampled rows).
`own_weights`: what torch says with the file's own, dequantized weights. llama.cpp must agree with
it, up to the 8-bit activations of its products, even where the quantization costs a model dearly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, quants

from clp_edge.export.gguf import families
from clp_edge.export.gguf.reference import Comparison, compare_logits

_SAMPLED_ROWS = 64
# Bounds on the relative error (root mean square) of a tensor; one in the wrong place has about 1.4.
_WORST = {
    "F32": 0.0, "F16": 1e-3, "BF16": 0.01, "Q8_0": 0.02, "Q6_K": 0.1,
    "Q5_K": 0.15, "Q5_1": 0.15, "Q5_0": 0.15,
    "Q4_K": 0.3, "Q4_1": 0.3, "Q4_0": 0.3, "IQ4_NL": 0.3, "IQ4_XS": 0.3,
    "Q3_K": 0.5, "Q2_K": 0.7,
}  # fmt: skip
_BLOCK = 32


def tensor_errors(path: Path, source: Path) -> dict[str, float]:
    """Relative errors of the tensors of `path` that exceed their type's bound, against `source`.

    Both files hold the same tensors; a type without a known bound counts as exceeding.
    """
    originals = {tensor.name: tensor for tensor in GGUFReader(source).tensors}
    found = {}
    for tensor in GGUFReader(path).tensors:
        rows = np.linspace(0, len(tensor.data) - 1, num=_SAMPLED_ROWS).astype(np.int64)
        picked = np.unique(rows)
        stored = quants.dequantize(tensor.data[picked], tensor.tensor_type).astype(np.float64)
        original = originals[tensor.name].data[picked].astype(np.float64)
        size = float(np.sqrt(np.mean(original**2)))
        error = float(np.sqrt(np.mean((stored - original) ** 2))) / max(size, 1e-12)
        if not error <= _WORST.get(tensor.tensor_type.name, -1.0):
            found[tensor.name] = error
    return found


@torch.no_grad()
def own_weights(
    path: Path, folder: Path, config: Any, ids: tuple[int, ...]
) -> tuple[torch.Tensor, Comparison]:
    """Torch's logits with the weights of a GGUF file, and what 8-bit activations do to them.

    Returns: (tokens, vocabulary) float32, and the comparison of the same with rounded inputs.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    ).eval()
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    parameters = model.state_dict()
    for row in families.tensors(config):
        tensor = tensors[row.gguf_name]
        values = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).copy())
        values = values.reshape(row.shape).float()
        if row.heads is not None:
            values = families.unpermute(values, row.heads)
        parameters[row.hf_name].copy_(values)
    tokens = torch.tensor([ids])
    logits = model(tokens, use_cache=False).logits[0].float()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(_round_input)
    rounded = model(tokens, use_cache=False).logits[0].float()
    return logits, compare_logits(logits, rounded)


def _round_input(module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Inputs in 8 bits, one scale to 32 numbers, as llama.cpp's quantized products take them."""
    values = arguments[0]
    if values.shape[-1] % _BLOCK:
        return arguments
    blocks = values.reshape(*values.shape[:-1], -1, _BLOCK)
    scale = (blocks.abs().amax(-1, keepdim=True) / 127.0).clamp_min(1e-30)
    return ((torch.round(blocks / scale) * scale).reshape(values.shape), *arguments[1:])
