"""Tiny cut models through Optimum: `make test-optimum` runs this in an environment of its own."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from clp_edge.bench.ceiling import card_of
from clp_edge.errors import UsageError, VerificationError
from clp_edge.export import export, plan, resolve
from clp_edge.export.base import ExportOptions
from clp_edge.export.onnx.contents import Graph
from clp_edge.export.onnx.optimum import FORMAT, LOG_NAME, OptimumExporter, unusable
from clp_edge.export.onnx.optimum_verify import (
    check_embedding,
    check_no_other_is_integer,
    far_reaching,
    verify,
)
from clp_edge.export.onnx.reference import make_reference
from clp_edge.models.surgery import remove_blocks
from clp_edge.progress import silent
from clp_edge.runtimes import open_artifact
from tests.export.models import tiny_folder

if (missing := unusable()) is not None:
    pytest.skip(f"{missing} (make test-optimum)", allow_module_level=True)

TARGET = {target.quantization: target for target in FORMAT.targets()}


def made(place: Path, family: str, *, dropped=(1,), **changes):
    """A tiny folder of that family, cut: (folder, model, tokenizer)."""
    _, model, hf = tiny_folder(place / "hf", model_type=family, blocks=4, **changes)
    remove_blocks(model, dropped)
    folder = place / "cut"
    model.save_pretrained(folder)
    hf.save_pretrained(folder)
    return folder, model, hf


def written(folder, kind, destination, **more):
    more = {"metadata": {"segment": "1-1", "source": "tiny"}, "threads": 1, **more}
    return export(folder, TARGET[kind], destination, **{"progress": silent, **more})


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A cut Llama with a tied head, and its three folders."""
    place = tmp_path_factory.mktemp("llama")
    folder, model, hf = made(place, "llama", tie_word_embeddings=True)
    artifacts = {
        kind: written(folder, kind, place / f"tiny.onnx-optimum-{kind}", workdir=place / "work")
        for kind in TARGET
    }
    return folder, model, hf, artifacts


def test_a_cut_model_is_proved_in_every_kind(llama):
    artifacts = llama[3]
    exact = artifacts["fp32"]
    assert exact.verify["kl"] < 1e-6
    assert exact.verify["kl_cached_steps"] < 1e-6
    assert exact.verify["top1_agreement"] == 1.0
    assert exact.verify["greedy_tokens"] == 24
    assert exact.verify["optimum_tokens"] == 16
    assert artifacts["fp16"].verify["kl"] < 1e-3
    assert 16 < artifacts["fp16"].bits_per_weight < 18  # o_proj stays float32
    small = artifacts["int8"]
    assert small.verify["integer_matrices"] == 3 * 7 + 1
    assert small.verify["kl"] < small.verify["kl_limit"]
    assert small.fallback_tensors == 0
    assert small.bits_per_weight < 8.5  # the embedding is the head's own numbers
    for artifact in artifacts.values():
        assert artifact.verified
        assert "CPUExecutionProvider" in artifact.verify["provider"]


@pytest.mark.parametrize("kind", TARGET)
def test_the_plan_foresees_the_folder(llama, kind):
    _, model, hf, artifacts = llama
    predicted = plan(model.config, hf, TARGET[kind])
    assert predicted.problems == ()
    assert predicted.predicted_bytes == pytest.approx(artifacts[kind].bytes, rel=0.05)
    assert predicted.bits_per_weight == pytest.approx(artifacts[kind].bits_per_weight, rel=0.03)
    assert predicted.fallback_tensors == artifacts[kind].fallback_tensors
    card = card_of(artifacts[kind].path)
    assert predicted.read_bytes == pytest.approx(card.weight_bytes_per_token, rel=0.01)
    fewer = plan(model.config, hf, TARGET[kind], dropped=[0])
    assert fewer.predicted_bytes < predicted.predicted_bytes


def test_what_a_folder_says_of_itself(llama):
    artifact = llama[3]["int8"]
    said = Graph(artifact.path).metadata
    assert said["clp_edge.segment"] == "1-1"
    assert said["clp_edge.source"] == "tiny"
    assert json.loads((artifact.path / "config.json").read_text())["num_hidden_layers"] == 3
    assert (artifact.path / "generation_config.json").is_file()
    assert (artifact.path.parent / "work" / LOG_NAME).is_file()
    assert not list(artifact.path.parent.glob("*.partial"))


@pytest.mark.parametrize(("kind", "element"), [("fp32", 4), ("fp16", 2), ("int8", 4)])
def test_pitfall_21_the_card_of_a_plain_graph(llama, kind, element):
    """The embedding is the head: every weight is read once."""
    _, model, _, artifacts = llama
    card = card_of(artifacts[kind].path)
    whole = Graph(artifacts[kind].path).tensor_bytes()
    assert card.weight_bytes_per_token == pytest.approx(whole, rel=0.002)
    layers = [m for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
    assert card.block_matmul_elements == sum(layer.weight.numel() for layer in layers)
    assert card.head_elements == model.get_output_embeddings().weight.numel()
    assert (card.blocks, card.architecture) == (3, "llama")
    assert card.bytes_per_token(10) - card.bytes_per_token(0) == 10 * 3 * 2 * 2 * 64 * element


def test_a_changed_row_of_the_embedding_is_seen(llama):
    _, model, _, artifacts = llama
    graph = Graph(artifacts["int8"].path)
    check_embedding(graph, model)
    rows = model.get_input_embeddings().weight
    before = float(rows[7, 40])
    try:
        rows[7, 40] = before + 1.0
        with pytest.raises(VerificationError, match=r"its embedding has 1 of \d+ numbers off"):
            check_embedding(graph, model)
    finally:
        rows[7, 40] = before
    with pytest.raises(VerificationError, match="not looked up in 8 bits"):
        check_embedding(Graph(artifacts["fp32"].path), model)


def test_an_untied_embedding_has_a_table_of_its_own(tmp_path):
    folder, model, _ = made(tmp_path, "qwen3", tie_word_embeddings=False)
    artifact = written(folder, "int8", tmp_path / "out")
    check_embedding(Graph(artifact.path), model)
    assert artifact.fallback_tensors == len(artifact.verify["float_matrices"])
    rows, width = model.get_input_embeddings().weight.shape
    card = card_of(artifact.path)
    unread = Graph(artifact.path).tensor_bytes() - card.weight_bytes_per_token
    assert unread == pytest.approx((rows - 1) * (width + 5), abs=64)


def test_ortmodelforcausallm_loads_it_and_says_what_torch_says(llama):
    from optimum.onnxruntime import ORTModelForCausalLM

    _, model, hf, artifacts = llama
    ids = torch.tensor([hf.encode("In 1893 it had held for 47 days")])
    opened = ORTModelForCausalLM.from_pretrained(artifacts["fp32"].path)
    asked = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(opened.generate(ids, **asked), model.generate(ids, **asked))


def test_plain_onnxruntime_steps_on_the_cache_as_torch_does(llama):
    _, model, hf, artifacts = llama
    ids = hf.encode("In 1893 it had held for 47 days")
    with open_artifact(artifacts["fp32"].path, threads=1, context=64, batch=1) as session:
        assert session.info.runtime == "onnxruntime"
        assert session.info.blocks == 3
        rows = session.logits(ids)
    expected = model(torch.tensor([ids])).logits[0].detach().numpy()
    assert np.abs(rows - expected).max() < 1e-4


def test_pitfall_angles_and_attention_stay_floats(llama):
    """ORTQuantizer by itself takes every MatMul: positions times frequencies in 8 bits."""
    graph = Graph(llama[3]["int8"].path)
    check_no_other_is_integer(graph)
    products = [node for node in graph.proto.graph.node if node.op_type == "MatMulInteger"]
    products[0].input[1] = "angles"
    with pytest.raises(VerificationError, match="8-bit products without a matrix"):
        check_no_other_is_integer(graph)


def test_a_product_whose_inputs_have_an_outlier_stays_in_floats(llama, tmp_path):
    """One scale for a whole prefill: a massive activation leaves the others four steps."""
    _, model, hf, _ = llama
    up = model.state_dict()["model.layers.1.mlp.up_proj.weight"]
    before = up.clone()
    try:
        up[3] *= 300.0
        model.save_pretrained(tmp_path / "hf")
        hf.save_pretrained(tmp_path / "hf")
    finally:
        up.copy_(before)
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    reference = make_reference(tmp_path / "hf", config, hf)
    down = "/model/layers.1/mlp/down_proj/MatMul"
    far = far_reaching(reference)
    assert down in far
    with FORMAT.open(tmp_path / "hf", metadata={}, threads=1) as exporter:
        artifact = exporter.export(TARGET["int8"], tmp_path / "out", progress=silent)
    assert artifact.fallback_tensors == len(far)
    assert artifact.verify["float_matrices"] == far
    assert artifact.verify["integer_matrices"] == 3 * 7 + 1 - len(far)


def again(folder, path, kind):
    config = AutoConfig.from_pretrained(folder)
    hf = AutoTokenizer.from_pretrained(folder)
    return verify(
        path,
        TARGET[kind],
        config=config,
        hf=hf,
        reference=make_reference(folder, config, hf),
        metadata={"clp_edge.segment": "1-1"},
        threads=1,
    )


@pytest.mark.parametrize(
    ("kind", "said"), [("fp32", "prefill"), ("int8", r"layers\.1/mlp/up_proj/MatMul has 1 of")]
)
def test_one_changed_number_fails(llama, tmp_path, kind, said):
    _, model, hf, artifacts = llama
    changed = model.state_dict()["model.layers.1.mlp.up_proj.weight"]
    before = float(changed[7, 40])
    try:
        changed[7, 40] = before + 3.0
        model.save_pretrained(tmp_path)
        hf.save_pretrained(tmp_path)
    finally:
        changed[7, 40] = before
    with pytest.raises(VerificationError, match=said):
        again(tmp_path, artifacts[kind].path, kind)


def test_a_block_too_few_fails(llama, tmp_path):
    folder, _, _, artifacts = llama
    config = AutoConfig.from_pretrained(folder, num_hidden_layers=2)
    with pytest.raises(VerificationError, match="cache has 3/3 blocks, not 2"):
        verify(
            artifacts["fp32"].path,
            TARGET["fp32"],
            config=config,
            hf=None,
            reference=make_reference(folder, AutoConfig.from_pretrained(folder), llama[2]),
            metadata={},
            threads=1,
        )


def test_a_graph_cut_short_is_a_failed_verification(llama, tmp_path):
    folder, _, _, artifacts = llama
    copy = tmp_path / "copy"
    shutil.copytree(artifacts["fp32"].path, copy)
    data = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(VerificationError, match="copy failed verification: no readable graph"):
        again(folder, copy, "fp32")


def test_a_failed_folder_keeps_its_partial_name(llama, tmp_path, monkeypatch):
    """PITFALLS 25, with a limit that 8 bits cannot meet and a graph that was built before."""

    def build(self, target, partial, kept, metadata, progress):
        shutil.copytree(llama[3]["int8"].path, partial)

    monkeypatch.setattr(OptimumExporter, "_build", build)
    destination = tmp_path / "m.onnx-optimum-int8"
    strict = dataclasses.replace(TARGET["int8"], max_kl=1e-12)
    said = {"segment": "1-1", "source": "tiny"}
    with (
        FORMAT.open(llama[0], metadata=said, threads=1) as exporter,
        pytest.raises(VerificationError, match="limit 1e-12"),
    ):
        exporter.export(strict, destination, progress=silent)
    assert not destination.exists()
    assert (tmp_path / "m.onnx-optimum-int8.partial" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3", {"tie_word_embeddings": False}),
        ("mistral", {"sliding_window": 40}),
        ("gemma3_text", {}),
    ],
)
def test_other_families(tmp_path, family, changes):
    folder, _, _ = made(tmp_path, family, **changes)
    assert written(folder, "fp32", tmp_path / "out").verify["kl"] < 1e-6


def test_what_optimum_does_not_know_is_refused_before_any_work(llama):
    _, model, hf, _ = llama
    config = AutoConfig.from_pretrained(llama[0])
    config.model_type = "quaternion"
    (problem,) = plan(config, hf, TARGET["fp32"]).problems
    assert "has no exporter for quaternion" in str(problem)
    config.model_type = "phi3"
    (problem,) = plan(config, hf, TARGET["fp32"]).problems
    assert "makes a cache of 4 heads for phi3, the model has 2" in str(problem)
    cuda = ExportOptions(provider="cuda")
    (problem,) = plan(model.config, hf, TARGET["fp32"], options=cuda).problems
    assert "--ep cuda is not for Optimum's graphs" in str(problem)
    with pytest.raises(UsageError, match="GGUF targets only"):
        FORMAT.open(llama[0], metadata={}, threads=1, options=ExportOptions(careful_head=True))
    assert FORMAT.requires() is None
    assert resolve("onnx-optimum-int8") is TARGET["int8"]
