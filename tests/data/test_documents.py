"""Reading text: every format by value, and every bad file in one line."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from clp_edge.data import documents_from_texts, read_documents
from clp_edge.data.documents import cut_text
from clp_edge.errors import ClpEdgeError, MissingDependencyError, UsageError

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "text"


def jsonl(path: Path, *records) -> str:
    path.write_text("\n".join(json.dumps(r) for r in records) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": " as it is \n"}, " as it is \n"),
        ({"text": "this one", "instruction": "a", "output": "b"}, "this one"),
        ({"instruction": "a", "input": "b", "output": "c", "id": 3}, "a\nb\nc"),
        ({"instruction": "a", "input": "", "output": "c"}, "a\nc"),
        ({"instruction": "a", "output": "c"}, "a\nc"),
        ({"instruction": "a", "context": "b", "response": "c"}, "a\nb\nc"),
        ({"prompt": "p", "response": "r"}, "p\nr"),
        ({"prompt": "p", "completion": "r"}, "p\nr"),
        ({"question": "q", "answer": "a"}, "q\na"),
        ({"messages": [{"role": "u", "content": "x"}, {"role": "a", "content": "y"}]}, "x\ny"),
        ({"messages": [{"content": [{"type": "text", "text": "x"}, {"type": "image"}]}]}, "x"),
        ("a bare string", "a bare string"),
    ],
)
def test_records_become_text(tmp_path, record, text):
    assert read_documents(jsonl(tmp_path / "d.jsonl", record)).texts == (text,)
    (tmp_path / "d.json").write_text(json.dumps([record, {"text": "second"}]))
    assert read_documents(str(tmp_path / "d.json")).texts == (text, "second")


def test_empty_records_are_skipped_and_the_hash_is_the_files(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", {"text": ""}, {"text": "x"})
    documents = read_documents(path)
    assert documents.texts == ("x",)
    assert documents.origin == path
    assert documents.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_bad_records_are_named(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", {"text": "x"}, {"label": 1, "title": "t"})
    with pytest.raises(ClpEdgeError, match=r"line 2 has no known text field .found: label, title"):
        read_documents(path)
    path = jsonl(tmp_path / "d.jsonl", {"text": 5})
    with pytest.raises(ClpEdgeError, match="the field 'text' is int, not text"):
        read_documents(path)
    path = jsonl(tmp_path / "d.jsonl", [1])
    with pytest.raises(ClpEdgeError, match="is no object but list"):
        read_documents(path)
    (tmp_path / "d.jsonl").write_text('{"text": "x"}\n{"text": ')
    with pytest.raises(ClpEdgeError, match="line 2 is not JSON"):
        read_documents(path)
    path = jsonl(tmp_path / "d.jsonl", {"messages": [{"content": 3}]})
    with pytest.raises(ClpEdgeError, match="message without text content"):
        read_documents(path)


def test_text_is_cut_at_blank_lines_and_never_altered(tmp_path):
    paragraph = "word " * 160 + "\n"  # 801 characters
    text = (paragraph + " \n") * 20
    path = tmp_path / "wiki.txt"
    path.write_text(text)
    documents = read_documents(str(path))
    assert "".join(documents.texts) == text
    assert [len(t) for t in documents.texts] == [5 * 803] * 4
    assert all(t.startswith("word ") for t in documents.texts)
    assert read_documents(str(path), cut=False).texts == (text,)
    crlf = text.replace("\n", "\r\n")
    path.write_bytes(crlf.encode())
    documents = read_documents(str(path))
    assert "".join(documents.texts) == crlf
    assert len(documents.texts) == 4


@pytest.mark.parametrize("unit", ["x" * 50 + "\n", "x" * 50 + " ", "x"])
def test_text_without_blank_lines_is_cut_where_it_can_be(unit):
    text = unit * (20_000 // len(unit))
    pieces = cut_text(text)
    assert "".join(pieces) == text
    assert len(pieces) >= 2
    assert max(map(len, pieces)) <= 9_000
    if unit != "x":
        assert all(p.endswith(unit[-1]) for p in pieces)
    assert cut_text("short") == ["short"]
    assert cut_text("") == []


def test_folders_are_read_in_name_order(tmp_path):
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "sub").mkdir()
    jsonl(tmp_path / "sub" / "c.jsonl", {"text": "third"})
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert read_documents(str(tmp_path)).texts == ("first", "second", "third")


def test_bad_files_are_one_line(tmp_path):
    empty = tmp_path / "e.txt"
    empty.write_text(" \n\n")
    with pytest.raises(ClpEdgeError, match="is empty; give a file with text"):
        read_documents(str(empty))
    empty.write_bytes("caf\u00e9 au lait".encode("latin-1"))
    with pytest.raises(ClpEdgeError, match=r"not UTF-8 text .byte 3.; convert it to UTF-8"):
        read_documents(str(empty))
    empty.write_bytes(b"a\0b")
    with pytest.raises(ClpEdgeError, match="zero bytes"):
        read_documents(str(empty))
    blank = jsonl(tmp_path / "b.jsonl", {"text": ""})
    with pytest.raises(ClpEdgeError, match="holds no text"):
        read_documents(blank)
    with pytest.raises(ClpEdgeError, match="does not exist"):
        read_documents(str(tmp_path / "nothing.txt"))
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(UsageError, match=r"is no \.txt"):
        read_documents(str(tmp_path / "x.pdf"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ClpEdgeError, match=r"holds no \.txt"):
        read_documents(str(tmp_path / "folder"))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read_documents(str(tmp_path / "b.txt")).texts == ("hello",)


def test_datasets_need_their_package(monkeypatch):
    with pytest.raises(UsageError, match="names no dataset"):
        read_documents("hf:")
    if importlib.util.find_spec("datasets") is None:
        with pytest.raises(MissingDependencyError, match=r"pip install 'clp-edge\[eval\]'"):
            read_documents("hf:org/name:train")


def test_datasets_are_read_through_the_same_fields(monkeypatch):
    import sys
    import types

    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name == "missing":
            raise FileNotFoundError("Couldn't find it\non the hub")
        return [{"question": "q", "answer": "a"}, {"question": "", "answer": ""}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_documents("hf:org/name:test").texts == ("q\na",)
    read_documents("hf:org/name")
    assert asked == [("org/name", "test"), ("org/name", "train")]
    with pytest.raises(ClpEdgeError, match=r"missing cannot be loaded .Couldn't find it on"):
        read_documents("hf:missing")


def test_documents_in_memory_hash_like_the_file_they_would_be():
    documents = documents_from_texts(["a", "", "b"], "memory")
    assert documents.texts == ("a", "b")
    assert documents.sha256 == hashlib.sha256(b"a\n\nb").hexdigest()
    assert documents.characters == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="development data is not here")
def test_the_development_data_reads():
    wiki = SHARED / "wikitext2_valid_raw.txt"
    documents = read_documents(str(wiki))
    assert "".join(documents.texts) == wiki.read_text(encoding="utf-8")
    lengths = sorted(map(len, documents.texts))
    assert 3_500 <= lengths[len(lengths) // 2] <= 6_000
    assert len(read_documents(str(SHARED / "c4_tune.jsonl")).texts) == 755
    assert len(read_documents(str(SHARED / "dolly_3k.jsonl")).texts) == 2_996
