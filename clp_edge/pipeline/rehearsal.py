"""What `--dry-run` does after preflight: ask the output folder as the run itself would.

>>> from clp_edge.pipeline.preflight import preflight
>>> rehearse(config, preflight(config))                                     # doctest: +SKIP
False
"""

from __future__ import annotations

from clp_edge.config import CompressConfig
from clp_edge.pipeline import tries
from clp_edge.pipeline.folder import OutputFolder
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Ground, stage_keys


def rehearse(config: CompressConfig, plan: Plan) -> bool:
    """Whether this very run has been made already; nothing is written.

    Raises ClpEdgeError where the run would be refused: another finished run, another at work.
    """
    if config.cut.auto:
        found = tries.settled(config, plan)
        if found is None or found.chosen is None:
            tries.check_room(config, plan)
            return False
        plan = tries.with_count(plan, found.chosen)
    folder = OutputFolder.open(
        plan.out,
        hashes=stage_keys(tries.stages_of(config), config, plan, Ground.of(config, plan)),
        about={},
        force=config.force,
        resume=config.resume,
    )
    return folder.finished
