"""The card of an ONNX folder, on graphs of a few nodes written here."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clp_edge.bench.ceiling import card_of, decode_bounds, ideal_decode, ideal_prefill
from clp_edge.errors import ClpEdgeError

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, CONTEXT = 64, 4, 2, 16, 320, 128
GENAI = {
    "model": {
        "type": "llama",
        "decoder": {"head_size": HEAD_DIM, "num_attention_heads": HEADS},
    }
}
BLOCK_BYTES = 64 * 4 + 64 * 64 * 4
ANGLES = 2 * (HEAD_DIM // 2) * 4  # one row of the cosines and one of the sines


def tensor(name, *shape, kind=np.float32):
    return numpy_helper.from_array(np.zeros(shape, dtype=kind), name)


def folder_of(
    place, blocks, *, tied=True, cache=TensorProto.FLOAT16, windows=None, tail=(), facts=GENAI
):
    """A graph in the builder's manner: Gather or its twin, fused attention, a head."""
    tables = [tensor("cos_cache", CONTEXT, HEAD_DIM // 2), tensor("sin_cache", CONTEXT, 8)]
    nodes = []
    if tied:
        tables.append(tensor("lm_head.weight", HIDDEN, VOCABULARY))
        nodes.append(helper.make_node("Transpose", ["lm_head.weight"], ["table"], "/transpose"))
    else:
        tables += [tensor("embed.weight", VOCABULARY, HIDDEN), tensor("lm_head.weight", 64, 320)]
    table = "table" if tied else "embed.weight"
    nodes.append(helper.make_node("Gather", [table, "input_ids"], ["x"], "/model/embed/Gather"))
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])]
    for block in range(blocks):
        at, name = f"/model/layers.{block}", f"model.layers.{block}"
        tables += [tensor(f"{name}.norm", 64), tensor(f"onnx::MatMul_{block}", 64, 64)]
        nodes.append(helper.make_node("Mul", ["x", f"{name}.norm"], ["n"], f"{at}/norm/Mul"))
        nodes.append(
            helper.make_node("MatMul", ["n", f"onnx::MatMul_{block}"], ["q"], f"{at}/q/MatMul")
        )
        past = [f"past_key_values.{block}.{kind}" for kind in ("key", "value")]
        inputs += [
            helper.make_tensor_value_info(slot, cache, ["b", KV_HEADS, "p", "width"])
            for slot in past
        ]
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                ["q", "", "", *past, "l", "t", "cos_cache", "sin_cache"],
                ["x"],
                f"{at}/attn/GroupQueryAttention",
                domain="com.microsoft",
                num_heads=HEADS,
                local_window_size=windows[block] if windows else -1,
            )
        )
    nodes.append(helper.make_node("MatMul", ["x", "lm_head.weight"], ["logits"], "/lm_head/MatMul"))
    graph = helper.make_graph([*nodes, *tail], "g", inputs, [], tables)
    place.mkdir()
    onnx.save(helper.make_model(graph), str(place / "model.onnx"))
    (place / "genai_config.json").write_text(json.dumps(facts))
    return place


def test_pitfall_21_a_tied_table_is_read_once_as_the_head(tmp_path):
    card = card_of(folder_of(tmp_path / "m", 5))
    assert card.weight_bytes_per_token == 5 * BLOCK_BYTES + 320 * 64 * 4 + ANGLES
    assert card.block_bytes == 5 * BLOCK_BYTES
    assert card.head_elements == 320 * 64
    assert card.block_matmul_elements == 5 * 64 * 64
    assert (card.architecture, card.blocks) == ("llama", 5)
    files = (tmp_path / "m").iterdir()
    assert card.file_bytes == sum(file.stat().st_size for file in files)


def test_pitfall_21_an_untied_table_costs_one_row(tmp_path):
    card = card_of(folder_of(tmp_path / "m", 5, tied=False))
    assert card.weight_bytes_per_token == 5 * BLOCK_BYTES + 320 * 64 * 4 + 64 * 4 + ANGLES


def test_the_cache_is_as_wide_as_the_graph_says_and_a_window_limits_it(tmp_path):
    card = card_of(folder_of(tmp_path / "m", 2, windows=[-1, 8]))
    per_position = KV_HEADS * 2 * HEAD_DIM
    assert card.bytes_per_token(20) - card.bytes_per_token(0) == 2 * per_position * (20 + 8)
    assert card.bytes_per_token(20, "q8_0") == card.bytes_per_token(20)  # the graph decides
    wide = card_of(folder_of(tmp_path / "w", 2, cache=TensorProto.FLOAT))
    assert wide.bytes_per_token(20) - wide.bytes_per_token(0) == 4 * per_position * 40
    assert [block.window for block in card.attention] == [None, 8]


def test_the_ideals_follow(tmp_path):
    dense, pruned = (card_of(folder_of(tmp_path / f"m{n}", n)) for n in (5, 4))
    fixed = 320 * 64 * 4 + ANGLES
    assert ideal_decode(dense, pruned) == pytest.approx(
        (fixed + 5 * BLOCK_BYTES) / (fixed + 4 * BLOCK_BYTES)
    )
    assert decode_bounds(dense, pruned, 20.0)["blocks"] == pytest.approx(1.25)
    assert 1.0 < ideal_prefill(dense, pruned, 64) < 1.25


def test_what_a_plain_graph_says_of_its_heads_is_read_from_config_json(tmp_path):
    folder = folder_of(tmp_path / "m", 2)
    (folder / "genai_config.json").unlink()
    with pytest.raises(ClpEdgeError, match="does not say its heads"):
        card_of(folder)
    said = {"model_type": "qwen2", "num_attention_heads": HEADS, "hidden_size": HIDDEN}
    (folder / "config.json").write_text(json.dumps(said))
    card = card_of(folder)
    assert card.architecture == "qwen2"
    assert card.attention[0].key_length == HEAD_DIM


def test_packed_fours_weigh_half_a_byte_and_experts_are_not_guessed(tmp_path):
    folder = folder_of(tmp_path / "m", 1)
    path = folder / "model.onnx"
    model = onnx.load(str(path))
    before = card_of(folder).weight_bytes_per_token
    model.graph.initializer.append(
        helper.make_tensor("model.layers.0.z", TensorProto.UINT4, [6], [0] * 6)
    )
    extra = helper.make_node("DequantizeLinear", ["model.layers.0.z", "s"], ["d"], "/z")
    model.graph.node.append(extra)
    onnx.save(model, str(path))
    assert card_of(folder).weight_bytes_per_token == before + 3
    model.graph.node.append(helper.make_node("QMoE", ["x"], ["y"], domain="com.microsoft"))
    onnx.save(model, str(path))
    with pytest.raises(ClpEdgeError, match="holds experts"):
        card_of(folder)


def test_a_damaged_graph_is_a_clear_error(tmp_path):
    folder = folder_of(tmp_path / "m", 1)
    (folder / "model.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(ClpEdgeError, match=r"cannot read model\.onnx of m as ONNX"):
        card_of(folder)
    (folder / "model.onnx").unlink()
    assert card_of(folder) is None


def test_a_graph_without_a_cache_is_refused(tmp_path):
    with pytest.raises(ClpEdgeError, match="no cache of keys and values"):
        card_of(folder_of(tmp_path / "m", 0))
