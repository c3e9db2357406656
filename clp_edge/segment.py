"""The one way this project names the blocks that go: `Segment(first, last)`, both ends inclusive.

Block ids are 0-based. `Segment(12, 17)` is printed as "blocks 12-17 (6 of 30)". With h_i for the
input of block i, the segment starts at `first` = s and holds n = `count` blocks: [s, s+n).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clp_edge.errors import UsageError

FEWEST_BLOCKS = 2
"""What must stay of a model, so that a cut has something on both of its sides."""


def check_count(count: int, total: int) -> None:
    """Raises UsageError where `count` of `total` blocks cannot go."""
    most = total - FEWEST_BLOCKS
    if most < 1:
        raise UsageError(
            f"the model has {total} blocks: none can go",
            f"at least {FEWEST_BLOCKS} blocks must stay",
        )
    if count < 1:
        raise UsageError(f"dropping {count} blocks drops nothing", f"drop 1 to {most}")
    if count > most:
        raise UsageError(
            f"dropping {count} of {total} blocks leaves {max(0, total - count)}",
            f"at least {FEWEST_BLOCKS} blocks must stay: drop {most} at most",
        )


@dataclass(frozen=True, order=True)
class Segment:
    """A contiguous run of blocks; ids are 0-based, both ends inclusive."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if self.first < 0 or self.last < self.first:
            raise UsageError(
                f"blocks {self.first}-{self.last} is no segment",
                "give FIRST-LAST with 0 <= FIRST <= LAST",
            )

    @classmethod
    def from_start(cls, start: int, count: int) -> Segment:
        """The window [start, start + count)."""
        return cls(start, start + count - 1)

    @classmethod
    def parse(cls, text: str) -> Segment:
        """Read "12-17", or "12" for a single block."""
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
        if match is None:
            raise UsageError(
                f"cannot read {text!r} as blocks", "give FIRST-LAST, both inclusive, such as 12-17"
            )
        first = int(match[1])
        return cls(first, int(match[2]) if match[2] else first)

    @property
    def count(self) -> int:
        """How many blocks go."""
        return self.last - self.first + 1

    @property
    def blocks(self) -> range:
        """The ids of the blocks that go."""
        return range(self.first, self.last + 1)

    def endpoints(self, total: int) -> tuple[int, ...]:
        """Ids (dense) of the blocks beside the cut: first-1 and last+1, where present."""
        return tuple(i for i in (self.first - 1, self.last + 1) if 0 <= i < total)

    def describe(self, total: int) -> str:
        """As people read it: "blocks 12-17 (6 of 30)"."""
        return f"blocks {self} ({self.count} of {total})"

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"
