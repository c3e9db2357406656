"""One verified tiny model, shared by the export tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.gguf.reference import Reference, make_reference
from clp_edge.export.gguf.writer import write_f16
from tests.export.models import tiny_folder


@dataclass
class Tiny:
    folder: Path
    model: Any
    hf: Any
    config: Any
    reference: Reference

    def write(self, path: Path, *, entries: list[Any] | None = None) -> Path:
        """The F16 file, with other tokenizer keys where given."""
        made = tokenizers.entries(self.config, self.hf)
        write_f16(
            self.folder,
            path,
            config=self.config,
            tokenizer_entries=entries or made,
            metadata={"segment": "1-2"},
        )
        return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A Llama with grouped heads and an untied head, and what torch says about it."""
    folder, model, hf = tiny_folder(tmp_path_factory.mktemp("tiny") / "llama")
    return Tiny(folder, model, hf, model.config, make_reference(folder, model.config, hf))
