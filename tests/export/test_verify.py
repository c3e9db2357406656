"""Every check of verify() passes what is right and fails what is wrong: one mutation for each."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from clp_edge.errors import VerificationError
from clp_edge.export import resolve
from clp_edge.export.gguf import families, writer
from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.gguf import verify as verify_module
from clp_edge.export.gguf.cuts import with_blocks
from clp_edge.export.gguf.quantize import quantize
from clp_edge.export.gguf.reference import make_reference
from clp_edge.export.gguf.verify import WIDEST, f16_limits, verify
from clp_edge.export.torch_reference import Comparison
from clp_edge.gguf_file import tensors
from tests.export.models import tiny_folder, tiny_tokenizer
from tests.export.test_writer import LLAMA3

pytestmark = pytest.mark.llama
F16 = resolve("f16")

RIGHT = {
    "grouped heads, tied head": {"tie_word_embeddings": True},
    "full heads, llama3 rope and tokenizer, BOS": {
        "num_key_value_heads": 4,
        "rope_parameters": LLAMA3,
        "kind": "llama-bpe",
        "adds_bos": True,
    },
    "mistral, wide heads, a window, qwen2 tokenizer": {
        "model_type": "mistral",
        "head_dim": 96,
        "sliding_window": 200,
        "kind": "qwen2",
    },
    "biases, linear rope, no chat template": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        "chat": False,
        "spare_rows": 0,
    },
}


def run(tiny, path, **changes):
    """verify() of a file against the shared tiny model."""
    arguments = {"config": tiny.config, "hf": tiny.hf, "reference": tiny.reference, **changes}
    target = arguments.pop("target", F16)
    return verify(path, target, folder=tiny.folder, threads=2, **arguments)


def test_the_tiny_model_shows_mistakes(tiny):
    logs = tiny.reference.logits.log_softmax(-1)
    entropy = float(-(logs.exp() * logs).sum(-1).mean())
    assert entropy < 0.5 * math.log(tiny.config.vocab_size)


def test_a_right_file_passes_and_the_numbers_are_measured(tiny, tmp_path):
    measured = run(tiny, tiny.write(tmp_path / "m.gguf"))
    assert 0 < measured["kl"] < 1e-4
    assert measured["top1_agreement"] >= 0.99
    assert 0 < measured["largest_logit_difference"] < 0.02
    assert measured["tokens"] == 256
    assert measured["texts_with_equal_ids"] == 16
    assert {0, 2} <= set(measured["end_tokens"])
    assert measured["greedy_tokens"] > 8


@pytest.mark.parametrize("arguments", RIGHT.values(), ids=RIGHT.keys())
def test_each_shape_of_the_family_passes(tmp_path, arguments):
    folder, model, hf = tiny_folder(tmp_path / "m", blocks=2, **arguments)
    path = tmp_path / "m.gguf"
    entries = tokenizers.entries(model.config, hf)
    writer.write_f16(folder, path, config=model.config, tokenizer_entries=entries, metadata={})
    reference = make_reference(folder, model.config, hf)
    measured = verify(
        path, F16, folder=folder, config=model.config, hf=hf, reference=reference, threads=2
    )
    assert measured["kl"] <= measured["kl_limit"] < 1e-3


def test_pitfall_12_a_dropped_permutation_fails(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "permute", lambda weight, heads: weight)
    with pytest.raises(VerificationError, match="KL to torch is"):
        run(tiny, tiny.write(tmp_path / "m.gguf"))


def doubled_base(config):
    return [
        dataclasses.replace(entry, value=2 * entry.value) if "freq_base" in entry.key else entry
        for entry in original_hyper_parameters(config)
    ]


original_hyper_parameters = writer.hyper_parameters


def test_pitfall_15_a_doubled_rope_base_fails_twice(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "hyper_parameters", doubled_base)
    path = tiny.write(tmp_path / "m.gguf")
    with pytest.raises(VerificationError, match="rope frequencies differ by"):
        run(tiny, path)
    monkeypatch.setattr(verify_module, "check_rope", lambda *_: 0.0)
    with pytest.raises(VerificationError, match="KL to torch is"):
        run(tiny, path)


def test_pitfall_15_lost_llama3_factors_fail(tmp_path, monkeypatch):
    folder, model, hf = tiny_folder(tmp_path / "m", blocks=2, rope_parameters=LLAMA3)
    reference = make_reference(folder, model.config, hf)
    wrong = np.ones(32, dtype=np.float32)
    monkeypatch.setattr(families, "computed_tensors", lambda config: {"rope_freqs.weight": wrong})
    path = tmp_path / "m.gguf"
    entries = tokenizers.entries(model.config, hf)
    writer.write_f16(folder, path, config=model.config, tokenizer_entries=entries, metadata={})
    with pytest.raises(VerificationError, match="rope frequencies differ by"):
        verify(path, F16, folder=folder, config=model.config, hf=hf, reference=reference, threads=2)


@pytest.mark.parametrize("pre", ["qwen2", "gpt-2", "smollm"])
def test_pitfall_13_a_wrong_pre_tokenizer_fails(tiny, tmp_path, pre):
    """Llama 3's tokenizer groups three digits; the others cut one by one, or not at all."""
    hf = tiny_tokenizer("llama-bpe")
    entries = [
        dataclasses.replace(entry, value=pre) if entry.key.endswith(".pre") else entry
        for entry in tokenizers.entries(tiny.config, hf)
    ]
    with pytest.raises(VerificationError, match="token ids differ on"):
        run(tiny, tiny.write(tmp_path / "m.gguf", entries=entries), hf=hf)


def test_a_lost_end_of_turn_fails(tiny, tmp_path):
    made = tokenizers.entries(tiny.config, tiny.hf)
    entries = [entry for entry in made if "eot_token_id" not in entry.key]
    with pytest.raises(VerificationError, match=r"does not stop at token \[2\]"):
        run(tiny, tiny.write(tmp_path / "m.gguf", entries=entries))


def test_a_wrong_bos_rule_fails(tiny, tmp_path):
    entries = [
        dataclasses.replace(entry, value=True) if "add_bos" in entry.key else entry
        for entry in tokenizers.entries(tiny.config, tiny.hf)
    ]
    with pytest.raises(VerificationError, match="token ids differ on"):
        run(tiny, tiny.write(tmp_path / "m.gguf", entries=entries))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_truncated_file_fails(tiny, tmp_path, share):
    path = tiny.write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(VerificationError, match="failed verification"):
        run(tiny, path)


def test_pitfall_14_llama_cpp_refusing_the_file_is_a_failed_verification(
    tiny, tmp_path, monkeypatch
):
    path = tiny.write(tmp_path / "m.gguf")
    whole = verify_module.read_back(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    monkeypatch.setattr(verify_module, "read_back", lambda _: whole)
    with pytest.raises(VerificationError, match="cannot load"):
        run(tiny, path)


def test_another_block_count_fails(tiny, tmp_path):
    path = tiny.write(tmp_path / "m.gguf")
    config = with_blocks(tiny.config, 2)
    with pytest.raises(VerificationError, match="it says 3 blocks, the model has 2"):
        run(tiny, path, config=config)


def test_pitfall_9_a_per_block_array_of_the_old_length_fails(tiny, tmp_path):
    path = tmp_path / "m.gguf"
    writer.write_f16(
        tiny.folder,
        path,
        config=tiny.config,
        tokenizer_entries=tokenizers.entries(tiny.config, tiny.hf),
        metadata={"llama.attention.sliding_window_pattern": [1, 0, 1, 0]},
    )
    with pytest.raises(VerificationError, match="has 4 entries for 3 blocks"):
        run(tiny, path)


@pytest.mark.parametrize("name", ["blk.1.attn_norm.weight", "blk.2.ffn_down.weight"])
def test_a_damaged_tensor_fails(tiny, tmp_path, name):
    path = tiny.write(tmp_path / "m.gguf")
    reader = GGUFReader(path, "r+")
    tensor = next(t for t in reader.tensors if t.name == name)
    tensor.data[...] = tensor.data * np.float16(1.1)
    reader.data.flush()
    with pytest.raises(VerificationError, match="failed verification"):
        run(tiny, path)


def test_another_greedy_text_fails(tiny, tmp_path):
    path = tiny.write(tmp_path / "m.gguf")
    said = list(tiny.reference.continuation)
    row = tiny.reference.continuation_logits[2].clone()
    said[2] = int(row.topk(3).indices[2])
    row[said[2]] = row.max() + 1.0
    logits = tiny.reference.continuation_logits.clone()
    logits[2] = row
    wrong = dataclasses.replace(
        tiny.reference, continuation=tuple(said), continuation_logits=logits
    )
    with pytest.raises(VerificationError, match="greedy token 2 is"):
        run(tiny, path, reference=wrong)


def test_a_generation_that_should_have_ended_fails(tiny, tmp_path):
    path = tiny.write(tmp_path / "m.gguf")
    logits = tiny.reference.continuation_logits[:4].clone()
    logits[3, 0] = logits[3].max() + 5.0
    ends = dataclasses.replace(
        tiny.reference,
        continuation=tiny.reference.continuation[:3],
        continuation_logits=logits,
    )
    with pytest.raises(VerificationError, match="torch says the end by"):
        run(tiny, path, reference=ends)


def quantized(tiny, folder, name):
    """(F16 file, quantized file, target with a limit that nothing keeps)."""
    source = tiny.write(folder / "f16.gguf")
    path = folder / "q.gguf"
    quantize(source, path, resolve(name), threads=2)
    return source, path, dataclasses.replace(resolve(name), max_kl=1e-9)


@pytest.mark.parametrize("name", ["q8_0", "q4_k_m", "q3_k_m"])
def test_beyond_its_limit_a_file_passes_only_by_its_own_weights(tiny, tmp_path, name, monkeypatch):
    source, path, strict = quantized(tiny, tmp_path, name)
    measured = run(tiny, path, target=strict, source=source)
    assert measured["kl"] > measured["kl_limit"]
    assert measured["kl_own_weights"] < measured["kl"]
    monkeypatch.setattr(tensors, "unpermute", lambda weight, heads: weight)
    with pytest.raises(VerificationError, match="KL to torch with the file's own weights"):
        run(tiny, path, target=strict, source=source)


def test_a_damaged_quantized_tensor_fails(tiny, tmp_path):
    source, path, _ = quantized(tiny, tmp_path, "q8_0")
    reader = GGUFReader(path, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    tensor.data[...] = np.roll(tensor.data, 1, axis=0)
    reader.data.flush()
    with pytest.raises(VerificationError, match=r"blk\.1\.ffn_up\.weight differs by 1\d\d%"):
        run(tiny, path, target=resolve("q8_0"), source=source)


def test_limits_widen_with_rounding_but_not_without_bound():
    plain = f16_limits(Comparison(kl=1e-6, top1=1.0, largest=0.005))
    assert (plain.kl, plain.top1, plain.largest) == (1e-4, 0.99, 0.02)
    rough = f16_limits(Comparison(kl=2e-4, top1=0.99, largest=0.04))
    assert (rough.kl, rough.largest) == pytest.approx((6e-4, 0.12))
    assert rough.top1 == pytest.approx(0.97)
    assert f16_limits(Comparison(kl=1.0, top1=0.1, largest=3.0)) == WIDEST


def test_nan_logits_are_no_reference(tmp_path):
    from clp_edge.errors import ClpEdgeError

    folder, model, hf = tiny_folder(tmp_path / "m", blocks=2)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(ClpEdgeError, match="own logits hold NaN"):
        make_reference(folder, model.config, hf)
