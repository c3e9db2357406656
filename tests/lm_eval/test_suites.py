"""Suites by name: lm-eval's own definitions, judged by it, and what is refused before any work."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.models.huggingface import HFLM
from typer.testing import CliRunner

from clp_edge.cli import app
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.evaluate.harness import Suites
from clp_edge.evaluate.speaker import of_model
from clp_edge.models.source import load_model, load_tokenizer, locate
from tests.conftest import WORDS, write_words
from tests.lm_eval.conftest import CHOICES, ROLLING, TEXTS, Write


def phrases(seed: int, count: int, words: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS.split(), k=words)) for _ in range(count)]


def choice_items(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"context": context, "choices": phrases(at, 3, 3), "label": at % 3}
        for at, context in enumerate(phrases(99, count, 8))
    ]


def test_every_kind_of_task_is_judged_as_lm_eval_judges_it(
    suite: Write, tiny_llama_folder: Path
) -> None:
    texts = [{"context": one, "target": "x"} for one in phrases(1, 3, 6)]
    documents = [{"text": one} for one in phrases(2, 3, 60)]
    paths = [
        suite("tiny_choices", CHOICES, choice_items()),
        suite("tiny_texts", TEXTS, texts, "do_sample: false"),
        suite("tiny_rolling", ROLLING, documents),
    ]
    source = locate(str(tiny_llama_folder))
    peer = HFLM(pretrained=str(tiny_llama_folder), dtype="float32", device="cpu", max_length=256)
    expected = lm_eval.simple_evaluate(model=peer, tasks=paths, log_samples=False)
    suites = Suites(paths)
    found = suites.ask(of_model(load_model(source)), load_tokenizer(source), window=256)
    assert set(found) == {"tiny_choices", "tiny_texts", "tiny_rolling"}
    for name, record in found.items():
        values = expected["results"][name]
        assert record.metrics.keys() == {
            key for key in values if "," in key and "_stderr," not in key
        }
        for key, metric in record.metrics.items():
            assert metric.value == pytest.approx(values[key], rel=1e-4)
            error = values[key.replace(",", "_stderr,")]
            if key.startswith("acc"):  # no bootstrap, so no chance in it
                assert metric.se == pytest.approx(error, rel=1e-4)
            assert (metric.se is None) == isinstance(error, str)
    assert found["tiny_choices"].version == "3.0"
    assert (found["tiny_choices"].items, found["tiny_choices"].total) == (12, 12)
    assert found["tiny_choices"].metrics["acc,none"].higher_is_better is True


def test_eval_asks_the_dense_model_and_the_file(
    suite: Write, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    path = suite("tiny_choices", CHOICES, choice_items())
    words = write_words(tmp_path / "held.txt", seed=5)
    folder = str(tiny_llama_folder)
    given = ["eval", folder, "--dense", folder, "--eval-text", str(words), "--eval-tokens", "512"]
    said = CliRunner().invoke(app, [*given, "--suite", path, "--limit", "5", "--json"])
    assert said.exit_code == 0, said.output
    answers = json.loads(said.stdout)["suites"]["answers"]
    assert list(answers) == [Path(folder).name, folder]
    dense, file = (one["tiny_choices"] for one in answers.values())
    assert dense["items"] == 5
    assert dense["total"] == 12
    # float32 torch on both sides, once in this process and once in a child
    assert dense == file


def test_a_missing_data_set_is_named_with_the_line_that_fetches_it(suite: Write) -> None:
    here = suite("tiny_choices", CHOICES, choice_items())
    with pytest.raises(ClpEdgeError) as caught:
        Suites([here, "arc_easy", "hellaswag"])
    assert "allenai/ai2_arc" in caught.value.cause
    assert "hellaswag" in caught.value.cause
    assert "TaskManager().load(['arc_easy', 'hellaswag'])" in caught.value.cure


def test_a_suite_that_samples_is_refused_before_any_model(suite: Write) -> None:
    path = suite("hot", TEXTS, [{"context": "a", "target": "b"}], "temperature: 0.7")
    with pytest.raises(UsageError, match="hot: the suite samples"):
        Suites([path])


def test_a_task_named_twice_is_refused(suite: Write, tmp_path: Path) -> None:
    path = Path(suite("tiny_choices", CHOICES, choice_items()))
    again = tmp_path / "again.yaml"
    again.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UsageError, match="tiny_choices twice"):
        Suites([str(path), str(again)])


def test_a_broken_definition_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("task: broken\noutput_type: no_such_type\n", encoding="utf-8")
    with pytest.raises(ClpEdgeError, match="broken"):
        Suites([str(path)])


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        Suites(["arc_easyy"])
    assert "arc_easy" in caught.value.cure
