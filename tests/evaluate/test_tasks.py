"""Task files: the three forms, and every fault with its file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clp_edge.errors import UsageError
from clp_edge.evaluate.tasks import contents, read_task, read_tasks

GOOD: dict[str, Any] = {"context": "The sky is", "choices": ["blue", "tin", "loud"], "label": 0}
PARTIAL: dict[str, Any] = {
    "contexts": ["The cup did not fit the box because the cup", "... because the box"],
    "choices": ["was too large", "was too large"],
    "label": 0,
}
LAST: dict[str, Any] = {"context": "He opened the door and saw the", "target": "sea"}


def write(folder: Path, *lines: Any, name: str = "task.jsonl") -> Path:
    path = folder / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_the_three_forms(tmp_path: Path) -> None:
    task = read_task(write(tmp_path, GOOD, {**GOOD, "label": 2, "id": "x", "more": [1]}))
    assert (task.name, task.form.name, task.total) == ("task", "choices", 2)
    assert [item.label for item in task.items] == [0, 2]
    assert task.items[0].requests[1] == ("The sky is", " tin")
    partial = read_task(write(tmp_path, PARTIAL))
    assert partial.form.name == "contexts"
    assert partial.items[0].requests == tuple(
        (context, " was too large") for context in PARTIAL["contexts"]
    )
    last = read_task(write(tmp_path, LAST))
    assert last.items[0].requests == (("He opened the door and saw the", " sea"),)
    assert last.items[0].label is None


def test_blank_lines_a_byte_order_mark_and_odd_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    odd = json.dumps({**GOOD, "context": "a\u2028b\x85c"}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{json.dumps(GOOD)}\r\n\n{odd}".encode())
    task = read_task(path)
    assert [item.requests[0][0] for item in task.items] == ["The sky is", "a\u2028b\x85c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "no JSON"),
        ("[1, 2]", "no JSON object"),
        ("{}", "it has no keys, and needs one of: context, choices, label"),
        ({"context": "a", "label": 0}, "it has context, label, and needs one of"),
        ({**GOOD, "label": 3}, "`label` 3 is not one of the choices 0 to 2"),
        ({**GOOD, "label": -1}, "`label` -1 is not one of"),
        ({**GOOD, "label": "0"}, "`label` '0' is no whole number"),
        ({**GOOD, "label": True}, "`label` True is no whole number"),
        ({**GOOD, "choices": []}, "`choices` is no list of two or more"),
        ({**GOOD, "choices": ["one"]}, "`choices` is no list of two or more"),
        ({**GOOD, "choices": "blue"}, "`choices` is no list of two or more"),
        ({**GOOD, "choices": ["blue", " "]}, "choice 1 is empty"),
        ({**GOOD, "choices": ["blue", 7]}, "choice 1 is no text"),
        ({**GOOD, "context": None}, "`context` is no text"),
        (PARTIAL, "it is of the form 'contexts', the lines before of 'choices'"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path, GOOD, "", GOOD, line)
    with pytest.raises(UsageError) as caught:
        read_task(path, limit=1)  # lines that are not asked are checked as well
    assert f"{path}, line 4: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**PARTIAL, "contexts": ["one"]}, "`contexts` is no list of 2"),
        ({**PARTIAL, "contexts": ["one", 2]}, "context 1 is no text"),
        ({**LAST, "target": ""}, "`target` is empty"),
    ],
)
def test_a_fault_of_the_other_forms(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_task(write(tmp_path, line))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_task(tmp_path / "absent.jsonl")
    with pytest.raises(UsageError, match="cannot be read"):
        read_task(tmp_path)
    with pytest.raises(UsageError, match="has no items"):
        read_task(write(tmp_path, ""))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b'{"context": "\xff"}')
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_task(binary)
    with pytest.raises(UsageError, match="--task-items 0"):
        read_task(write(tmp_path, GOOD), limit=0)


def test_a_limit_is_spread_evenly(tmp_path: Path) -> None:
    path = write(tmp_path, *({**GOOD, "context": str(at)} for at in range(10)))
    task = read_task(path, limit=4)
    assert [item.requests[0][0] for item in task.items] == ["0", "2", "5", "7"]
    assert task.total == 10
    assert read_task(path, limit=99).items == read_task(path).items


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = write(tmp_path, GOOD), write(tmp_path / "other", GOOD)
    with pytest.raises(UsageError, match="two task files are named 'task'"):
        read_tasks((str(first), str(second)))
    taken = write(tmp_path, GOOD, name="sanity.jsonl")
    with pytest.raises(UsageError, match="a task is named 'sanity'"):
        read_tasks((str(taken),))


def test_contents_follow_the_bytes_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path, copy = write(tmp_path, GOOD), write(tmp_path / "other", GOOD)
    before = contents((str(path),))
    assert before == contents((str(copy),))
    write(tmp_path, LAST)
    assert contents((str(path),)) != before
