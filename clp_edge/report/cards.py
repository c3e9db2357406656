"""A row for every block: what became of it, what it weighs, and what its loss costs.

>>> from clp_edge.records import ModelRecord
>>> from clp_edge.report.document import build_report
>>> model = ModelRecord("SmolLM2", "llama", blocks=30, parameters=134_515_008)
>>> cards(build_report(command="clp-edge compress", model=model, seed=0)) is None
True
"""

from __future__ import annotations

from collections.abc import Sequence

from clp_edge.records import Report, SearchRecord
from clp_edge.report import format as write
from clp_edge.report.blocks import Block, Heading, Table, Text


def cards(report: Report) -> Sequence[Block] | None:
    """One row a block of the dense model."""
    found = report.search
    if found is None or not found.dropped:
        return None
    alone = _alone(report, found)
    weight = _weight(report)
    header = [
        "block",
        "what",
        *(["weight"] if weight else []),
        *(["KL alone"] if alone else []),
        "best window with it",
    ]
    rows = []
    for block in range(report.model.blocks):
        rows.append(
            (
                str(block),
                _state(report, found, block),
                *([weight] if weight else []),
                *([write.fixed(alone.get(block), 3)] if alone else []),
                _window(found, block),
            )
        )
    said = "The best window with a block is the one of least KL of the cut, not healed, of all "
    said += "that were judged. "
    said += (
        "KL alone: this block dropped and nothing else, not healed. "
        if alone
        else "The KL of a block dropped alone was not measured in this run. "
    )
    if weight:
        said += "All blocks weigh the same here: parameters, and their share of the model."
    return [Heading("Block by block"), Table(tuple(header), tuple(rows), compact=True), Text(said)]


def _state(report: Report, found: SearchRecord, block: int) -> str:
    if block in found.dropped:
        return "cut"
    trained = report.heal.trained_blocks if report.heal else ()
    beside = block + 1 in found.dropped or block - 1 in found.dropped
    if beside:
        return "endpoint, healed" if block in trained else "endpoint"
    return "healed" if block in trained else "kept"


def _weight(report: Report) -> str:
    """Of one block; "" where the parameters after the cut are not known."""
    model, found = report.model, report.search
    if model.parameters_after is None or found is None or not found.dropped:
        return ""
    each = (model.parameters - model.parameters_after) // len(found.dropped)
    return f"{each / 1e6:,.2f} M ({100 * each / model.parameters:.1f} %)"


def _alone(report: Report, found: SearchRecord) -> dict[int, float]:
    """KL of the cut by a single block, from whatever measured it."""
    windows = list(report.tries.prediction.alone) if report.tries else []
    windows += list(found.windows)
    return {
        one.first: one.kl_raw for one in windows if one.first == one.last and one.kl_raw is not None
    }


def _window(found: SearchRecord, block: int) -> str:
    judged = [
        (one.kl_raw, one)
        for one in found.windows
        if one.first <= block <= one.last and one.kl_raw is not None
    ]
    if not judged:
        return "none judged"
    kl, one = min(judged, key=lambda pair: pair[0])
    return f"{one.first}-{one.last}: {write.fixed(kl, 3)}"
