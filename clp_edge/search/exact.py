"""Every window on every sequence: the plain oracle as a method (windows.py has the arithmetic)."""

from __future__ import annotations

from clp_edge.progress import Progress
from clp_edge.search.method import Problem, Proposal
from clp_edge.segment import Segment


class Exact:
    """Leaves the choice to the exact judge, so it costs what the judge costs."""

    def predict(self, problem: Problem) -> float:
        """The oracle's closed form over all starts."""
        return problem.cost.oracle([Segment.from_start(s, problem.count) for s in problem.starts])

    def propose(self, problem: Problem, progress: Progress) -> Proposal:
        """All windows, unranked."""
        return Proposal(problem.windows(), spent=0.0, ranked=False)


EXACT = Exact()
