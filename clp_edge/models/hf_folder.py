"""What a Hugging Face folder must be before it is loaded: checked from headers, in milliseconds.

A truncated shard, an adapter without its model, a quantized checkpoint or a pickle is found here
and said in one line, before any weight is read (PITFALLS 26).

>>> check_folder(Path("SmolLM2-135M"), given="SmolLM2-135M")               # doctest: +SKIP
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from clp_edge.errors import ClpEdgeError, UnsupportedModelError

INDEX = "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SIDE_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt",
    "chat_template.jinja", "tokenizer.gguf", INDEX,
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_folder(folder: Path, *, given: str) -> None:
    """Raise the error that says why this folder cannot be a source; silence means that it can.

    `given` is what the user typed; the cures quote it.
    """
    download = f"run `hf download {given}` again" if _is_hub(given) else "copy the folder again"
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        raise UnsupportedModelError(
            f"{folder.name} is an adapter of {_adapter_base(adapter)}, not a whole model",
            "merge it first: `PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload()"
            ".save_pretrained(FOLDER)`, then give FOLDER",
        )
    if not (folder / "config.json").is_file():
        found = sorted(folder.glob("*.gguf"))
        raise ClpEdgeError(
            f"{folder} has no config.json",
            f"give the file itself: {found[0]}" if found else "give a Hugging Face model folder",
        )
    config = read_json(folder / "config.json")
    _check_quantization(config, folder)
    for shard in weight_files(folder, cure=download):
        check_safetensors(shard, cure=download)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ClpEdgeError(
            f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}: none is there)",
            "put the tokenizer's files beside the weights",
        )
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json")


def weight_files(folder: Path, *, cure: str = "copy the folder again") -> list[Path]:
    """The safetensors files of the model, in name order; all of the index's shards are there."""
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise ClpEdgeError(
                f"{folder} lacks {len(missing)} of its {len(names)} weight files "
                f"({missing[0] if missing else 'the index names none'})",
                cure,
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("*.pt")])
    if pickles:
        raise UnsupportedModelError(
            f"{folder.name} holds its weights as {pickles[0].name}, a pickle, which can run code "
            "when it is read",
            "convert it to safetensors once, where you trust it: "
            "`AutoModelForCausalLM.from_pretrained(FOLDER, weights_only=True)"
            ".save_pretrained(NEW_FOLDER)`, then give NEW_FOLDER",
        )
    raise ClpEdgeError(f"{folder} has no model.safetensors", cure)


def check_safetensors(path: Path, *, cure: str = "copy the file again") -> None:
    """Whether the file holds all that its header promises; damage is a ClpEdgeError."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        size, said = path.stat().st_size, str(error).rpartition("header: ")[2]
        raise ClpEdgeError(
            f"{path} is truncated, damaged or no safetensors file ({size} bytes: {said})", cure
        ) from error


def folder_dtype(folder: Path) -> torch.dtype:
    """The dtype that most of the checkpoint's bytes are stored in."""
    bytes_of: dict[str, int] = {}
    for shard in weight_files(folder):
        check_safetensors(shard)
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensor = file.get_slice(name)
                kind = tensor.get_dtype()
                size = DTYPES[kind].itemsize if kind in DTYPES else 0
                bytes_of[kind] = bytes_of.get(kind, 0) + size * math.prod(tensor.get_shape())
    known = {kind: size for kind, size in bytes_of.items() if kind in DTYPES}
    if not known:
        raise UnsupportedModelError(
            f"{folder.name} stores its weights as {', '.join(sorted(bytes_of)) or 'nothing'}",
            "give a checkpoint in float32, float16 or bfloat16",
        )
    return DTYPES[max(known, key=lambda kind: known[kind])]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else is a ClpEdgeError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ClpEdgeError(f"{path} cannot be read ({error})", "copy the file again") from error
    if not isinstance(value, dict):
        raise ClpEdgeError(f"{path} holds no JSON object", "copy the file again")
    return value


def _is_hub(given: str) -> bool:
    return bool(HUB_ID.fullmatch(given)) and not Path(given).exists()


def _adapter_base(path: Path) -> str:
    return str(read_json(path).get("base_model_name_or_path") or "a base model it does not name")


def _check_quantization(config: dict[str, Any], folder: Path) -> None:
    parts = [config, *(v for v in config.values() if isinstance(v, dict))]
    for part in parts:
        quantization = part.get("quantization_config")
        if not isinstance(quantization, dict):
            continue
        method = str(quantization.get("quant_method") or "an unnamed method")
        if method == "gguf":  # left by transformers after dequantizing: the weights are plain
            continue
        base = _unquantized_base(config, folder)
        raise UnsupportedModelError(
            f"{folder.name} is quantized ({method}): its blocks cannot be cut and mended exactly",
            f"give its unquantized base, {base}" if base else "give its unquantized base model",
        )


def _unquantized_base(config: dict[str, Any], folder: Path) -> str | None:
    """The base as the config names it, else as the model card's front matter does."""
    for key in ("base_model", "base_model_name_or_path", "_name_or_path"):
        name = config.get(key)
        if isinstance(name, str) and HUB_ID.fullmatch(name) and not name.endswith(folder.name):
            return name
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")[:20_000]
        match = re.search(r"^base_model:\s*(?:\n\s*-\s*)?([\w.-]+/[\w.-]+)\s*$", text, re.M)
        if match:
            return match[1]
    return None
