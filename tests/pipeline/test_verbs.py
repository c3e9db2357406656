"""The verbs one after the other do what compress does; each refuses bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from clp_edge.cli import VERBS, app
from clp_edge.models.anatomy import dissect
from clp_edge.pipeline import provenance
from tests.conftest import save_tiny_llama, write_words
from tests.models.tiny_gguf import byte_level_tokenizer, write_gguf
from tests.tiny import tiny_model

TEXT = ("--preset", "quick", "--calibration", "words.txt")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    save_tiny_llama(folder / "tiny", blocks=8)
    write_words(folder / "words.txt", seed=0, paragraphs=500)
    write_words(folder / "other.txt", seed=1, paragraphs=200)
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def call(*arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    done = CliRunner().invoke(app, list(arguments))
    assert "Traceback" not in done.output
    return done.exit_code, done.stdout, done.stderr


def works(*arguments: str) -> str:
    code, out, err = call(*arguments)
    assert code == 0, err
    return out


@pytest.mark.llama
def test_the_steps_give_the_same_weights_and_the_same_file_as_compress(place: Path) -> None:
    cut = ("--drop-blocks", "2")
    works(
        "compress", "tiny", *cut, "--heal", "refit", *TEXT, "--eval-text", "other.txt",
        "--target", "gguf-q4", "--no-bench", "--out", "whole",
    )  # fmt: skip
    works("search", "tiny", *cut, *TEXT, "--out", "found")
    works("prune", "--from", "found", "--out", "cut")
    works("heal", "cut", "--heal", "refit", *TEXT, "--out", "healed")
    works("export", "healed", "--target", "gguf-q4", "--out", "files")
    for name in ("model.safetensors", "config.json", provenance.FILE):
        steps, whole = (place / out / "hf" / name for out in ("healed", "whole"))
        assert steps.read_bytes() == whole.read_bytes(), name
    name = "tiny-clp25.Q4_K_M.gguf"  # an importance matrix, from the text it was healed with
    steps, whole = (place / out / "gguf" / name for out in ("files", "whole"))
    for made in (steps, whole):  # beside the healed model's file, for Ollama
        assert made.with_suffix(".Modelfile").read_text().startswith(f"FROM ./{name}\n")
    assert len(list((place / "whole").rglob("*.Modelfile"))) == 1
    assert steps.read_bytes() == whole.read_bytes()
    # each verb resumes: the same command again computes nothing
    code, out, err = call("heal", "cut", "--heal", "refit", *TEXT, "--out", "healed", "--json")
    assert code == 0
    assert "[1/4]" not in err
    document = json.loads(out)
    assert document["provenance"]["heal_method"] == "refit"
    assert document["heal"]["kl_refit"] is not None


@pytest.mark.llama
def test_the_steps_from_a_quantized_file_give_the_same_weights_as_compress(place: Path) -> None:
    """`heal` did not know the demo model's own cut, which is stored in float16."""
    model = tiny_model("llama", blocks=6, tie_word_embeddings=True)
    kind = GGMLQuantizationType.Q4_1
    write_gguf(place / "small.Q4_1.gguf", model, byte_level_tokenizer(), quantize=kind)
    cut = ("small.Q4_1.gguf", "--blocks", "3-4")
    works(
        "compress", *cut, "--heal", "refit", *TEXT, "--eval-text", "other.txt",
        "--target", "gguf-f16", "--no-bench", "--out", "small-whole",
    )  # fmt: skip
    works("prune", *cut, "--out", "small-cut")
    works("heal", "small-cut", "--heal", "refit", *TEXT, "--out", "small-healed")
    name = "model.safetensors"
    steps, whole = (place / out / "hf" / name for out in ("small-healed", "small-whole"))
    assert steps.read_bytes() == whole.read_bytes()


def test_prune_by_hand_is_plain_transformers(place: Path) -> None:
    out = works("prune", "tiny", "--blocks", "3-4", "--out", "by-hand", "--json")
    assert json.loads(out)["provenance"]["segments"] == [{"first": 3, "last": 4}]
    model = AutoModelForCausalLM.from_pretrained(place / "by-hand" / "hf", dtype=torch.float32)
    dense = AutoModelForCausalLM.from_pretrained(place / "tiny", dtype=torch.float32)
    kept = [block for i, block in enumerate(dissect(dense).blocks) if i not in (3, 4)]
    for ours, theirs in zip(dissect(model).blocks, kept, strict=True):
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value)


def hand_cut(place: Path, name: str, gone: set[int]) -> Path:
    """As somebody does it with plain transformers: blocks deleted, the config changed."""
    model = AutoModelForCausalLM.from_pretrained(place / "tiny", dtype=torch.float32)
    kept = [block for i, block in enumerate(model.model.layers) if i not in gone]
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    model.save_pretrained(place / name)
    AutoTokenizer.from_pretrained(place / "tiny").save_pretrained(place / name)
    return place / name


def test_a_cut_made_by_hand_is_found_and_healed(place: Path) -> None:
    hand_cut(place, "theirs", {2, 3, 4})
    out = works("heal", "theirs", "--teacher", "tiny", "--heal", "refit", *TEXT, "--json",
                "--out", "theirs-healed")  # fmt: skip
    document = json.loads(out)
    assert document["search"]["segment"] == {"first": 2, "last": 4}
    assert document["heal"]["kl_refit"] < document["heal"]["kl_cut"]
    model = AutoModelForCausalLM.from_pretrained(place / "theirs-healed" / "hf")
    assert len(dissect(model)) == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("heal", "theirs-2", "--out", "x"), "--teacher"),
        (("heal", "theirs-2", "--teacher", "tiny", "--blocks", "4-5"), "what it lacks is 1-2"),
        (("heal", "tiny", "--teacher", "tiny"), "nothing was cut"),
        (("heal", "scattered", "--teacher", "tiny"), "no run of 2 blocks"),
        (("heal", "theirs-2", "--teacher", "foreign"), "vocab_size"),
        (("heal", "nowhere", "--teacher", "tiny"), "nowhere"),
        (("prune", "tiny"), "--blocks FIRST-LAST, or --from"),
        (("prune", "tiny", "--blocks", "2-3", "--from", "saved"), "exclude each other"),
        (("prune", "tiny", "--blocks", "5-9"), "blocks 0-7"),
        (("prune", "tiny", "--from", "words.txt"), "no search.json"),
        (("prune", "foreign", "--from", "saved"), "another model"),
        (("export", "tiny"), "no --target"),
        (("export", "nowhere", "--target", "gguf-q4"), "nowhere"),
        (("export", "tiny", "--target", "gguf-q9"), "gguf-q9"),
        (("bench", "nowhere.gguf"), "does not exist"),
        (("eval", "tiny", "--eval-text", "other.txt"), "--dense"),
        (("eval", "tiny", "--dense", "tiny"), "--eval-text"),
        (("eval", "nowhere", "--dense", "tiny", "--eval-text", "other.txt"), "does not exist"),
        (("search", "tiny", "--method", "gat"), "gate"),
    ],
)
def test_bad_input_is_one_line(place: Path, arguments: tuple[str, ...], says: str) -> None:
    if not (place / "theirs-2").exists():
        hand_cut(place, "theirs-2", {1, 2})
        hand_cut(place, "scattered", {1, 5})
        foreign = AutoModelForCausalLM.from_pretrained(place / "tiny")
        foreign.resize_token_embeddings(foreign.config.vocab_size + 64)
        foreign.save_pretrained(place / "foreign")
        AutoTokenizer.from_pretrained(place / "tiny").save_pretrained(place / "foreign")
        works("search", "tiny", "--drop-blocks", "2", *TEXT, "--out", "saved")
    before = sorted(place.rglob("*"))
    code, out, err = call(*arguments)
    assert code in (1, 2), err
    assert says in err
    assert not out
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert sorted(place.rglob("*")) == before


def test_equal_blocks_are_no_guess(place: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "tiny", dtype=torch.float32)
    model.model.layers[3].load_state_dict(model.model.layers[2].state_dict())
    model.save_pretrained(place / "twins")
    AutoTokenizer.from_pretrained(place / "tiny").save_pretrained(place / "twins")
    kept = [block for i, block in enumerate(model.model.layers) if i != 2]
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = 7
    model.save_pretrained(place / "one-twin")
    AutoTokenizer.from_pretrained(place / "tiny").save_pretrained(place / "one-twin")
    code, _, err = call("heal", "one-twin", "--teacher", "twins", *TEXT, "--out", "twin-out")
    assert code == 2
    assert "several runs of blocks fit" in err
    assert "2-2, 3-3" in err


def test_eval_measures_folders_beside_the_dense_model(place: Path) -> None:
    works("prune", "tiny", "--blocks", "3-4", "--out", "for-eval")
    out = works("eval", "for-eval", "--eval-text", "other.txt", "--eval-tokens", "1024", "--json")
    found = json.loads(out)
    assert list(found["quality"]) == ["tiny", "for-eval"]
    assert found["quality"]["tiny"]["kl"] == 0.0
    assert found["quality"]["for-eval"]["kl"] > 0.0
    assert found["evaluation"]["tokens"] == 1024
    table = works("eval", "for-eval", "--eval-text", "other.txt", "--eval-tokens", "1024")
    assert "for-eval" in table


SHORT = ("--eval-text", "other.txt", "--eval-tokens", "1024")


def questions(place: Path) -> str:
    """Of words of the tiny model's own text, so that each choice has a score."""
    words = (place / "words.txt").read_text().split()[:60]
    lines = [
        {"context": " ".join(words[at : at + 4]), "choices": words[at + 4 : at + 6], "label": 0}
        for at in range(12)
    ]
    (place / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return "asked.jsonl"


def test_eval_asks_questions_and_prompts_and_holds_a_gate(place: Path) -> None:
    works("prune", "tiny", "--blocks", "3-4", "--out", "for-gate")
    asked = ("eval", "for-gate", *SHORT, "--tasks", questions(place), "--task-items", "8")
    found = json.loads(works(*asked, "--sanity", "--max-kl", "50", "--json"))
    for side in ("tiny", "for-gate"):
        tasks = found["quality"][side]["tasks"]
        assert tasks["asked"]["items"] == 8
        assert tasks["sanity"]["total"] == 24
    assert found["quality_gate"]["misses"] == {"for-gate": []}
    code, out, err = call(*asked, "--max-kl", "0.0000001", "--json")
    assert code == 4
    assert "KL to the dense model is" in err
    assert json.loads(out)["quality_gate"]["misses"]["for-gate"], "the figures are printed first"
    code, out, err = call(*asked, "--max-ppl-ratio", "0.5")
    assert code == 4
    assert "asked: 8 items" in out
    assert "guessing" in out


@pytest.mark.llama
def test_eval_asks_a_gguf_file_the_same(place: Path) -> None:
    works("prune", "tiny", "--blocks", "3-4", "--out", "for-file")
    works("export", "for-file", "--target", "gguf-f16", "--out", "f16")
    file = next((place / "f16").rglob("*.gguf"))
    asked = ("--dense", "tiny", *SHORT, "--tasks", questions(place), "--sanity", "--json")
    asked += ("--gpu-layers", "0")
    code, out, err = call("eval", str(file), "for-file", *asked, "--max-kl", "0.0000001")
    assert code == 4, err
    assert json.loads(out)["computed_on"] == {str(file): "llama.cpp, CPU: --gpu-layers 0"}
    proof = json.loads((place / "f16" / "export.json").read_text())["artifacts"][0]["verify"]
    assert proof["runtime"].startswith("llama-cpp-python")
    assert proof["backend_reason"]
    quality = json.loads(out)["quality"]
    gguf, folder = quality[str(file)], quality["for-file"]
    assert (
        gguf["tasks"]["asked"]["metrics"]["acc"]["hits"]
        == (folder["tasks"]["asked"]["metrics"]["acc"]["hits"])
    )
    assert gguf["kl"] == pytest.approx(folder["kl"], rel=0.02)
    assert str(file) in err


def test_eval_asks_an_onnx_folder_the_same(place: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    works("prune", "tiny", "--blocks", "3-4", "--out", "for-onnx")
    works("export", "for-onnx", "--target", "onnx-fp32", "--out", "fp32")
    folder = next((place / "fp32").rglob("genai_config.json")).parent
    asked = ("--dense", "tiny", *SHORT, "--tasks", questions(place), "--sanity", "--json")
    code, out, err = call("eval", str(folder), "for-onnx", *asked, "--max-ppl-ratio", "0.1")
    assert code == 4, err
    quality = json.loads(out)["quality"]
    onnx, torch_side = quality[str(folder)], quality["for-onnx"]
    for task, key in (("asked", "metrics"), ("sanity", "passed")):
        assert onnx["tasks"][task][key] == torch_side["tasks"][task][key]
    assert onnx["kl"] == pytest.approx(torch_side["kl"], rel=1e-3)
    assert str(folder) in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--min-retention", "0.9"), "--tasks"),
        (("--max-kl", "-1"), "above 0"),
        (("--tasks", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--task-items", "0"), "asks nothing"),
    ],
)
def test_eval_refuses_a_gate_or_a_task_that_is_none(options: tuple[str, ...], said: str) -> None:
    code, _, err = call("eval", "tiny", "--dense", "tiny", *SHORT, *options)
    assert code == 2, err
    assert said in err
    assert err.count("error: ") == 1


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_an_example_and_json(verb: str) -> None:
    done = CliRunner().invoke(app, [verb, "--help"])
    assert done.exit_code == 0
    assert "--json" in done.stdout
    if verb not in ("targets", "doctor"):
        assert f"clp-edge {verb}" in " ".join(done.stdout.split())
