"""Openings of ordinary texts, from which the model writes its calibration text on.

A model that begins with a random token writes text that is less like what it is used for; behind
openings it writes better text to heal on (docs/LOG.md). They are our own, in the manner of news,
manuals, shops, letters, fiction, science, forums, contracts and programs, nearly all in English.
Many have places for names, years, numbers and things, so that few openings are alike; what follows
them is the model's.

`openings.txt` has one on a line, with `\\n` for a line break, and before them the words for the
places, such as `{city} = London, Leeds`. Years and numbers need no words.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import torch

PLACE = re.compile(r"\{(\w+)\}")
NUMBERS = {"day": (1, 28), "n": (2, 98), "year": (1780, 2020), "big": (1_000, 990_000)}


@cache
def templates() -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The openings with their places, and the words for each place."""
    text = files("clp_edge.data").joinpath("openings.txt").read_text(encoding="utf-8")
    lines, words = [], {}
    for line in text.splitlines():
        name, equals, told = line.partition("} = ")
        if equals and line.startswith("{"):
            words[name[1:]] = tuple(told.split(", "))
        elif line:
            lines.append(line.replace("\\n", "\n"))
    return tuple(lines), words


def openings(count: int, generator: torch.Generator) -> list[str]:
    """So many, each in turn in a random order, its places filled at random."""
    lines, words = templates()
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(len(lines), generator=generator).tolist()

    def fill(place: re.Match[str]) -> str:
        name = place[1]
        if name in NUMBERS:
            low, high = NUMBERS[name]
            drawn = int(torch.randint(low, high + 1, (1,), generator=generator))
            return f"{drawn:,}" if name == "big" else str(drawn)
        some = words[name]
        return some[int(torch.randint(len(some), (1,), generator=generator))]

    return [PLACE.sub(fill, lines[index]) for index in order[:count]]
