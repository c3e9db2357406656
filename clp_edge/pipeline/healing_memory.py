"""What healing will hold in memory, as preflight and the stage tell it."""

from __future__ import annotations

from typing import Any

import torch

from clp_edge.config import CompressConfig
from clp_edge.heal import HELD_SEQUENCES
from clp_edge.heal.blocks import tuned_blocks
from clp_edge.heal.graft import GRAFT
from clp_edge.heal.ladder import rungs_up_to
from clp_edge.heal.memory import HealMemory, Work, predict
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.precision import choose as choose_learning
from clp_edge.segment import Segment


def of_text(
    body: Anatomy,
    segment: Segment,
    tune_blocks: str,
    rungs: str,
    *,
    sequences: tuple[int, int],
    length: int,
    device: str,
    weights: torch.dtype,
    autocast: torch.dtype | None,
) -> HealMemory:
    """For so many sequences to fit on and held back."""
    fit, held = sequences
    climbed = rungs_up_to(rungs)
    work = Work(
        weights=weights,
        device=torch.device(device).type,
        fit_tokens=fit * length,
        held_tokens=min(held, HELD_SEQUENCES) * length,
        length=length,
        autocast=autocast,
        spent=True,
        tunes=any(rung.trains for rung in climbed),
        grafts=GRAFT in climbed,
    )
    return predict(body, segment, tuned_blocks(tune_blocks, segment, len(body)), work)


def foretold(
    config: CompressConfig, model: Any, count: int, device: str, weights: torch.dtype
) -> HealMemory | None:
    """Before the run, for the blocks that were named, else a cut in the middle; None: no healing.

    Args: model, the config of the model, which is built without memory.
    """
    from transformers import AutoModelForCausalLM

    asked = config.heal
    if asked.rungs == "none":
        return None
    with torch.device("meta"):
        body = dissect(AutoModelForCausalLM.from_config(model))
    named = config.cut.segment
    segment = named or Segment.from_start((len(body) - count) // 2, count)
    # Ids are right for the cut that will be found, which is not known.
    near = asked.named_blocks and named is None
    limit = int(getattr(model, "max_position_embeddings", 0) or config.calibration.length)
    return of_text(
        body,
        segment,
        "near" if near else asked.tune_blocks,
        asked.rungs,
        sequences=(config.calibration.sequences, config.calibration.sequences),
        length=min(config.calibration.length, limit),
        device=device,
        weights=weights,
        autocast=choose_learning(config.dtype, device).dtype,
    )


def words(told: HealMemory) -> str:
    """As it is shown: the phases in MiB."""
    phases = {
        "dense passes": told.collecting,
        "graft": told.grafting,
        "tuning": told.tuning,
    }
    there = [f"{name} {size / 2**20:,.0f}" for name, size in phases.items() if size]
    most = f"about {told.peak / 2**20:,.0f} MiB"
    return f"{most} ({', '.join(there)})" if len(there) > 1 else most
