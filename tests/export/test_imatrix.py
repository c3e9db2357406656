"""The importance matrix: what is summed, who gets it, and what is refused without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clp_edge.errors import ClpEdgeError, PreflightError, UsageError
from clp_edge.export import export, resolve
from clp_edge.export.gguf import families
from clp_edge.export.gguf.imatrix import Importance, chosen, importance
from clp_edge.export.gguf.quantize import quantize
from clp_edge.gguf_file.contents import Contents
from clp_edge.progress import silent
from tests.export.models import tiny_folder


@pytest.fixture(scope="module")
def ids(tiny):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, tiny.config.vocab_size, (3, 17), generator=generator)


def test_columns_are_mean_squares_of_the_inputs(tiny, ids):
    found = importance(tiny.folder, tiny.config, ids)
    assert found.tokens == 51
    with torch.no_grad():
        out = tiny.model(ids, output_hidden_states=True)
        last = out.hidden_states[-1].double()
        normed = tiny.model.model.layers[0].input_layernorm(out.hidden_states[0]).double()
    expected = normed.square().mean((0, 1)).numpy()
    for part in ("q", "k", "v"):
        np.testing.assert_allclose(found.columns[f"blk.0.attn_{part}.weight"], expected, rtol=1e-5)
    head = last.square().mean((0, 1)).numpy()
    np.testing.assert_allclose(found.columns["output.weight"], head, rtol=1e-4)
    assert "token_embd.weight" not in found.columns
    rows = {r.gguf_name: r for r in families.tensors(tiny.config) if len(r.shape) > 1}
    assert set(found.columns) == set(rows) - {"token_embd.weight"}
    assert all(len(v) == rows[name].shape[-1] for name, v in found.columns.items())


@pytest.mark.parametrize(
    ("model_type", "changes", "fused", "head"),
    [
        ("phi3", {}, "blk.1.attn_qkv.weight", "output.weight"),
        ("llama", {"tie_word_embeddings": True}, "blk.1.ffn_gate.weight", "token_embd.weight"),
    ],
)
def test_fused_matrices_and_a_tied_head_are_there(tmp_path, ids, model_type, changes, fused, head):
    folder, model, _ = tiny_folder(tmp_path / "m", model_type=model_type, **changes)
    found = importance(folder, model.config, ids % model.config.vocab_size)
    assert {fused, head} <= set(found.columns)


def test_columns_that_are_never_used_keep_a_weight(tmp_path, ids):
    folder, model, _ = tiny_folder(tmp_path / "m")
    with torch.no_grad():
        model.model.layers[0].post_attention_layernorm.weight[:5] = 0.0
        model.model.layers[1].post_attention_layernorm.weight[:] = 0.0
    model.save_pretrained(folder)
    columns = importance(folder, model.config, ids % model.config.vocab_size).columns
    used = columns["blk.0.ffn_up.weight"]
    assert np.all(used[:5] > 0)
    assert used[:5].max() < 1e-5 * used[5:].mean()
    assert np.all(columns["blk.1.ffn_up.weight"] == 1.0)


def test_a_damaged_model_is_refused(tmp_path, ids):
    folder, model, _ = tiny_folder(tmp_path / "m")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    model.save_pretrained(folder)
    with pytest.raises(ClpEdgeError, match=r"the input of blk\.1\.ffn_down\.weight holds NaN"):
        importance(folder, model.config, ids % model.config.vocab_size)


def test_text_of_another_tokenizer_is_refused(tiny):
    wrong = torch.full((2, 8), tiny.config.vocab_size)
    with pytest.raises(UsageError, match="own tokenizer"):
        importance(tiny.folder, tiny.config, wrong)
    with pytest.raises(UsageError, match="makes no importance matrix"):
        importance(tiny.folder, tiny.config, torch.zeros(0, 8, dtype=torch.long))


def test_long_text_is_cut_to_whole_sequences_spread_evenly():
    ids = torch.arange(100).repeat_interleave(10).reshape(100, 10)
    assert chosen(ids, 50)[:, 0].tolist() == [0, 25, 50, 74, 99]
    assert len(chosen(ids)) == 100
    assert chosen(torch.zeros(100, 256, dtype=torch.long)).numel() == 8_192


def write(tiny, path, name, importance=None):
    source = path / "f16.gguf"
    if not source.exists():
        tiny.write(source)
    out = path / f"{name}{'-matrix' if importance else ''}.gguf"
    quantize(source, out, resolve(name), threads=2, importance=importance)
    return Contents(out)


@pytest.mark.llama
@pytest.mark.parametrize("name", ["q4_0", "iq4_nl", "q4_k_s", "q2_k"])
def test_the_quantizer_errs_less_where_the_weight_is(tiny, tmp_path, name):
    """A matrix whose first columns count a thousandfold: they come out nearer, the others not."""
    tensor = "blk.1.ffn_up.weight"
    width = next(r.shape[-1] for r in families.tensors(tiny.config) if r.gguf_name == tensor)
    weight = np.full(width, 1e-3, np.float32)
    weight[: width // 8] = 1.0
    with_it = write(tiny, tmp_path, name, Importance({tensor: weight}, 1))
    without = write(tiny, tmp_path, name)
    original = Contents(tmp_path / "f16.gguf").values(tensor)

    def error(made):
        return ((made.values(tensor) - original) ** 2).mean(0)[: width // 8].mean()

    assert with_it.type_name(tensor) == without.type_name(tensor)
    assert error(with_it) < 0.98 * error(without)


@pytest.mark.llama
def test_the_lowest_types_are_written_with_text_and_refused_without(tmp_path, ids):
    folder, model, _ = tiny_folder(
        tmp_path / "m", hidden_size=256, intermediate_size=512, head_dim=32
    )
    ids = ids % model.config.vocab_size
    said = []
    made = export(
        folder,
        resolve("IQ2_XXS"),
        tmp_path / "m.gguf",
        metadata={},
        threads=2,
        progress=lambda done, total, note="": said.append((done / total, note)),
        calibration=ids,
    )
    assert made.verify["imatrix"] == {"tokens": 51}
    assert Contents(made.path).type_name("blk.1.ffn_up.weight") == "IQ2_XXS"
    shares = [share for share, _ in said]
    assert shares == sorted(shares)
    with pytest.raises(PreflightError, match="no calibration text"):
        export(
            folder,
            resolve("IQ2_XXS"),
            tmp_path / "n.gguf",
            metadata={},
            threads=2,
            progress=silent,
        )
    assert not (tmp_path / "n.gguf").exists()


@pytest.mark.llama
def test_eight_bits_take_no_matrix(tiny, ids, tmp_path):
    made = export(
        tiny.folder,
        resolve("q8_0"),
        tmp_path / "m.gguf",
        metadata={},
        threads=2,
        progress=silent,
        calibration=ids,
    )
    assert "imatrix" not in made.verify
