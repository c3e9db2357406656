"""GGUF files as sources: the right values, or a refusal that names the part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from transformers import AutoModelForCausalLM

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.gguf_file.header import read_header
from clp_edge.gguf_file.rope import llama3_divisors
from clp_edge.models.source import (
    load_config,
    load_model,
    load_tokenizer,
    locate,
    save_model,
    source_warnings,
    stored_dtype,
    tokenizer_gguf,
)
from tests.models.hard_texts import CHAT_TEXT, HARD_TEXTS
from tests.models.tiny_gguf import tiny_llama, write_gguf
from tests.tiny import random_ids

torch.set_num_threads(2)


def test_a_gguf_file_loads_with_the_values_it_was_written_from(gguf, model, tokenizer):
    source = locate(str(gguf))
    assert (source.kind, source.name) == ("gguf", "Tiny-Llama")
    loaded = load_model(source)
    ids = random_ids(2, 32)
    assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert getattr(loaded.config, "quantization_config", None) is None
    config = load_config(source)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert config.vocab_size == 320
    assert config.tie_word_embeddings
    assert stored_dtype(source) == torch.float16
    assert source_warnings(source) == ()
    assert tokenizer_gguf(source) == gguf
    built = load_tokenizer(source)
    for text in [*HARD_TEXTS, CHAT_TEXT]:
        assert built(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert built.decode(built(text)["input_ids"]) == text
    assert (built.bos_token_id, built.eos_token_id, built.unk_token_id) == (1, 2, 0)
    rendered = built.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n"


def test_pitfall_13_a_gguf_source_passes_its_tokenizer_keys_on(tmp_path, gguf):
    source = locate(str(gguf))
    first = tmp_path / "first"
    save_model(
        load_model(source), load_tokenizer(source), first, dtype=torch.float16, source=source
    )
    assert (first / "tokenizer.json").is_file()
    assert not (first / "tokenizer.model").exists()
    second = tmp_path / "second"
    middle = locate(str(first))
    save_model(
        load_model(middle), load_tokenizer(middle), second, dtype=torch.float16, source=middle
    )
    original = GGUFReader(str(gguf))
    wanted = {n: f for n, f in original.fields.items() if n.startswith("tokenizer.")}
    for folder in (first, second):
        assert tokenizer_gguf(locate(str(folder))) == folder / "tokenizer.gguf"
        carried = GGUFReader(str(folder / "tokenizer.gguf"))
        assert carried.tensors == []
        got = {n: f for n, f in carried.fields.items() if n.startswith("tokenizer.")}
        assert set(got) == set(wanted)
        for name, field in wanted.items():
            assert got[name].types == field.types
            assert got[name].contents() == field.contents()
    assert AutoModelForCausalLM.from_pretrained(first).dtype is not None  # plain from_pretrained


def test_a_quantized_gguf_is_warned_about(tmp_path, model, tokenizer):
    path = write_gguf(
        tmp_path / "tiny.Q4_1.gguf", model, tokenizer, quantize=GGMLQuantizationType.Q4_1
    )
    source = locate(str(path))
    assert source.name == "tiny"
    (warning,) = source_warnings(source)
    assert warning.startswith("tiny.Q4_1.gguf holds 5.0 bits per weight: it is requantized")
    q8 = write_gguf(
        tmp_path / "tiny-Q8_0.gguf", model, tokenizer, quantize=GGMLQuantizationType.Q8_0
    )
    assert source_warnings(locate(str(q8))) == ()
    assert locate(str(q8)).name == "tiny"


def test_end_of_turn_ids_reach_the_generation_config(tmp_path, model, tokenizer):
    path = write_gguf(
        tmp_path / "t.gguf", model, tokenizer, keys={"tokenizer.ggml.eot_token_id": 0}
    )
    assert load_model(locate(str(path))).generation_config.eos_token_id == [2, 0]


def test_damaged_gguf_files_are_refused(gguf, tmp_path):
    whole = gguf.read_bytes()
    bad = tmp_path / "bad.gguf"
    for size, message in ((len(whole) - 50_000, "truncated: "), (3_000, "truncated or damaged")):
        bad.write_bytes(whole[:size])
        with pytest.raises(ClpEdgeError, match=message):
            locate(str(bad))
    bad.write_bytes(b"PK\x03\x04" + whole[4:])
    with pytest.raises(ClpEdgeError, match="is no GGUF file"):
        locate(str(bad))
    bad.write_bytes(b"")
    with pytest.raises(ClpEdgeError, match=r"is no GGUF file .0 bytes"):
        locate(str(bad))


def test_gguf_files_of_other_architectures_are_refused(tmp_path, model, tokenizer):
    other = write_gguf(tmp_path / "o.gguf", model, tokenizer, architecture="rwkv7")
    with pytest.raises(UnsupportedModelError, match="architecture 'rwkv7'"):
        locate(str(other))
    moe = write_gguf(tmp_path / "m.gguf", model, tokenizer, keys={"llama.expert_count": 8})
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        locate(str(moe))
    part = write_gguf(tmp_path / "p.gguf", model, tokenizer, keys={"split.count": 2})
    with pytest.raises(ClpEdgeError, match="llama-gguf-split --merge"):
        locate(str(part))


def test_a_tensor_that_the_model_has_no_place_for_is_an_error(tmp_path, model, tokenizer):
    bias = {"blk.0.attn_q.bias": np.ones(256, dtype=np.float32)}
    path = write_gguf(tmp_path / "b.gguf", model, tokenizer, tensors=bias)
    with pytest.raises(UnsupportedModelError, match=r"no place for: blk\.0\.attn_q\.bias"):
        load_model(locate(str(path)))


def test_a_missing_gguf_tensor_is_an_error(tmp_path, tokenizer):
    short = tiny_llama()
    path = write_gguf(tmp_path / "s.gguf", short, tokenizer, keys={"llama.vocab_size": 320})
    header = read_header(path)
    assert len(header.tensors) == 20
    three = tiny_llama()
    three.config.num_hidden_layers = 3  # the header promises a block that the file does not have
    path = write_gguf(tmp_path / "t.gguf", three, tokenizer)
    with pytest.raises(ClpEdgeError, match=r"t\.gguf lacks blk\.2\.attn_k\.weight"):
        load_model(locate(str(path)))


def test_pitfall_15_rope_scaling_of_a_gguf_is_kept_or_refused(tmp_path, model, tokenizer):
    factors = llama3_divisors(32, 10_000.0, factor=32.0, low=1.0, high=4.0, original=8192)
    path = write_gguf(
        tmp_path / "l3.gguf", model, tokenizer, tensors={"rope_freqs.weight": factors}
    )
    loaded = load_model(locate(str(path)))
    from transformers import LlamaConfig, LlamaForCausalLM

    wanted = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    reference_config = LlamaConfig(**{**model.config.to_dict(), "rope_scaling": wanted})
    reference_config.rope_theta = 10_000.0
    reference = LlamaForCausalLM(reference_config).eval()
    assert torch.allclose(
        loaded.model.rotary_emb.inv_freq, reference.model.rotary_emb.inv_freq, rtol=1e-5
    )
    assert torch.allclose(
        loaded.model.rotary_emb.inv_freq,
        model.model.rotary_emb.inv_freq / torch.from_numpy(factors),
        rtol=1e-4,
    )
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "lin.gguf", model, tokenizer, keys=linear)
    frequencies = load_model(locate(str(path))).model.rotary_emb.inv_freq
    assert torch.allclose(frequencies, model.model.rotary_emb.inv_freq / 4)
    strange = {"rope_freqs.weight": np.linspace(1, 3, 32, dtype=np.float32)}
    path = write_gguf(tmp_path / "x.gguf", model, tokenizer, tensors=strange)
    with pytest.raises(UnsupportedModelError, match="not those of a known Llama 3 scaling"):
        locate(str(path))
    keys = {"llama.rope.scaling.type": "longrope"}
    path = write_gguf(tmp_path / "y.gguf", model, tokenizer, keys=keys)
    with pytest.raises(UnsupportedModelError, match=r"rope scaling of y\.gguf .longrope"):
        locate(str(path))
