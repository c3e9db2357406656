"""Our model class against lm-eval's own for Hugging Face models: `make test-lm-eval`.

With CLP_EDGE_LM_EVAL_RESULT=FILE the figures of the demo model are left there as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from clp_edge.evaluate.harness_model import model_class
from clp_edge.evaluate.speaker import Speaker, of_model, of_session
from clp_edge.models.source import load_model, load_tokenizer, locate, save_model
from clp_edge.runtimes import open_artifact
from tests.conftest import REPOSITORY, WORDS

ITEMS = 50
TOLERANCE = 1e-3
"""nats, in float32: the sums run over other batches"""


def peer(folder: Path, window: int) -> Any:
    return HFLM(
        pretrained=str(folder), dtype="float32", device="cpu", batch_size=4, max_length=window
    )


def requests(kind: str, pairs: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, pair, at) for at, pair in enumerate(pairs)]


def sides(folder: Path, session: Any) -> dict[str, Speaker]:
    return {"model": of_model(load_model(locate(str(folder)))), "session": of_session(session)}


WINDOW = 64


@pytest.fixture(scope="module")
def tiny(tiny_llama_folder: Path) -> Any:
    """(lm-eval's model, ours by name) over one tiny folder, windows of 64 tokens."""
    tokenizer = load_tokenizer(locate(str(tiny_llama_folder)))
    with open_artifact(tiny_llama_folder, context=WINDOW + 1) as session:
        ours = {
            name: model_class()(speaker, tokenizer, window=WINDOW)
            for name, speaker in sides(tiny_llama_folder, session).items()
        }
        yield peer(tiny_llama_folder, WINDOW), ours


def words(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS.split(), k=count))


def test_log_likelihoods_of_odd_requests(tiny: Any) -> None:
    theirs, ours = tiny
    same = words(0, 9)
    pairs = [
        (same, " the river"),  # three under one context, not side by side
        ("", "an empty context"),
        (same, " a"),
        ("white space belongs to what follows  ", "here"),
        (same, " the river and the stone"),
        (words(1, 120), " cut from the left"),
        ("<|im_start|>a BOS of its own", " yes"),
    ]
    expected = theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    for name, model in ours.items():
        found = model.loglikelihood(requests("loglikelihood", pairs))
        assert [top for _, top in found] == [top for _, top in expected], name
        torch.testing.assert_close(
            torch.tensor([total for total, _ in found]),
            torch.tensor([total for total, _ in expected]),
            atol=TOLERANCE,
            rtol=0,
        )


def test_rolling_windows_and_pieces(tiny: Any) -> None:
    theirs, ours = tiny
    texts = [(words(2, 3),), (words(3, 200),), (words(4, 70),)]
    asked = requests("loglikelihood_rolling", texts)
    expected = torch.tensor(theirs.loglikelihood_rolling(asked, disable_tqdm=True))
    for model in ours.values():
        found = torch.tensor(model.loglikelihood_rolling(asked))
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
        whole, model.piece = model.piece, 7  # a text whose logits would not fit is scored in parts
        try:
            pieces = torch.tensor(model.loglikelihood_rolling(asked))
        finally:
            model.piece = whole
        torch.testing.assert_close(pieces, expected, atol=TOLERANCE, rtol=0)


def test_greedy_text_until_a_stop(tiny: Any) -> None:
    theirs, ours = tiny
    free = theirs.generate_until(
        requests("generate_until", [(words(5, 8), {"until": [], "max_gen_toks": 40})]),
        disable_tqdm=True,
    )[0]
    assert len(free) > 20
    stop = free[12:15]  # in the middle of what it writes
    settings: list[dict[str, Any]] = [
        {"until": [stop], "max_gen_toks": 40, "do_sample": False},
        {"until": "not written", "max_gen_toks": 5},
        {"until": [], "max_gen_toks": 40, "temperature": 0.0},
    ]
    pairs = [(words(5, 8), one) for one in settings] + [(words(6, 90), settings[1])]
    asked = requests("generate_until", pairs)
    expected = theirs.generate_until(asked, disable_tqdm=True)
    assert expected[0] == free[:12].split(stop)[0]
    for name, model in ours.items():
        assert model.generate_until(asked) == expected, name


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = locate(None)
    folder = tmp_path_factory.mktemp("demo") / "dense"
    save_model(
        load_model(source), load_tokenizer(source), folder, dtype=torch.float32, source=source
    )
    return folder


def questions() -> tuple[str, list[dict[str, Any]]]:
    """(where they are from, items): the development data, or sums where it is absent."""
    file = REPOSITORY.parent / "shared" / "data" / "tasks" / "arc_easy_val.jsonl"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        return file.name, [json.loads(line) for line in lines[:: len(lines) // ITEMS]][:ITEMS]
    draw = random.Random(0)
    items = []
    for _ in range(ITEMS):
        one, other = draw.randrange(2, 50), draw.randrange(2, 50)
        choices = [str(one + other + off) for off in (0, 1, 10)]
        items.append({"context": f"Question: {one} + {other}?\nAnswer:", "choices": choices})
    return "generated sums", items


@pytest.mark.demo
def test_the_demo_model_agrees_with_lm_eval(demo_folder: Path) -> None:
    origin, items = questions()
    pairs = [(item["context"], f" {choice}") for item in items for choice in item["choices"]]
    texts = [
        (item["context"], {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False})
        for item in items
    ]
    window = 1024
    theirs = peer(demo_folder, window)
    begin = time.perf_counter()
    expected = theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    their_s = time.perf_counter() - begin
    written = theirs.generate_until(requests("generate_until", texts), disable_tqdm=True)
    del theirs
    tokenizer = load_tokenizer(locate(str(demo_folder)))
    with open_artifact(demo_folder, context=window + 1) as session:
        ours = model_class()(of_session(session), tokenizer, window=window)
        begin = time.perf_counter()
        found = ours.loglikelihood(requests("loglikelihood", pairs))
        our_s = time.perf_counter() - begin
        ours_written = ours.generate_until(requests("generate_until", texts))
    gaps = [abs(one - other) for (one, _), (other, _) in zip(found, expected, strict=True)]
    texts_equal = sum(one == other for one, other in zip(ours_written, written, strict=True))
    greedy_equal = sum(one == other for (_, one), (_, other) in zip(found, expected, strict=True))
    packages = ("lm-eval", "datasets", "torch", "transformers", "tokenizers", "numpy")
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "make test-lm-eval",
        "model": "demo model, float32 torch in a child process",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "questions": origin,
        "items": len(items),
        "log_likelihoods": len(gaps),
        "largest_difference_nats": max(gaps),
        "mean_difference_nats": sum(gaps) / len(gaps),
        "greedy_flags_equal": greedy_equal,
        "greedy_texts": len(texts),
        "greedy_texts_equal": texts_equal,
        "seconds_log_likelihoods": {"HFLM, batch 4": their_s, "clp-edge": our_s},
    }
    if name := os.environ.get("CLP_EDGE_LM_EVAL_RESULT"):
        Path(name).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    assert len(items) == ITEMS
    assert max(gaps) <= TOLERANCE
    assert greedy_equal == len(gaps)
    assert texts_equal == len(texts)
