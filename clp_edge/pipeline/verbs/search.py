"""search: which blocks go, with the receipts, in search.json; nothing is cut."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import clp_edge
from clp_edge.config import BenchConfig, CompressConfig
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.pipeline.preflight import Plan, preflight
from clp_edge.pipeline.runner import Ledger, Runner, environment
from clp_edge.pipeline.stage import Context
from clp_edge.pipeline.stages import calibrate
from clp_edge.pipeline.stages import compare as compare_stage
from clp_edge.pipeline.stages import search as search_stage
from clp_edge.pipeline.verbs.ending import Done, document
from clp_edge.progress import Observer, Quiet
from clp_edge.records import CompareDocument, RecordError, SearchDocument, decode

NAME = "search.json"
STAGES = (calibrate.STAGE, search_stage.STAGE)


def search(
    config: CompressConfig, *, observer: Observer | None = None, plan: Plan | None = None
) -> Done[SearchDocument]:
    """Find the blocks that go; OUT defaults to ./NAME-search. Targets, where given, bar cuts that
    they cannot express. Raises ClpEdgeErrors as `compress` does."""
    config = replace(config, bench=BenchConfig(wanted=False))
    plan = plan or preflight(config, suffix="search")
    runner = Runner(STAGES, config, plan, observer or Quiet())

    def make(context: Context, ledger: Ledger) -> SearchDocument:
        return SearchDocument(
            command=config.command,
            version=clp_edge.__version__,
            source=plan.source.spec or plan.source.name,
            source_name=plan.source.name,
            fingerprint=plan.fingerprint,
            blocks=plan.blocks,
            search=context.record(search_stage.STAGE),
            seconds=ledger.seconds,
        )

    found, reused = runner.go(document(NAME, SearchDocument, make))
    return Done(found, plan.out, reused)


def compare(
    config: CompressConfig, *, observer: Observer | None = None, plan: Plan | None = None
) -> Done[CompareDocument]:
    """Every method with every seed of `config.search.compare_seeds`, judged by the exact curve.

    OUT defaults to ./NAME-compare. Raises ClpEdgeErrors as `search` does.
    """
    config = replace(config, bench=BenchConfig(wanted=False))
    plan = plan or preflight(config, suffix="compare")
    runner = Runner((calibrate.STAGE, compare_stage.STAGE), config, plan, observer or Quiet())

    def make(context: Context, ledger: Ledger) -> CompareDocument:
        return CompareDocument(
            command=config.command,
            version=clp_edge.__version__,
            source=plan.source.spec or plan.source.name,
            fingerprint=plan.fingerprint,
            blocks=plan.blocks,
            text=context.record(calibrate.STAGE).origin,
            comparison=context.record(compare_stage.STAGE),
            date=date.today().isoformat(),
            environment=environment(),
            peak_memory_mib=ledger.peaks,
        )

    found, reused = runner.go(document("compare.json", CompareDocument, make))
    return Done(found, plan.out, reused)


def read_search(path: Path) -> SearchDocument:
    """search.json, or the output folder that holds it. Raises UsageError where there is none."""
    file = path / NAME if path.is_dir() else path
    try:
        found = decode(file.read_bytes(), SearchDocument)
    except OSError as error:
        raise UsageError(f"{path} cannot be read", "give a search.json or its folder") from error
    except RecordError as error:
        raise UsageError(
            f"{file} is no search.json ({error.cause})", "make one with clp-edge search"
        ) from error
    if found.search.segment is None:
        raise ClpEdgeError(f"{file} names several runs of blocks", "cut them one after the other")
    return found
