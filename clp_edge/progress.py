"""How stages say how far they are: a plain callback, so that only `ui.py` ever draws.

>>> silent(3, 10, "window 3 of 10")
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
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


class Interruptible:
    """An observer in front of another, through which a Ctrl-C cannot be lost.

    Python drops a KeyboardInterrupt that is raised where nobody can catch it (a finalizer, a
    callback from C), and the run would go on. So it is remembered, and raised again at the next
    step that the run reports.

    >>> with Interruptible(Quiet()) as observer, observer.stage(1, 1, "search") as progress:
    ...     progress(1, 1)
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._seen = False

    def __enter__(self) -> Interruptible:
        # As Python does at its start: where SIGINT is ignored, it stays so.
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt

    def _check(self) -> None:
        if self._seen:
            raise KeyboardInterrupt

    @contextmanager
    def stage(self, number: int, total: int, title: str) -> Iterator[Progress]:
        self._check()
        with self._observer.stage(number, total, title) as inner:

            def step(done: float, total: float, note: str = "") -> None:
                self._check()
                inner(done, total, note)

            yield step
            self._check()

    def note(self, text: str) -> None:
        self._observer.note(text)

    def warn(self, text: str) -> None:
        self._observer.warn(text)
