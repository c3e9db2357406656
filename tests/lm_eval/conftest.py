"""Local suites: lm-eval's own task format over a JSONL, so that no hub is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
doc_to_text: context
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 3.0
"""

TEXTS = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: generate_until
validation_split: validation
doc_to_text: context
doc_to_target: target
generation_kwargs:
  until: ["\\n\\n", "Question:"]
  max_gen_toks: 40
  {more}
metric_list:
  - metric: exact_match
metadata:
  version: 1.0
"""

ROLLING = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: loglikelihood_rolling
validation_split: validation
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
metadata:
  version: 2.0
"""

Write = Callable[..., str]


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """suite(name, form, items, more="") -> the path of a task's YAML over those items."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name: str, form: str, items: list[dict[str, Any]], more: str = "") -> str:
        rows = tmp_path / f"{name}.jsonl"
        rows.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        path = tmp_path / f"{name}.yaml"
        text = form.format(name=name, file=rows, more=more)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write
