"""What a harness needs of a model: scores of continuations, and greedy ids.

>>> from pathlib import Path
>>> from clp_edge.runtimes import open_artifact
>>> with open_artifact(Path("model.Q4_K_M.gguf"), context=2049) as session:  # doctest: +SKIP
...     of_session(session).generate(ids, 16, frozenset())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clp_edge.evaluate.choices import Scorer, model_scorer
from clp_edge.models.anatomy import dissect
from clp_edge.models.ends import end_ids
from clp_edge.runtimes import Session

Writer = Callable[[Sequence[int], int, frozenset[int]], list[int]]
"""(ids, most new tokens, ids that end it beside the model's own) -> the new ids, without the end"""


@dataclass(frozen=True)
class Speaker:
    """One model or open artifact."""

    score: Scorer
    generate: Writer
    vocabulary: int


def of_session(session: Session) -> Speaker:
    """An artifact that is open in its runtime."""

    def generate(ids: Sequence[int], most: int, ends: frozenset[int]) -> list[int]:
        return session.generate(ids, most, stop=ends)

    return Speaker(session.score, generate, session.info.vocabulary)


def of_model(model: Any) -> Speaker:
    """A transformers model that is loaded already."""
    own = end_ids(getattr(model, "generation_config", None), model.config)

    @torch.no_grad()
    def generate(ids: Sequence[int], most: int, ends: frozenset[int]) -> list[int]:
        stop = own | ends
        given = torch.tensor([list(ids)], device=model.device)
        made = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            # a model's own generation settings may hold these; greedy means greedy
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(stop) or None,
            pad_token_id=min(stop, default=0),
        )
        fresh = made[0, len(ids) :].tolist()
        return fresh[:-1] if fresh and fresh[-1] in stop else fresh

    return Speaker(model_scorer(dissect(model)), generate, int(model.config.vocab_size))
