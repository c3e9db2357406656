"""The healed folder: plain transformers loads it, and only tuned blocks differ from the source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from clp_edge.heal import TuningSettings, heal
from clp_edge.models.anatomy import dissect
from clp_edge.models.saving import save_model
from clp_edge.models.surgery import remove_blocks
from clp_edge.segment import Segment
from tests.conftest import byte_level_tokenizer
from tests.tiny import random_ids, tiny_model

SEGMENT = Segment(3, 4)
NEAR = {2, 5, 6, 7}
KEPT = [0, 1, 2, 5, 6, 7]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "olmo2", "phi3"])
def test_only_the_tuned_blocks_differ(model_type: str, stored: torch.dtype, tmp_path: Path) -> None:
    """The source's weights are what `stored` can hold, and healing computes in float32."""
    tokenizer = byte_level_tokenizer()
    model = tiny_model(model_type, vocab_size=len(tokenizer)).to(stored).float()
    source = {name: value.clone() for name, value in model.state_dict().items()}
    words = len(tokenizer)
    found = heal(
        dissect(model),
        SEGMENT,
        random_ids(16, 40, seed=1, vocabulary=words),
        random_ids(4, 40, seed=2, vocabulary=words),
        tuning=TuningSettings(steps=6, local_steps=12, tokens=160, epochs=9),
    )
    assert set(found.state) <= NEAR
    remove_blocks(model, SEGMENT.blocks)
    found.apply(model)
    save_model(model, tokenizer, tmp_path / "hf", dtype=stored, source=None)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    tensors = loaded.state_dict()
    assert {value.dtype for value in tensors.values()} == {stored}
    changed = set()
    for name, value in tensors.items():
        old, place = name, None
        if name.startswith("model.layers."):
            number, rest = name.removeprefix("model.layers.").split(".", 1)
            place = KEPT[int(number)]
            old = f"model.layers.{place}.{rest}"
        if not torch.equal(value, source[old].to(stored)):
            changed.add(place)
    assert changed <= NEAR
    assert changed  # something was mended
    ids = random_ids(1, 12, vocabulary=words)
    with torch.no_grad():
        assert bool(torch.isfinite(loaded(ids).logits).all())
