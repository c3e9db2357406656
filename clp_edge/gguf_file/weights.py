"""The weights of a GGUF file as a transformers model: dequantized, renamed, changes undone.

Names and changes are those that our own files are written by (`tensors.py`), read backwards. Each
tensor is dequantized by itself, so the peak is the model and its largest tensor in float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from clp_edge.errors import UnsupportedModelError
from clp_edge.gguf_file.contents import Contents
from clp_edge.gguf_file.header import GgufHeader
from clp_edge.gguf_file.rope import FACTOR_TENSORS
from clp_edge.gguf_file.tensors import Tensor, listed, tensors, to_model

_CURE = "give the model's Hugging Face folder instead"


def gguf_model(header: GgufHeader, config: Any, dtype: torch.dtype) -> Any:
    """Dequantize the weights into a model of that dtype; (model, loading report).

    Raises UnsupportedModelError where the file's tensors are not exactly the model's.
    """
    rows = check_tensors(header, config)
    made = Contents(header.path)
    state = {}
    for row in rows:
        stored = torch.from_numpy(made.values(row.gguf_name)).reshape(row.shape)
        state[row.hf_name] = to_model(row, stored).to(dtype).contiguous()
    model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=copy.deepcopy(config),
        state_dict=state,
        dtype=dtype,
        output_loading_info=True,
    )
    ends = [header.value(f"tokenizer.ggml.{n}_token_id") for n in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(i for i in ends if i is not None))
    if unique and model.generation_config is not None:
        model.generation_config.eos_token_id = unique if len(unique) > 1 else unique[0]
    return model, report


def check_tensors(header: GgufHeader, config: Any) -> list[Tensor]:
    """The tensors to read, after a look at the file's list; no weights are read.

    Raises UnsupportedModelError naming what is missing, left over or of another shape.
    """
    rows = tensors(config)
    found = {t.name: tuple(reversed(t.shape)) for t in header.tensors}
    expected = {row.gguf_name: row.shape for row in rows}
    missing = sorted(set(expected) - set(found))
    extra = sorted(n for n in set(found) - set(expected) if not n.startswith(FACTOR_TENSORS))
    for label, names in (
        ("lacks", missing),
        ("has tensors that its model has no place for:", extra),
    ):
        if names:
            raise UnsupportedModelError(f"{header.path.name} {label} {listed(names)}", _CURE)
    for name, shape in expected.items():
        if found[name] != shape:
            raise UnsupportedModelError(
                f"{name} of {header.path.name} has the shape {found[name]}, not {shape} as its "
                "keys say",
                _CURE,
            )
    return rows
