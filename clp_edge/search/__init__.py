"""Search: which contiguous run of blocks goes.

Every method stands behind one protocol (method.py) and is a row of METHODS; the driver judges what
it proposes, and returns a `SearchResult` with the receipts. `auto` asks each for its prediction.

>>> result = search(body, ids, count=6, method="auto")                      # doctest: +SKIP
>>> result.segment                                                          # doctest: +SKIP
Segment(first=13, last=18)
"""

from __future__ import annotations

from clp_edge.search.driver import SearchResult, choose_method, search, window_starts
from clp_edge.search.method import Method, Problem, Proposal, Trace

__all__ = [
    "Method",
    "Problem",
    "Proposal",
    "SearchResult",
    "Trace",
    "choose_method",
    "search",
    "window_starts",
]
