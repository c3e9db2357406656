"""Where joules come from: one small shape for every sensor, and its kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["watts", "joules"]


@dataclass(frozen=True)
class Source:
    """One figure that can be read at any time; `read` raises ProbeFaultError where it cannot.

    "watts" is the power now, and its integral is taken; "joules" is a counter that only grows (a
    source with a narrow counter unwraps it), and its difference is taken.
    """

    name: str
    covers: str
    kind: Kind
    read: Callable[[], float]
    note: str = ""
