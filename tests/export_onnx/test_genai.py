"""Tiny models of six families through onnxruntime-genai's builder: proved, or refused before work.

The models have short sliding windows, another rope base than the default, tied and untied heads,
and weights that make a mistake show (tests/tiny.py).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import onnx
import pytest
import torch
from transformers import AutoConfig

from clp_edge.bench.ceiling import card_of
from clp_edge.errors import PreflightError, RuntimeDiedError, UsageError, VerificationError
from clp_edge.export.base import ExportOptions
from clp_edge.export.onnx.contents import Graph
from clp_edge.export.onnx.folder import build_timeout_s, folder_digest
from clp_edge.export.onnx.format import FORMAT
from clp_edge.export.onnx.genai import LOG_NAME, export
from clp_edge.export.onnx.own_weights import check
from clp_edge.export.onnx.plan import plan
from clp_edge.export.onnx.provider import fault, problem, prove
from clp_edge.export.onnx.reference import make_reference
from clp_edge.export.onnx.targets import TARGETS
from clp_edge.export.onnx.verify import verify
from clp_edge.models.surgery import remove_blocks
from clp_edge.progress import silent
from clp_edge.runtimes import open_artifact
from tests.export.models import tiny_folder

if importlib.util.find_spec("onnxruntime_genai") is None:
    pytest.skip("no onnxruntime_genai; pip install -e '.[onnx]'", allow_module_level=True)

TARGET = {target.quantization: target for target in TARGETS}
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 40},
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": {},
    "phi3": {"tie_word_embeddings": False},
}


def made(tmp_path, family, *, dropped=(), blocks=4, **changes):
    """A tiny folder of that family, cut where asked: (folder, model, tokenizer)."""
    folder, model, hf = tiny_folder(tmp_path / "hf", model_type=family, blocks=blocks, **changes)
    if dropped:
        remove_blocks(model, dropped)
        folder = tmp_path / "cut"
        model.save_pretrained(folder)
        hf.save_pretrained(folder)
    return folder, model, hf


def written(folder, target, destination, **more):
    return export(
        folder,
        target,
        destination,
        metadata={"segment": "1-1", "source": "tiny"},
        threads=1,
        progress=more.pop("progress", silent),
        **more,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_of_each_family_is_proved(tmp_path, family):
    """fp32 says what torch says, prefill and cache; int4 follows its own weights."""
    folder, model, hf = made(tmp_path, family, dropped=(1,), **FAMILIES[family])
    exact = written(folder, TARGET["fp32"], tmp_path / "onnx-fp32")
    assert exact.verified
    assert exact.verify["kl"] < 1e-5
    assert exact.verify["kl_cached_steps"] < 1e-5
    assert exact.verify["top1_agreement"] == 1.0
    assert exact.verify["greedy_tokens"] == 24
    assert exact.bits_per_weight == pytest.approx(32, rel=0.01)

    small = written(folder, TARGET["int4"], tmp_path / "onnx-int4")
    assert small.verified
    found = small.verify
    worst = max(found["kl"], found["kl_cached_steps"])
    assert worst <= found["kl_limit"] or found["kl_own_weights"] <= 0.6
    assert {"4", "8"} == set(small.verify["matrices_by_bits"])
    assert small.bytes < 0.4 * exact.bytes
    predicted = plan(model.config, hf, TARGET["int4"])
    assert predicted.problems == ()
    assert small.bytes == pytest.approx(predicted.predicted_bytes, rel=0.05)
    assert small.bits_per_weight == pytest.approx(predicted.bits_per_weight, rel=0.05)
    assert small.fallback_tensors == predicted.fallback_tensors
    for artifact, foreseen in (
        (exact, plan(model.config, hf, TARGET["fp32"])),
        (small, predicted),
    ):
        card = card_of(artifact.path)
        assert foreseen.read_bytes == pytest.approx(card.weight_bytes_per_token, rel=0.01)
        windows = [block.window for block in card.attention]
        assert windows == windows_of(model.config)
        layers = [m for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
        assert card.block_matmul_elements == sum(layer.weight.numel() for layer in layers)
        assert card.head_elements == model.get_output_embeddings().weight.numel()
        assert card.kv_element_bytes == 4.0


def windows_of(config):
    """The window of each block, None for those that see everything."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    return [window if kind == "sliding_attention" else None for kind in kinds]


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A Llama with a tied head, its int8 folder, and the notes of its making."""
    place = tmp_path_factory.mktemp("tied")
    folder, model, hf = made(place, "llama", tie_word_embeddings=True, blocks=3)
    steps: list[tuple[float, str]] = []
    artifact = written(
        folder,
        TARGET["int8"],
        place / "onnx-int8",
        workdir=place / "work",
        progress=lambda done, total, note="": steps.append((done / total, note)),
    )
    return folder, model, hf, artifact, steps


def test_a_tied_matrix_is_stored_once_in_eight_bits_too(tied):
    """The builder by itself adds a float32 copy of the embedding for int8."""
    artifact = tied[3]
    graph = Graph(artifact.path)
    assert graph.float_matrices() == []
    assert artifact.fallback_tensors == 0
    assert artifact.bits_per_weight < 9.5


def test_pitfall_21_the_card_counts_a_tied_matrix_once(tied):
    """Every weight once, and a row of the angles: the embedding is the head."""
    graph, card = Graph(tied[3].path), card_of(tied[3].path)
    row = 2 * 4 * 64 // 2  # cosines and sines of a head of 64
    assert card.weight_bytes_per_token == graph.tensor_bytes() + row
    assert card.file_bytes == tied[3].bytes
    assert (card.blocks, card.architecture) == (3, "llama")
    assert card.bytes_per_token(10) - card.bytes_per_token(0) == 10 * 3 * 2 * 2 * 64 * 4


def test_what_a_folder_says_of_itself(tied):
    artifact, steps = tied[3:]
    said = Graph(artifact.path).metadata
    assert said["clp_edge.segment"] == "1-1"
    assert said["clp_edge.source"] == "tiny"
    assert (artifact.sha256, artifact.bytes) == folder_digest(artifact.path)
    assert json.loads((artifact.path / "genai_config.json").read_text())["model"]["type"] == "llama"
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert {"building the graph", "quantizing"} <= {note for _, note in steps}
    log = (artifact.path.parent / "work" / LOG_NAME).read_text()
    assert "Reading layer 2" in log
    assert not list(artifact.path.parent.glob("*.partial"))


def test_the_session_answers_as_torch_does(tied):
    _, model, hf, artifact, _ = tied
    ids = hf.encode("In 1893 it had held for 47 days")
    with open_artifact(artifact.path, threads=1, context=64, batch=5) as opened:
        info = opened.info
        assert (info.runtime, info.architecture, info.blocks) == ("onnxruntime-genai", "llama", 3)
        assert opened.tokenize("wörld 12") == hf.encode("wörld 12")
        assert opened.detokenize(ids) == "In 1893 it had held for 47 days"
        rows = opened.logits(ids)
        expected = model(torch.tensor([ids])).logits[0].numpy()
        assert abs(rows - expected).max() < 0.5 * expected.std()
        fresh = opened.generate(ids, 6)
        assert opened.generate(ids, 6, stop={fresh[2]}) == fresh[: fresh.index(fresh[2])]
        timing = opened.time_once(prompt=8, generate=2, depth=4)
        assert min(timing.prefill_s, timing.decode_s, timing.ttft_ms) > 0
        with pytest.raises(UsageError, match="do not fit the open context of 64"):
            opened.time_once(prompt=60, generate=0, depth=16)
        with pytest.raises(UsageError, match="outside the vocabulary"):
            opened.logits([10**6])


def test_plain_onnxruntime_gives_the_same_answers(tied, tmp_path):
    """The same graph without genai_config.json, its cache held by us."""
    import shutil

    folder, _, hf, artifact, _ = tied
    plain = tmp_path / "plain"
    shutil.copytree(artifact.path, plain, ignore=shutil.ignore_patterns("genai_config.json"))
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(folder / name, plain / name)
    ids = hf.encode("In 1893 it had held for 47 days")
    with (
        open_artifact(artifact.path, threads=1, context=64, batch=5) as theirs,
        open_artifact(plain, threads=1, context=64, batch=5) as ours,
    ):
        info = ours.info
        assert (info.runtime, info.architecture, info.blocks) == ("onnxruntime", "llama", 3)
        assert info.context_length == theirs.info.context_length
        assert abs(ours.logits(ids) - theirs.logits(ids)).max() < 1e-4
        assert ours.generate(ids, 8) == theirs.generate(ids, 8)
        choices = [ids[4:], ids[4:6], ids[:1]]
        scores = ours.score(ids[:4], choices)
        rows = torch.log_softmax(torch.from_numpy(ours.logits(ids)).double(), -1)[3:-1]
        whole = float(rows[torch.arange(len(rows)), torch.tensor(ids[4:])].sum())
        assert scores[0][0] == pytest.approx(whole, abs=1e-3)
        alone = [score for score, _ in scores]
        assert [s for s, _ in theirs.score(ids[:4], choices)] == pytest.approx(alone, abs=1e-3)
        assert ours.end_tokens() == theirs.end_tokens()
        assert ours.detokenize(ours.tokenize("wörld 12")) == "wörld 12"
        timing = ours.time_once(prompt=8, generate=2, depth=4)
        assert min(timing.prefill_s, timing.decode_s, timing.ttft_ms) > 0
        with pytest.raises(UsageError, match="do not fit the open context of 64"):
            ours.logits([1] * 65)


def test_pitfall_18_a_provider_that_does_not_multiply_is_refused(tied, tmp_path):
    assert prove("cpu").endswith(", CPUExecutionProvider")
    assert "unknown execution provider 'npu' (--ep)" in str(problem("npu"))
    if torch.cuda.is_available():
        pytest.skip("CUDA may well compute here")
    with pytest.raises(PreflightError, match="CUDAExecutionProvider does not compute here"):
        written(tied[0], TARGET["fp16"], tmp_path / "onnx-fp16", provider="cuda")
    assert not list(tmp_path.glob("onnx-fp16*"))


def test_the_format_says_before_any_work_what_the_provider_lacks(tied, tmp_path, monkeypatch):
    _, model, hf, _, _ = tied
    assert FORMAT.requires() is None
    monkeypatch.setattr(
        "clp_edge.export.onnx.provider.fault",
        lambda name: "libcudnn.so.9 is missing" if name == "CUDAExecutionProvider" else "",
    )
    cuda = ExportOptions(provider="cuda")
    (found,) = FORMAT.plan(model.config, hf, TARGET["fp16"], options=cuda).problems
    assert "CUDAExecutionProvider does not compute here (libcudnn.so.9 is missing" in str(found)
    with (
        FORMAT.open(tied[0], metadata={}, threads=1, options=cuda) as exporter,
        pytest.raises(PreflightError, match=r"libcudnn\.so\.9 is missing"),
    ):
        exporter.export(TARGET["fp16"], tmp_path / "onnx-fp16", progress=silent)
    assert not list(tmp_path.glob("onnx-fp16*"))


def test_a_processor_that_cannot_multiply_stands_in_the_way(monkeypatch):
    monkeypatch.setattr("clp_edge.export.onnx.provider.fault", lambda name: "it makes 0.0 of -18")
    assert "CPUExecutionProvider does not compute here" in str(FORMAT.requires())


def test_a_child_that_dies_of_the_product_is_a_fault(monkeypatch):
    def die(*_, **__):
        raise RuntimeDiedError("a product: the process was ended by SIGSEGV")

    monkeypatch.setattr("clp_edge.export.onnx.provider.run_in_child", die)
    assert fault("QuantumExecutionProvider") == "a product: the process was ended by SIGSEGV"


def proven(folder, artifact, target, *, reference_folder=None):
    config = AutoConfig.from_pretrained(folder)
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(folder)
    return verify(
        artifact.path,
        target,
        folder=reference_folder or folder,
        config=config,
        hf=hf,
        reference=make_reference(reference_folder or folder, config, hf),
        metadata={"clp_edge.segment": "1-1"},
        threads=1,
    )


def test_beyond_the_limit_torch_with_the_graphs_own_weights_decides(tied):
    folder, _, _, artifact, _ = tied
    strict = dataclasses.replace(TARGET["int8"], max_kl=1e-9)
    found = proven(folder, artifact, strict)
    assert found["kl"] > 1e-9
    assert found["kl_own_weights"] < 0.05


def test_one_changed_number_fails(tied, tmp_path):
    """A graph built from a model in which a single weight differs is not this model's."""
    folder, model, hf, artifact, _ = tied
    other = tmp_path / "other"
    changed = model.state_dict()["model.layers.1.mlp.up_proj.weight"]
    before = float(changed[7, 40])
    try:
        changed[7, 40] = before + 0.5
        model.save_pretrained(other)
        hf.save_pretrained(other)
    finally:
        changed[7, 40] = before
    with pytest.raises(VerificationError, match=r"layers\.1/mlp/up_proj.* 1 of "):
        proven(folder, artifact, TARGET["int8"], reference_folder=other)


def test_a_changed_norm_fails_by_its_logits(tied, tmp_path):
    """Norms are no products: they are held by the logits."""
    folder, model, hf, artifact, _ = tied
    other = tmp_path / "other"
    gain = model.state_dict()["model.layers.1.input_layernorm.weight"]
    before = gain.clone()
    try:
        gain.copy_(before.flip(0))
        model.save_pretrained(other)
        hf.save_pretrained(other)
    finally:
        gain.copy_(before)
    with pytest.raises(VerificationError, match="own weights"):
        proven(folder, artifact, TARGET["int8"], reference_folder=other)


def test_a_block_too_few_fails(tied):
    folder, _, _, artifact, _ = tied
    config = AutoConfig.from_pretrained(folder, num_hidden_layers=2)
    with pytest.raises(VerificationError, match="cache has 3/3 blocks, not 2"):
        verify(
            artifact.path,
            TARGET["int8"],
            folder=folder,
            config=config,
            hf=None,
            reference=None,
            metadata={},
            threads=1,
        )


def test_a_failed_folder_keeps_its_partial_name(tied, tmp_path, monkeypatch):
    """PITFALLS 25: what was not verified has no final name, and an older result stays."""
    folder = tied[0]
    destination = tmp_path / "onnx-int4-rtn"
    destination.mkdir()
    (destination / "kept").write_text("old")

    def refuse(*_, **__):
        raise VerificationError("not right")

    monkeypatch.setattr("clp_edge.export.onnx.genai.verify", refuse)
    with pytest.raises(VerificationError, match="not right"):
        written(folder, TARGET["int4-rtn"], destination)
    assert (destination / "kept").read_text() == "old"
    assert (tmp_path / "onnx-int4-rtn.partial" / "model.onnx").is_file()


def test_a_damaged_weights_file_is_a_failed_verification(tied, tmp_path):
    import shutil

    folder, _, _, artifact, _ = tied
    copy = tmp_path / "onnx-int8"
    shutil.copytree(artifact.path, copy)
    data = copy / "model.onnx.data"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    broken = dataclasses.replace(artifact, path=copy)
    with pytest.raises(VerificationError, match="onnx-int8 failed verification"):
        proven(folder, broken, TARGET["int8"])


def test_a_window_that_is_overlooked_is_seen(tmp_path):
    """Mistral's window is in no per-block list, and the builder by itself leaves it out."""
    folder, _, _ = made(tmp_path, "mistral", sliding_window=40)
    artifact = written(folder, TARGET["fp32"], tmp_path / "onnx-fp32")
    path = artifact.path / "model.onnx"
    graph = onnx.load(str(path), load_external_data=False)
    windows = [
        attribute
        for node in graph.graph.node
        for attribute in node.attribute
        if attribute.name == "local_window_size"
    ]
    assert [window.i for window in windows] == [40] * 4
    for window in windows:
        window.i = -1
    onnx.save(graph, str(path))
    with pytest.raises(VerificationError, match="prefill: KL"):
        proven(folder, artifact, TARGET["fp32"])


def test_every_matrix_is_looked_at(tied):
    _, model, _, artifact, _ = tied
    assert check(Graph(artifact.path), model) == {8: 3 * 5 + 1}


def test_a_family_without_a_builder_is_refused_before_any_work(tmp_path):
    folder, _, _ = made(tmp_path, "olmo2", blocks=2)
    with pytest.raises(PreflightError, match=r"no builder for Olmo2ForCausalLM; take onnx-optimum"):
        written(folder, TARGET["int4"], tmp_path / "onnx-int4")
    assert not list(tmp_path.glob("onnx-int4*"))


def test_a_precision_that_a_provider_lacks_is_refused(tied):
    _, model, hf, _, _ = tied
    (problem,) = plan(model.config, hf, TARGET["fp16"]).problems
    assert "writes no fp16 for cpu" in str(problem)
    assert "--ep cuda or dml" in str(problem)
    assert plan(model.config, hf, TARGET["fp16"], provider="cuda").problems == ()
    (problem,) = plan(model.config, hf, TARGET["fp32"], provider="npu").problems
    assert "unknown execution provider 'npu'" in str(problem)


def test_a_rope_that_the_builder_lacks_is_refused(tied):
    hf = tied[2]
    config = AutoConfig.from_pretrained(tied[0])
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    (problem,) = plan(config, hf, TARGET["int4"]).problems
    assert "rope type 'dynamic'" in str(problem)


def test_fewer_blocks_weigh_less(tied):
    _, model, hf, artifact, _ = tied
    whole = plan(model.config, hf, TARGET["int8"])
    two = plan(model.config, hf, TARGET["int8"], blocks=2)
    one = plan(model.config, hf, TARGET["int8"], blocks=1)
    assert whole.predicted_bytes == pytest.approx(artifact.bytes, rel=0.05)
    assert whole.predicted_bytes - two.predicted_bytes == pytest.approx(
        two.predicted_bytes - one.predicted_bytes, rel=0.01
    )


def test_a_builder_may_take_longer_for_a_larger_model(tied):
    parameters = sum(weight.numel() for weight in tied[1].parameters())
    assert build_timeout_s(tied[0]) == pytest.approx(600 + 7200 * parameters / 1e9)


def test_a_folder_that_is_no_model_is_a_clear_error(tmp_path):
    from clp_edge.errors import ClpEdgeError

    with pytest.raises(ClpEdgeError, match="no Hugging Face model folder"):
        written(tmp_path, TARGET["int4"], tmp_path / "out")


def test_a_builder_that_says_nothing_is_refused(tmp_path):
    from clp_edge.errors import ClpEdgeError
    from clp_edge.export.onnx.builder import installed, read_builder

    known = installed()
    assert "LlamaForCausalLM" in known.architectures
    assert ("int4", "cpu") in known.pairs
    assert ("fp16", "cpu") not in known.pairs
    other = tmp_path / "builder.py"
    other.write_text("print('hello')\n")
    with pytest.raises(ClpEdgeError, match="names no architectures"):
        read_builder(Path(other), "99")


def test_a_config_from_a_gguf_file_names_no_class_and_is_planned_all_the_same(tmp_path):
    """The demo model with --target onnx-int4 was refused: "no builder for model type llama"."""
    _, _, hf = tiny_folder(tmp_path / "m", blocks=2)
    config = AutoConfig.from_pretrained(tmp_path / "m")
    config.architectures = None
    assert plan(config, hf, TARGET["int4"]).problems == ()
    config.model_type = "nobody"
    (problem,) = plan(config, hf, TARGET["int4"]).problems[:1]
    assert "no builder for model type nobody" in str(problem)
