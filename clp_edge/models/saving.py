"""Write a model as a plain Hugging Face folder, whole or not at all.

The folder appears under its final name only when every file in it is written and flushed
(PITFALLS 25). The model in memory is left as it is: the cast to the stored dtype happens on copies.
A GGUF source passes its `tokenizer.*` keys on as `tokenizer.gguf` (PITFALLS 13).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clp_edge.durable import whole_folder
from clp_edge.errors import ClpEdgeError
from clp_edge.gguf_file.header import MAGIC, read_header, write_keys
from clp_edge.models.quiet import quiet

if TYPE_CHECKING:
    from clp_edge.models.source import Source

SHARD_SIZE = "5GB"
TOKENIZER_GGUF = "tokenizer.gguf"
# transformers 5 writes a class name that 4.57 does not know; both know the older one
PORTABLE_TOKENIZER_CLASS = {"TokenizersBackend": "PreTrainedTokenizerFast"}
DROPPED_CONFIG_KEYS = ("quantization_config", "_name_or_path", "_model_name_or_path", "torch_dtype")


def save_model(
    model: Any, tokenizer: Any, folder: Path, *, dtype: torch.dtype, source: Source | None
) -> None:
    """Save weights (safetensors in `dtype`), configs and tokenizer into a new folder.

    Raises ClpEdgeError where the folder exists and is not empty, where a weight does not fit the
    dtype, or where the disk is full; then nothing is left under the final name.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ClpEdgeError(f"{folder} exists already", "give another folder, or remove it first")
    weights = _cast(model, dtype)
    with whole_folder(folder) as temporary:
        with quiet():
            model.save_pretrained(temporary, state_dict=weights, max_shard_size=SHARD_SIZE)
            tokenizer.save_pretrained(temporary)
        _clean_config(temporary / "config.json", dtype)
        _clean_tokenizer(temporary)
        if source is not None:
            _pass_tokenizer_on(source, temporary / TOKENIZER_GGUF)


def write_tokenizer_gguf(source_file: Path, target: Path) -> None:
    """Copy the `tokenizer.*` keys of a GGUF file, types as they are, into one without tensors."""
    header = read_header(source_file)
    kept = [
        (name, key.raw)
        for name, key in header.keys.items()
        if name == "general.architecture" or name.startswith("tokenizer.")
    ]
    write_keys(target, kept)


def _cast(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights in `dtype`; tensors that share memory keep sharing it, so that ties stay ties."""
    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    weights = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in done:
            cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if dtype == torch.float16 and not bool(torch.isfinite(cast).all()):
                largest = float(tensor.abs().max())
                raise ClpEdgeError(
                    f"{name} does not fit float16 (its largest value is {largest:.3g})",
                    "save as bfloat16 or float32",
                )
            done[key] = cast
        weights[name] = done[key]
    return weights


def _clean_config(path: Path, dtype: torch.dtype) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    name = str(dtype).removeprefix("torch.")
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        for key in DROPPED_CONFIG_KEYS:
            part.pop(key, None)
        if "dtype" in part:
            part["dtype"] = name
    config["dtype"] = name
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _clean_tokenizer(folder: Path) -> None:
    """Keep the tokenizer readable by older transformers, and never a GGUF as `tokenizer.model`."""
    model_file = folder / "tokenizer.model"
    if model_file.is_file() and model_file.open("rb").read(4) == MAGIC:
        model_file.unlink()
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    name = config.get("tokenizer_class")
    config["tokenizer_class"] = PORTABLE_TOKENIZER_CLASS.get(name, name)
    for key in ("name_or_path", "tokenizer_file", "vocab_file", "gguf_file", "is_local", "backend"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _pass_tokenizer_on(source: Source, target: Path) -> None:
    if source.is_gguf:
        write_tokenizer_gguf(source.path, target)
    elif (source.path / TOKENIZER_GGUF).is_file():
        shutil.copyfile(source.path / TOKENIZER_GGUF, target)
