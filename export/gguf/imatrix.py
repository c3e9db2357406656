"""The importance matrix: how much each column of a matrix is used, so that the quantizer errs
where it costs least.

For a matrix W that computes W x, the expected squared error of W' is about
sum_ij (W'_ij - W_ij)^2 E[x_j^2]: the weight of column j is the mean of x_j squared over calibration
text (idea and use: llama.cpp, tools/imatrix, by I. Kawrakow). It is summed in float64 by hooks on
the torch model's own matrices; the head's input is the final hidden state. An embedding is a table
of rows, nothing is multiplied, so it has none - unless it is the head too.

>>> found = importance(folder, config, ids)                                # doctest: +SKIP
>>> found.columns["blk.0.ffn_down.weight"].shape                           # doctest: +SKIP
(1536,)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.export.gguf import families
from clp_edge.models.quiet import quiet
from clp_edge.progress import Progress, silent

MOST_TOKENS = 8_192
"""4,096 give the demo model the same KL as 16,384 (docs/LOG.md), and reading takes its time."""
_AT_ONCE = 2_048
_LEAST = 1e-6
"""Of the mean, the least weight of a column: one that the text never used still has to be near,
and a block of only zero weights makes llama.cpp's search divide by zero."""


@dataclass(frozen=True)
class Importance:
    """Weights for the columns of the matrices that are quantized."""

    columns: dict[str, np.ndarray]
    """GGUF name -> mean squared input (columns,), float32, all positive."""
    tokens: int


class _Sums:
    """Sums of squared inputs; q, k and v get the same tensor, which is squared once."""

    def __init__(self) -> None:
        self.of: dict[str, torch.Tensor] = {}
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, name: str, values: torch.Tensor) -> None:
        if self._last is None or self._last[0] is not values:
            flat = values.detach().reshape(-1, values.shape[-1]).double()
            self._last = (values, flat.square_().sum(0))
        squares = self._last[1]
        self.of[name] = self.of[name] + squares if name in self.of else squares

    def hook(self, name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def seen(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            self.add(name, arguments[0])

        return seen


def chosen(ids: torch.Tensor, most: int = MOST_TOKENS) -> torch.Tensor:
    """At most that many tokens of `ids` (sequences, tokens): whole sequences, evenly spread."""
    if ids.ndim != 2 or ids.numel() == 0:
        raise UsageError(
            f"calibration text of shape {tuple(ids.shape)} makes no importance matrix",
            "give ids (sequences, tokens)",
        )
    count = min(len(ids), max(1, most // ids.shape[1]))
    return ids[torch.linspace(0, len(ids) - 1, count).round().long()]


@torch.no_grad()
def importance(
    folder: Path,
    config: Any,
    ids: torch.Tensor,
    *,
    tensors: Sequence[families.Tensor] | None = None,
    progress: Progress = silent,
) -> Importance:
    """Read `ids` (sequences, tokens) with the folder's model in float32: 4 bytes a parameter.

    `tensors`: those of the file, where another converter than ours made it.

    Raises UsageError where `ids` are no ids of this model; ClpEdgeError where an input is NaN or
    Inf.
    """
    from transformers import AutoModelForCausalLM

    ids = chosen(ids)
    if int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size:
        raise UsageError(
            f"calibration text holds token {int(ids.max())}, the model has {config.vocab_size}",
            "encode it with the model's own tokenizer",
        )
    found = families.tensors(config) if tensors is None else tensors
    rows = [row for row in found if len(row.shape) > 1]
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
    sums = _Sums()
    head = "token_embd.weight" if config.tie_word_embeddings else "output.weight"
    for row in rows:
        module = model.get_submodule(row.hf_name.removesuffix(".weight"))
        if isinstance(module, torch.nn.Linear) and row.gguf_name != head:
            module.register_forward_pre_hook(sums.hook(row.gguf_name))
    decoder = model.get_decoder()
    step = max(1, _AT_ONCE // ids.shape[1])
    for start in range(0, len(ids), step):
        progress(start, len(ids), "reading calibration text for the importance matrix")
        hidden = decoder(ids[start : start + step], use_cache=False).last_hidden_state
        sums.add(head, hidden)  # the head itself, and its logits, are not needed
    progress(len(ids), len(ids), "importance matrix made")
    return Importance(
        {name: _weights(name, total / ids.numel()) for name, total in sums.of.items()}, ids.numel()
    )


def _weights(name: str, means: torch.Tensor) -> np.ndarray:
    """Positive, finite weights of mean squares (columns,)."""
    if not bool(torch.isfinite(means).all()):
        raise ClpEdgeError(f"the input of {name} holds NaN or Inf", "the model is damaged")
    mean = float(means.mean())
    if mean == 0.0:  # never used: every column alike
        return np.ones(len(means), np.float32)
    return np.ascontiguousarray((means.clamp_min(_LEAST * mean)).float().numpy())
