"""Calibration text that repeats itself: a copy of what is fitted on must not be held back.

Where a document stands twice, one copy may fall to the fit part and one to a held-back part; the
choice of the ridge and of the state that is kept would then be judged on what was learnt by heart.
So exact copies are dropped before the text is split, and a document that shares text with another,
by the rule of the guard (`guard.py`), is fitted on and never held back.

>>> distinct(["one  text", "another", "one text"])
(('one  text', 'another'), 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clp_edge.errors import ClpEdgeError


@dataclass(frozen=True)
class Repeats:
    """How much calibration text repeats itself."""

    copies: int = 0
    """exact copies of earlier documents, dropped from the whole"""
    near: int = 0
    """documents that share text with others, fitted on and not held back"""
    documents: int = 0
    """all of them, without the copies"""

    def __str__(self) -> str:
        """A sentence for the user; empty where the text does not repeat itself."""
        said = []
        if self.copies:
            words = "copy of another was" if self.copies == 1 else "copies of others were"
            said.append(f"{self.copies:,} exact {words} dropped")
        if self.near:
            said.append(
                f"{self.near:,} of {self.documents:,} documents share long passages with others "
                "and are not held back"
            )
        return f"the calibration text repeats itself: {'; '.join(said)}" if said else ""

    def refuse(self, origin: str) -> None:
        """Where too little is left to hold back: a ClpEdgeError."""
        raise ClpEdgeError(
            f"{origin} repeats itself: {self.near:,} of {self.documents:,} documents share long "
            "passages with others, and the rest is too little to hold back and judge by",
            "give text that repeats itself less (take out what nearly all records consist of)",
        )


def distinct(texts: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """(each text once, in order; how many copies went). White space makes no other text."""
    seen: dict[str, str] = {}
    for text in texts:
        seen.setdefault(" ".join(text.split()), text)
    return tuple(seen.values()), len(texts) - len(seen)
