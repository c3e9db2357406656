"""What a method costs, in forward equivalents: FLOPs over those of one dense forward.

The head is included. A backward that needs activations' gradients only counts as one forward.
Two methods are compared at equal tokens. The closed form for the oracle, plus the dense pass that
stores its inputs: [sum_s (L-s-n)·c_block + (L-n+1)·c_head] / (L·c_block + c_head) + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clp_edge.models.anatomy import Anatomy
from clp_edge.segment import Segment


@dataclass(frozen=True)
class Cost:
    """FLOPs per token of the parts of a model, for sequences of a given length."""

    blocks: int
    block: float
    head: float

    @property
    def forward(self) -> float:
        """One dense forward of one token."""
        return self.blocks * self.block + self.head

    def windows(self, segments: Sequence[Segment]) -> float:
        """Scoring these windows from stored inputs, the teacher's head once; no dense pass."""
        blocks = sum(self.blocks - segment.last - 1 for segment in segments)
        return (blocks * self.block + (len(segments) + 1) * self.head) / self.forward

    def oracle(self, segments: Sequence[Segment]) -> float:
        """The whole oracle: the dense pass and every window."""
        return 1.0 + self.windows(segments)

    def tail(self, first: int) -> float:
        """A forward from block `first` to the logits."""
        return ((self.blocks - first) * self.block + self.head) / self.forward


@dataclass(frozen=True)
class Size:
    """How large a search is: all that its cost depends on."""

    cost: Cost
    count: int
    """blocks that go"""
    starts: range
    """where a window may begin"""
    sequences: int
    tokens: int
    """in a sequence"""

    @property
    def windows(self) -> list[Segment]:
        """Every window."""
        return [Segment.from_start(start, self.count) for start in self.starts]


def cost_of(body: Anatomy, tokens: int) -> Cost:
    """Costs at `tokens` a sequence: 2 FLOPs a weight and token, and attention at the mean depth."""
    weights = sum(p.numel() for p in body.blocks[0].parameters() if p.dim() == 2)
    heads = body.config.num_attention_heads
    head_dim = getattr(body.config, "head_dim", None) or body.hidden_size // heads
    attention = 4 * heads * head_dim * tokens / 2
    return Cost(len(body), 2.0 * weights + attention, 2.0 * body.head_module.weight.numel())
