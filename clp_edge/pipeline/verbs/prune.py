"""prune: cut blocks by hand, or as a saved search says; no text, no healing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import clp_edge
from clp_edge.config import BenchConfig, CompressConfig
from clp_edge.errors import UsageError
from clp_edge.pipeline import provenance
from clp_edge.pipeline.folder import HF_FOLDER
from clp_edge.pipeline.preflight import Plan, preflight
from clp_edge.pipeline.runner import Ledger, Runner
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import cut
from clp_edge.pipeline.verbs.ending import Done, document
from clp_edge.progress import Observer, Progress, Quiet
from clp_edge.records import CutDocument, CutRecord, SearchDocument, SearchRecord, Span
from clp_edge.segment import Segment

NAME = "prune.json"


@dataclass(frozen=True)
class Inputs:
    """Which blocks, and what the folder says of itself."""

    blocks: str
    found_by: str | None
    name: str
    blocks_before: int


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    assert config.cut.blocks is not None
    return Inputs(config.cut.blocks, config.cut.found_by, plan.name, plan.blocks)


def named(segment: Segment, method: str) -> SearchRecord:
    """The record of a choice that nobody has to look for."""
    span = Span(segment.first, segment.last)
    return SearchRecord(
        method=method,
        criterion=None,
        segment=span,
        segments=(span,),
        dropped=tuple(segment.blocks),
        kl_raw=None,
        kl_healed=None,
        windows=(),
        regret=None,
        stability=None,
        forward_equivalents=None,
        seconds=0.0,
    )


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> CutRecord:
    segment = Segment.parse(given.blocks)
    method = given.found_by or "given"
    says = provenance.of_cut(
        context.ground.source,
        given.name,
        given.blocks_before,
        named(segment, method),
        search_method=method,
        heal_method="none",
    )
    return cut.save(context, cut.pruned(context, segment), says, progress)


STAGE: Stage[Inputs, CutRecord] = Stage(
    "prune", "Cut", (), CutRecord, inputs, run, files=lambda record: record.files
)


def prune(
    config: CompressConfig,
    *,
    found: SearchDocument | None = None,
    observer: Observer | None = None,
) -> Done[CutDocument]:
    """Cut config.cut.blocks, or the blocks of a saved search; OUT defaults to ./NAME-pruned.

    Raises UsageError where neither or both are given, or where the search is of another model.
    """
    if found is not None:
        if config.cut.blocks or config.cut.drop_blocks or config.cut.prune:
            raise UsageError("--from and --blocks exclude each other", "give one of them")
        span = found.search.segment
        assert span is not None  # read_search lets no other pass
        blocks = str(Segment(span.first, span.last))
        chosen = replace(config.cut, blocks=blocks, found_by=found.search.method)
        config = replace(config, cut=chosen, model=config.model or found.source)
    if config.cut.blocks is None:
        raise UsageError(
            "nothing says which blocks go", "give --blocks FIRST-LAST, or --from search.json"
        )
    config = replace(config, bench=BenchConfig(wanted=False))
    plan = preflight(config, suffix="pruned")
    if found is not None and (found.fingerprint, found.blocks) != (plan.fingerprint, plan.blocks):
        raise UsageError(
            f"the search was made on another model ({found.source}, {found.blocks} blocks)",
            f"search {plan.source.spec or plan.source.name} first",
        )
    runner = Runner((STAGE,), config, plan, observer or Quiet())
    segment = Segment.parse(str(config.cut.blocks))

    def make(context: Context, ledger: Ledger) -> CutDocument:
        says = provenance.read(context.out / HF_FOLDER)
        assert says is not None  # the stage wrote it
        return CutDocument(
            command=config.command,
            version=clp_edge.__version__,
            folder=HF_FOLDER,
            provenance=says,
            search=found.search if found else named(segment, "given"),
            heal=None,
            seconds=ledger.seconds,
        )

    made, reused = runner.go(document(NAME, CutDocument, make))
    return Done(made, plan.out, reused)
