"""Under which licence a source says that it stands: looked up in its own files, never guessed.

A Hugging Face folder says it in the front matter of its README.md (`license:`, and for "other" a
`license_name` and a `license_link`) or in a licence file; a GGUF file in `general.license*`.

>>> licence_of_card("---\\nlicense: apache-2.0\\n---\\n# A model")
Licence(name='apache-2.0', link=None, stated_in='README.md')
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clp_edge.gguf_file.header import read_header
from clp_edge.models.source import Source

FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING")
TITLE_CHARACTERS = 80


@dataclass(frozen=True)
class Licence:
    """What a source states."""

    name: str
    """As it is written there: an id such as "apache-2.0", or the first line of a licence file."""
    link: str | None
    stated_in: str
    """The file's name, or the key of a GGUF file."""


def licence_of(source: Source) -> Licence | None:
    """What the source's own files state; None where they state nothing. Never raises for that."""
    if source.is_gguf:
        header = read_header(source.path)
        for key in ("general.license", "general.license.name"):
            if name := str(header.value(key, "") or "").strip():
                return Licence(name, header.value("general.license.link"), key)
        return None
    card = _text(source.path / "README.md")
    if found := licence_of_card(card):
        return found
    for name in FILES:
        lines = (" ".join(line.split()) for line in _text(source.path / name).splitlines())
        if title := next((line.strip("# ") for line in lines if line.strip("# ")), ""):
            return Licence(title[:TITLE_CHARACTERS], name, name)
    return None


def licence_of_card(text: str) -> Licence | None:
    """What the front matter of a model card (README.md) states."""
    front = re.match(r"\s*---\r?\n(.*?)^---\s*$", text, re.DOTALL | re.MULTILINE)
    if front is None:
        return None
    name = _field(front[1], "license")
    if name in (None, "other"):
        name = _field(front[1], "license_name") or name
    return Licence(name, _field(front[1], "license_link"), "README.md") if name else None


def _field(front: str, name: str) -> str | None:
    """A field of one value, or of a list whose first entry counts; comments are left out."""
    found = re.search(rf"^{name}:[ \t]*(?:\r?\n[ \t]*-[ \t]*)?([^\r\n]+)", front, re.MULTILINE)
    value = re.sub(r"\s+#.*$", "", found[1]).strip(" \t'\"[]") if found else ""
    return value or None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
