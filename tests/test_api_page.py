"""The examples of docs/API.md run, one after the other, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, save_tiny_llama, write_words

PAGE = (REPOSITORY / "docs" / "API.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.llama
def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_llama(tmp_path / "my-model", blocks=8)
    write_words(tmp_path / "words.txt", seed=0, paragraphs=500)
    write_words(tmp_path / "other.txt", seed=1, paragraphs=200)
    names: dict[str, object] = {}
    for example in EXAMPLES:
        exec(compile(example, "docs/API.md", "exec"), names)
    said = capsys.readouterr().out
    assert "whole" not in said  # nothing but what the page prints
    assert "Span(first=" in said
    assert (tmp_path / "whole" / "report.json").is_file()
    whole = next((tmp_path / "whole" / "gguf").glob("*.gguf"))
    assert Path(str(names["path"])).read_bytes() == whole.read_bytes()
    judged = names["judged"]
    assert len(judged.quality) == 2  # type: ignore[attr-defined]
