"""The stages that learn from text: calibrate, evaluation text, search, heal.

Each takes the run and its own empty folder, and returns plain JSON; tensors go to safetensors
files in that folder.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clp_edge import data
from clp_edge.heal import HealResult, TuningSettings, heal
from clp_edge.pipeline.run import Run
from clp_edge.progress import Progress
from clp_edge.search import search

OWN_TEXT_BATCH = 128
"""sequences written at once: enough to keep the matrix products busy"""


def calibrate_stage(run: Run, room: Path, progress: Progress) -> dict[str, Any]:
    """Read the calibration text, or let the model write it."""
    settings = run.config.calibration
    if run.plan.documents is not None:
        found = data.calibrate(
            run.plan.documents,
            run.plan.tokenizer,
            sequences=settings.sequences,
            length=run.plan.sequence_length,
            seed=run.config.seed,
        )
    else:
        found = data.write_own_text(
            run.model(),
            run.plan.tokenizer,
            sequences=settings.sequences,
            length=run.plan.sequence_length,
            seed=run.config.seed,
            batch=OWN_TEXT_BATCH,
            progress=progress,
            cache_dir=cache_folder(),
            fingerprint=run.plan.fingerprint,
        )
    progress(1, 1, f"{found.sequences} sequences of {run.plan.sequence_length} tokens")
    parts = {"fit": found.fit, "select": found.select, "report": found.report}
    save_file(parts, str(room / "calibration.safetensors"))
    return {
        "origin": found.origin,
        "sha256": found.sha256,
        "sequences": {name: len(ids) for name, ids in parts.items()},
        "fit_texts": found.fit_texts,
        "select_texts": found.select_texts,
        "report_texts": found.report_texts,
        "report_sequences": found.report_sequences,
    }


def text_stage(run: Run, room: Path, progress: Progress) -> dict[str, Any]:
    """The sequences that everything is measured on."""
    settings = run.config.evaluation
    if settings.text is None:
        found = data.held_back(run.calibration)
    else:
        found = data.evaluation_text(
            settings.text,
            run.plan.tokenizer,
            sequences=settings.sequences,
            length=run.plan.evaluation_length,
            against=run.calibration,
        )
    progress(1, 1, f"{len(found.ids)} sequences of {found.ids.shape[1]} tokens")
    save_file({"ids": found.ids}, str(room / "evaluation.safetensors"))
    return {
        "text": found.origin,
        "sha256": found.sha256,
        "tokens": found.tokens,
        "sequence_length": int(found.ids.shape[1]),
        "removed_as_leaked": found.removed_as_leaked,
    }


def search_stage(run: Run, room: Path, progress: Progress) -> dict[str, Any]:
    """Which segment goes."""
    given = run.config.cut.segment
    wanted = max(1, run.config.search.tokens // run.plan.sequence_length)
    ids = torch.cat([run.calibration.select, run.calibration.fit])[:wanted]
    found = search(
        run.body(),
        ids.to(run.plan.device),
        count=run.plan.count,
        method="exact" if given else run.config.search.method,
        seed=run.config.seed,
        allow_ends=given is not None,
        allowed=(lambda segment: segment == given) if given else (lambda segment: True),
        progress=progress,
    )
    return {
        "method": "given" if given else found.method,
        "reason": "the blocks were named with --blocks" if given else found.reason,
        "criterion": "raw",
        "segment": asdict(found.segment),
        "segments": [asdict(found.segment)],
        "dropped": list(found.segment.blocks),
        "kl_raw": found.kl_raw,
        "kl_healed": None,
        "windows": [
            {
                **asdict(window.segment),
                "kl_raw": window.kl,
                "kl_raw_se": window.kl_se,
                "kl_healed": None,
            }
            for window in found.windows
        ],
        "regret": None if given else found.regret,
        "stability": None if len(found.windows) < 2 else found.stability.wins,
        "rivals": [{**asdict(segment), "wins": wins} for segment, wins in found.stability.rivals],
        "gap": found.stability.gap,
        "gap_se": found.stability.gap_se,
        "near_tie": len(found.windows) > 1 and found.stability.near_tie,
        "gate": asdict(found.gate) if found.gate else None,
        "tokens": ids.numel(),
        "forward_equivalents": found.forward_equivalents,
        "seconds": found.seconds,
    }


def heal_stage(run: Run, room: Path, progress: Progress) -> dict[str, Any]:
    """The endpoints' new weights."""
    settings = run.config.heal
    began = time.perf_counter()
    found = heal(
        run.body(),
        run.segment,
        run.calibration.fit.to(run.plan.device),
        run.calibration.select.to(run.plan.device),
        rungs=settings.rungs,
        tuning=TuningSettings(steps=settings.steps),
        seed=run.config.seed,
        progress=progress,
    )
    state = {
        f"{index}.{name}": value.contiguous()
        for index, tensors in found.state.items()
        for name, value in tensors.items()
    }
    save_file(state, str(room / "healed.safetensors"))
    for note in found.notes:
        run.observer.note(note)
    return {
        "method": settings.rungs,
        "trained_blocks": sorted(found.state),
        "kl_cut": found.kl_cut,
        "kl_refit": found.kl_refit,
        "kl_tuned": found.kl_tuned,
        "ridge": found.ridge,
        "explained": found.explained,
        "history": [asdict(point) for point in found.history],
        "notes": list(found.notes),
        "parts": found.seconds,
        "seconds": time.perf_counter() - began,
    }


def healing(run: Run) -> HealResult:
    said = run.results["heal"]
    state: dict[int, dict[str, Tensor]] = {}
    path = run.folder.stage_folder("heal") / "healed.safetensors"
    for key, value in load_file(str(path)).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return HealResult(
        said["method"],
        run.segment,
        said["kl_cut"],
        said["kl_refit"],
        said["kl_tuned"],
        said["ridge"],
        said["explained"],
        (),
        tuple(said["notes"]),
        state,
        said["parts"],
    )


def cache_folder() -> Path:
    """Where text that models wrote themselves is kept: CLP_EDGE_CACHE, or the user's cache."""
    own = os.environ.get("CLP_EDGE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "clp-edge"
