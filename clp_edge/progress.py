"""How stages say how far they are: a plain callback, so that only `ui.py` ever draws.

>>> silent(3, 10, "window 3 of 10")
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the work done, the whole work (same unit) and a short note in the present tense."""

    def __call__(self, done: float, total: float, note: str = "") -> None: ...


def silent(done: float, total: float, note: str = "") -> None:
    """Say nothing."""
