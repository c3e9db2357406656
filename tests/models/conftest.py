"""One tiny Llama and its tokenizer, as a folder and as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clp_edge.models.source import (
    save_model,
)
from tests.models.tiny_gguf import byte_level_tokenizer, tiny_llama, write_gguf


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture
def folder(tmp_path, model, tokenizer) -> Path:
    target = tmp_path / "Tiny-Llama"
    save_model(model, tokenizer, target, dtype=torch.float32, source=None)
    return target


@pytest.fixture
def gguf(tmp_path, model, tokenizer) -> Path:
    return write_gguf(tmp_path / "Tiny-Llama.F32.gguf", model, tokenizer)
