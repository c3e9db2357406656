"""Openings of ordinary texts, from which the model writes its calibration text on.

A model that begins with a random token writes text that is less like what it is used for: the demo
model healed on text behind openings keeps more (docs/LOG.md). They are our own, in the manner of
news, manuals, shops, letters, fiction, science, forums, contracts and programs, a few of them not
in English; what follows them is the model's.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def openings() -> tuple[str, ...]:
    """The openings, a few words each."""
    text = files("clp_edge.data").joinpath("openings.txt").read_text(encoding="utf-8")
    return tuple(line.replace("\\n", "\n") for line in text.splitlines() if line.strip())
