from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from clp_edge.models.licence import Licence, licence_of, licence_of_card
from clp_edge.models.source import Source

APACHE = "\n                 Apache License\n           Version 2.0, January 2004\n"


def folder(path: Path, **files: str) -> Source:
    for name, text in files.items():
        (path / name.replace("_md", ".md")).write_text(text, encoding="utf-8")
    return Source("m", "folder", "m", path)


@pytest.mark.parametrize(
    ("front", "name", "link"),
    [
        ("license: apache-2.0", "apache-2.0", None),
        ('license: "mit"  # as the code', "mit", None),
        ("license:\n- gemma\ntags:\n- x", "gemma", None),
        ("license: other\nlicense_name: llama3\nlicense_link: LICENSE", "llama3", "LICENSE"),
        ("license: other", "other", None),
    ],
)
def test_a_card_states_it_in_its_front_matter(front, name, link):
    text = f"---\nlanguage: en\n{front}\n---\n\nlicense: not this one\n"
    assert licence_of_card(text) == Licence(name, link, "README.md")


@pytest.mark.parametrize(
    "text", ["", "license: mit", "---\ntags:\n- license\n---\nlicense: mit", "---\nlicense:\n---\n"]
)
def test_what_is_no_statement_is_none(text):
    assert licence_of_card(text) is None


def test_a_folder_states_it_in_the_card_before_the_file(tmp_path):
    assert licence_of(folder(tmp_path)) is None
    source = folder(tmp_path, LICENSE=APACHE)
    assert licence_of(source) == Licence("Apache License", "LICENSE", "LICENSE")
    source = folder(tmp_path, README_md="---\nlicense: mit\n---\n")
    assert licence_of(source) == Licence("mit", None, "README.md")
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")  # no text: the file counts
    assert licence_of(source) == Licence("Apache License", "LICENSE", "LICENSE")


def test_a_gguf_file_states_it_in_a_key(tmp_path):
    for name, licence in (("with", "apache-2.0"), ("without", "")):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        if licence:
            writer.add_string("general.license", licence)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    found = licence_of(Source("m", "gguf", "m", tmp_path / "with.gguf"))
    assert found == Licence("apache-2.0", None, "general.license")
    assert licence_of(Source("m", "gguf", "m", tmp_path / "without.gguf")) is None
