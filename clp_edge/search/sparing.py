"""A model whose head holds fewer logits at once: what a search's peak memory hangs on.

Of the demo model's search the logits of the kernels' own chunk, 64 MiB a table and three of them
at once, were the largest part that comes and goes (docs/LOG.md). A third of the rows gives the
same numbers. On a GPU, whose products want many rows, the chunk stays.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from clp_edge.kernels.head_kl import Head
from clp_edge.models.anatomy import Anatomy

SHARE = 3
"""The kernels' own chunk is divided by this."""


@dataclass(frozen=True)
class _Head(Head):
    def chunk(self) -> int:
        own = super().chunk()
        return own if self.weight.is_cuda else max(1, own // SHARE)


class _Sparing(Anatomy):
    @property
    def head(self) -> Head:
        own = super().head
        return _Head(**{field.name: getattr(own, field.name) for field in fields(own)})


def sparing(body: Anatomy) -> Anatomy:
    """The same model, whose head takes fewer positions at once in host memory."""
    return _Sparing(**{field.name: getattr(body, field.name) for field in fields(body)})
