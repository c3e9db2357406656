"""How stages say how far they are: a plain callback, so that only `ui.py` ever draws.

>>> silent(3, 10, "window 3 of 10")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called with the work done, the whole work (same unit) and a short note."""

    def __call__(self, done: float, total: float, note: str = "") -> None: ...


def silent(done: float, total: float, note: str = "") -> None:
    """Say nothing."""


class Observer(Protocol):
    """What a pipeline tells about itself; `ui.py` draws it, `Quiet` does not."""

    def stage(self, number: int, total: int, title: str) -> AbstractContextManager[Progress]: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


class Quiet:
    """An observer that says nothing."""

    @contextmanager
    def stage(self, number: int, total: int, title: str) -> Iterator[Progress]:
        yield silent

    def note(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""
