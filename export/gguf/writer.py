"""A Hugging Face folder as an F16 GGUF file, one tensor at a time.

Peak memory is about the largest tensor: the safetensors files are read lazily and written in the
order of the model. Vectors stay float32. What float16 cannot hold - NaN, Inf, or a value beyond
65504 - is refused by the tensor's name, and so are tensors that nobody has a place for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFValueType, GGUFWriter
from safetensors import SafetensorError, safe_open

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.export.gguf import families
from clp_edge.export.gguf.tokenizer import Entry
from clp_edge.progress import Progress, silent

_F16_LIMIT = 65504.0
_MOSTLY_F16 = 1
_IGNORED = ("rotary_emb.inv_freq",)


class Checkpoint:
    """The tensors of a folder's safetensors files, by name, read when asked for."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        self._files: dict[str, Any] = {}
        for name in names:
            path = folder / name
            if not path.is_file():
                raise ClpEdgeError(f"{folder} has no {name}", "save the model as safetensors")
            try:
                opened = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise ClpEdgeError(f"{path} cannot be read ({error})", "download it again") from (
                    error
                )
            self._files.update({tensor: opened for tensor in opened.keys()})  # noqa: SIM118

    def names(self) -> set[str]:
        """Every tensor of the folder."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str) -> torch.Tensor:
        """The tensor, in the dtype of the file."""
        return self._files[name].get_tensor(name)


def check_complete(checkpoint: Checkpoint, rows: list[families.Tensor], tied: bool) -> None:
    """Refuse a folder whose tensors are not exactly the model's."""
    expected = {row.hf_name: row.shape for row in rows}
    found = checkpoint.names()
    head = "lm_head.weight"
    if tied and head in found:
        embedding = next(row.hf_name for row in rows if row.gguf_name == "token_embd.weight")
        if not torch.equal(checkpoint.read(head), checkpoint.read(embedding)):
            raise UnsupportedModelError(
                "the config ties the head to the embedding, but the folder holds another head",
                "set tie_word_embeddings to false",
            )
        found.discard(head)
    unknown = sorted(n for n in found - set(expected) if not n.endswith(_IGNORED))
    missing = sorted(set(expected) - found)
    for label, names in (("has no place for", unknown), ("misses", missing)):
        if names:
            listed = families.listed(names)
            raise UnsupportedModelError(f"the model {label} {listed}", "save the folder again")
    for name, shape in expected.items():
        if checkpoint.shape(name) != shape:
            raise UnsupportedModelError(
                f"{name} has shape {checkpoint.shape(name)}, but the config says {shape}"
            )


def as_stored(row: families.Tensor, tensor: torch.Tensor) -> np.ndarray:
    """The tensor as the file holds it: changed, float16 (vectors float32), in range."""
    values = tensor.float()
    if not bool(torch.isfinite(values).all()):
        raise ClpEdgeError(f"{row.hf_name} holds NaN or Inf", "the model is damaged; make it again")
    values = families.to_file(row, values)
    if len(row.shape) == 1:
        return values.contiguous().numpy()
    largest = float(values.abs().max())
    if largest > _F16_LIMIT:
        raise ClpEdgeError(
            f"{row.hf_name} holds {largest:.3g}, beyond float16's {_F16_LIMIT:.0f}",
            "this model cannot be written as F16",
        )
    return values.to(torch.float16).contiguous().numpy()


def hyper_parameters(config: Any) -> list[Entry]:
    """The architecture's keys with their values."""
    family = families.family_of(config)
    found = []
    for key in family.keys:
        value = key.value(config)
        if value is not None:
            found.append(
                Entry(key.name.format(arch=family.architecture), value, key.kind, key.sub_kind)
            )
    return found


def metadata_entries(metadata: dict[str, Any]) -> list[Entry]:
    """A plain dict as keys; names without a dot become clp_edge.NAME; None is left out."""
    kinds = ((bool, "BOOL"), (int, "INT64"), (float, "FLOAT64"), (str, "STRING"))
    found = []
    for name, value in metadata.items():
        key = name if "." in name else f"clp_edge.{name}"
        if value is None or value == "":
            continue
        if isinstance(value, (list, tuple)):
            if value:
                found.append(Entry(key, list(value), GGUFValueType.ARRAY))
            continue
        kind = next((GGUFValueType[k] for t, k in kinds if isinstance(value, t)), None)
        if kind is None:
            raise TypeError(f"metadata {key} is a {type(value).__name__}")
        found.append(Entry(key, value, kind))
    return found


def write_f16(
    folder: Path,
    destination: Path,
    *,
    config: Any,
    tokenizer_entries: list[Entry],
    metadata: dict[str, Any],
    progress: Progress = silent,
) -> None:
    """Write the folder's weights to `destination` (overwritten) as an F16 GGUF file.

    Raises UnsupportedModelError for tensors that do not fit the model; ClpEdgeError for values
    that float16 cannot hold.
    """
    rows = families.tensors(config)
    checkpoint = Checkpoint(folder)
    check_complete(checkpoint, rows, bool(config.tie_word_embeddings))
    computed = families.computed_tensors(config)

    writer = GGUFWriter(None, families.family_of(config).architecture)
    writer.add_type("model")
    writer.add_file_type(_MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for entry in (*hyper_parameters(config), *metadata_entries(metadata), *tokenizer_entries):
        writer.add_key_value(entry.key, entry.value, entry.kind, entry.sub_kind)
    for name, factors in computed.items():
        writer.add_tensor_info(name, factors.shape, factors.dtype, factors.nbytes)
    for row in rows:
        dtype = np.dtype(np.float32 if len(row.shape) == 1 else np.float16)
        writer.add_tensor_info(row.gguf_name, row.shape, dtype, row.elements * dtype.itemsize)

    try:
        writer.write_header_to_file(destination)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for factors in computed.values():
            writer.write_tensor_data(factors)
        total = sum(row.elements for row in rows)
        done = 0
        for row in rows:
            writer.write_tensor_data(as_stored(row, checkpoint.read(row.hf_name)))
            done += row.elements
            progress(done, total, f"writing {row.gguf_name}")
    except OSError as error:
        raise ClpEdgeError(f"{destination} cannot be written ({error})", "free space there") from (
            error
        )
    finally:
        writer.close()
