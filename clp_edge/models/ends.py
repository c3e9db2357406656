"""Which tokens end an answer: told in several places, as one id or a list, and all of them hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def end_ids(*tellers: Any) -> frozenset[int]:
    """The `eos_token_id` of every teller together.

    Args: tellers, configs, generation configs, tokenizers, or the JSON of one; None tells nothing.

    >>> sorted(end_ids({"eos_token_id": [2, 7]}, {"eos_token_id": 2}, {}, None))
    [2, 7]
    """
    found: set[int] = set()
    for teller in tellers:
        is_json = isinstance(teller, Mapping)
        said = teller.get("eos_token_id") if is_json else getattr(teller, "eos_token_id", None)
        found.update([] if said is None else [said] if isinstance(said, int) else said)
    return frozenset(found)
