"""The stages in the order in which they run."""

from __future__ import annotations

from typing import Any

from clp_edge.pipeline.stage import Stage
from clp_edge.pipeline.stages import (
    bench,
    calibrate,
    cut,
    evaluate,
    export,
    heal,
    search,
    text,
)

STAGES: tuple[Stage[Any, Any], ...] = (
    calibrate.STAGE,
    text.STAGE,
    search.STAGE,
    heal.STAGE,
    cut.STAGE,
    export.STAGE,
    evaluate.STAGE,
    bench.STAGE,
)
