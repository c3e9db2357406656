"""What several tests of the bench want to have once."""

from __future__ import annotations

import pytest

from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.gguf.writer import write_f16
from tests.export.models import tiny_folder


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    """A random Llama of two blocks as an F16 file."""
    folder, model, hf = tiny_folder(tmp_path_factory.mktemp("bench") / "llama", blocks=2)
    path = folder.parent / "model.gguf"
    entries = tokenizers.entries(model.config, hf)
    write_f16(folder, path, config=model.config, tokenizer_entries=entries, metadata={})
    return path
