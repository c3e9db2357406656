"""heal: mend a folder that was cut, by this project or by hand, against the model it came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import clp_edge
from clp_edge.config import BenchConfig, CompressConfig, CutConfig
from clp_edge.errors import UsageError
from clp_edge.heal.ranks import SINGLE, Ranks
from clp_edge.models.removed import removed_segment
from clp_edge.models.source import locate
from clp_edge.pipeline import provenance
from clp_edge.pipeline.folder import HF_FOLDER, hf_folder_of
from clp_edge.pipeline.preflight import preflight
from clp_edge.pipeline.runner import Ledger, Runner
from clp_edge.pipeline.stage import Context
from clp_edge.pipeline.stages import calibrate, cut, search
from clp_edge.pipeline.stages import heal as heal_stage
from clp_edge.pipeline.verbs.ending import Done, document
from clp_edge.progress import Observer, Quiet
from clp_edge.records import CutDocument

NAME = "heal.json"
STAGES = (calibrate.STAGE, search.STAGE, heal_stage.STAGE, cut.STAGE)


def heal(
    config: CompressConfig,
    folder: Path,
    *,
    teacher: str | None = None,
    observer: Observer | None = None,
    ranks: Ranks = SINGLE,
) -> Done[CutDocument]:
    """Mend the cut of `folder`; OUT defaults to ./NAME-healed.

    Args: config as for `compress` (its model is not looked at); teacher, the dense model, by
        default the one that the folder's provenance names; ranks, this process, the first, among
        those that heal along: they wait in `shared_healing.heal_along`.
    Raises UsageError where the two do not belong together, or the cut is not unique.
    """
    folder = hf_folder_of(folder)
    says = provenance.read(folder)
    if teacher is None:
        if says is None:
            raise UsageError(
                f"{folder} does not say which model it was cut from",
                "give the dense model with --teacher",
            )
        teacher = says.source
    given = config.cut.segment
    dense, pruned = locate(teacher), locate(str(folder))
    segment = removed_segment(dense, pruned, said=given)
    found_by = says.search_method if says is not None else None
    config = replace(
        config,
        model=teacher,
        targets=(),
        cut=CutConfig(blocks=str(segment), found_by=found_by),
        bench=BenchConfig(wanted=False),
    )
    plan = preflight(config, suffix="healed")
    runner = Runner(STAGES, config, plan, observer or Quiet(), ranks=ranks)

    def make(context: Context, ledger: Ledger) -> CutDocument:
        said = provenance.read(context.out / HF_FOLDER)
        assert said is not None  # the cut stage wrote it
        return CutDocument(
            command=config.command,
            version=clp_edge.__version__,
            folder=HF_FOLDER,
            provenance=said,
            search=context.record(search.STAGE),
            heal=context.record(heal_stage.STAGE),
            seconds=ledger.seconds,
        )

    made, reused = runner.go(document(NAME, CutDocument, make))
    ranks.told(None)  # the others may go
    return Done(made, plan.out, reused)
