"""Which blocks a cut lacks, also where the cut is stored with fewer bits than its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType

from clp_edge.errors import UsageError
from clp_edge.models.removed import removed_segment
from clp_edge.models.source import (
    Source,
    load_model,
    load_tokenizer,
    locate,
    save_model,
    stored_dtype,
)
from clp_edge.models.surgery import remove_blocks
from clp_edge.segment import Segment
from tests.models.tiny_gguf import byte_level_tokenizer, write_gguf
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A GGUF file whose weights, scale times step plus least, are no float16 numbers."""
    path = tmp_path_factory.mktemp("teacher") / "tiny.Q4_1.gguf"
    model = tiny_model("llama", blocks=5, tie_word_embeddings=True)
    kind = GGMLQuantizationType.Q4_1
    return locate(str(write_gguf(path, model, byte_level_tokenizer(), quantize=kind)))


def cut_of(teacher: Source, folder: Path, dtype: torch.dtype, scale: float = 1.0) -> Source:
    model = load_model(teacher, dtype=torch.float32, device="cpu")
    remove_blocks(model, Segment(1, 2).blocks)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(scale)
    save_model(model, load_tokenizer(teacher), folder, dtype=dtype, source=teacher)
    return locate(str(folder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_cut_that_was_rounded_is_still_its_teachers(
    teacher: Source, dtype: torch.dtype, tmp_path: Path
) -> None:
    """The demo model's cut, which is stored in float16, was taken for another model's."""
    assert stored_dtype(teacher) == torch.float16
    weight = load_model(teacher, dtype=torch.float32, device="cpu").model.layers[0].mlp.down_proj
    assert not torch.equal(weight.weight, weight.weight.half().float())
    assert removed_segment(teacher, cut_of(teacher, tmp_path / "cut", dtype)) == Segment(1, 2)


def test_a_changed_block_is_seen_at_any_precision(teacher: Source, tmp_path: Path) -> None:
    cut = cut_of(teacher, tmp_path / "cut", torch.bfloat16, scale=1.02)
    with pytest.raises(UsageError, match="no run of 2 blocks"):
        removed_segment(teacher, cut)
