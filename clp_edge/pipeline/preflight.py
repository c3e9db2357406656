"""Everything that can be known before any work: the plan of a run, and all that stands in its way.

Problems are gathered and raised together, so that a user mends them in one go. The weights are not
read: sizes come from the same model built without memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

import clp_edge.export as export
from clp_edge.bench.bandwidth import read_bandwidth
from clp_edge.bench.ceiling import mean_decode_depth
from clp_edge.config import CompressConfig
from clp_edge.data import Documents, calibrate, evaluation_text, read_documents
from clp_edge.errors import ClpEdgeError, PreflightError, UsageError
from clp_edge.evaluate import read_tasks
from clp_edge.export.targets import Target, resolve
from clp_edge.heal.memory import HealMemory
from clp_edge.models.anatomy import family_of
from clp_edge.models.source import (
    Source,
    check_weights,
    fingerprint,
    load_config,
    load_tokenizer,
    locate,
    source_warnings,
    stored_dtype,
    tokenizer_gguf,
)
from clp_edge.pipeline import lock, provenance
from clp_edge.pipeline.folder import admit, read_state
from clp_edge.pipeline.foretold import options_of, provenance_of
from clp_edge.pipeline.healing_memory import foretold
from clp_edge.pipeline.overlap import overlaps
from clp_edge.pipeline.sizing import blocks_to_drop, cached_bytes, fewest_that_may_go
from clp_edge.records import BandwidthRecord, RecordError, from_plain
from clp_edge.registry import FORMATS
from clp_edge.report.choosing import BAR_TARGET
from clp_edge.runtimes import default_threads
from clp_edge.segment import Segment

T = TypeVar("T")
GIB = 2**30
CHECKED_CHARACTERS = 8_000_000
"""Evaluation text up to this length is split and compared before the run (a second per million)."""


@dataclass(frozen=True)
class PlannedTarget:
    """One file to write: its target and what it is predicted to weigh, dense and pruned."""

    target: Target
    dense: export.ExportPlan
    pruned: export.ExportPlan


@dataclass(frozen=True)
class Plan:
    """A run that may begin."""

    source: Source
    fingerprint: str
    config: Any
    tokenizer: Any
    name: str
    blocks: int
    count: int
    parameters: int
    block_parameters: int
    targets: tuple[PlannedTarget, ...]
    forbidden: tuple[Segment, ...]
    """cuts of `count` blocks that some target cannot express"""
    documents: Documents | None
    out: Path
    threads: int
    device: str
    compute: torch.dtype
    stored: torch.dtype
    sequence_length: int
    evaluation_length: int
    memory_bytes: int
    """predicted peak of this process"""
    disk_bytes: int
    """what will be written"""
    warnings: tuple[str, ...]
    frontier: tuple[PlannedTarget, ...] = ()
    """what --frontier compares beside the targets asked for"""
    bandwidth: BandwidthRecord | None = None
    """of the memory, where --min-tps was predicted by it"""
    healing: HealMemory | None = None
    """what healing is predicted to hold on `device`; None: nothing is healed"""

    @property
    def kept_parameters(self) -> int:
        return self.parameters - self.count * self.block_parameters


class Problems:
    """Collects what goes wrong instead of stopping at the first."""

    def __init__(self) -> None:
        self.found: list[ClpEdgeError] = []

    def add(self, problem: ClpEdgeError) -> None:
        if str(problem) not in {str(known) for known in self.found}:
            self.found.append(problem)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """The work's value, or None where it met a problem, which is kept."""
        try:
            return work()
        except ClpEdgeError as problem:
            self.add(problem)
            return None

    def raise_if_any(self) -> None:
        if self.found:
            raise PreflightError(self.found)


def preflight(config: CompressConfig, *, suffix: str | None = None) -> Plan:
    """Look at everything and make the plan.

    Args: suffix, of the default output folder: ./MODEL-suffix instead of ./MODEL-clp20.
    Raises PreflightError with every problem that was found.
    """
    problems = Problems()
    targets = [problems.attempt(partial(resolve, name)) for name in config.targets]
    for name in dict.fromkeys(target.format for target in targets if target is not None):
        missing = FORMATS.load(name).requires()
        if missing is not None:
            problems.add(missing)
    documents = None
    if config.calibration.spec is not None:
        spec = config.calibration.spec
        documents = problems.attempt(lambda: read_documents(spec))
    measured = None
    if config.evaluation.text is not None:
        text = config.evaluation.text
        measured = problems.attempt(lambda: read_documents(text, cut=False))
    asked = config.evaluation
    problems.attempt(lambda: read_tasks(asked.tasks, limit=asked.task_items))
    formats = {target.format for target in targets if target is not None}
    onnx = any(name.startswith("onnx") for name in formats)
    if config.files.provider != "cpu" and formats and not onnx:
        problems.add(
            UsageError(
                f"--ep {config.files.provider} says nothing to {', '.join(sorted(formats))}",
                "add an onnx target, or leave --ep out (llama.cpp is built for its device)",
            )
        )
    device = problems.attempt(lambda: device_of(config.device))
    source = problems.attempt(lambda: locate(config.model))
    if source is None:
        problems.raise_if_any()
    assert source is not None
    model_config = problems.attempt(lambda: load_config(source))
    if model_config is not None:
        problems.attempt(lambda: family_of(model_config))
    tokenizer = problems.attempt(lambda: load_tokenizer(source))
    problems.raise_if_any()
    assert model_config is not None

    blocks = int(model_config.num_hidden_layers)
    carried = tokenizer_gguf(source)

    def planning(dropped: int) -> dict[str, Any]:
        """What the exporters will be told of the model without so many blocks."""
        says = None
        if dropped:
            name = _name(source, dropped, blocks)
            says = provenance_of(config, source, name, blocks=blocks, count=dropped)
        return {
            "calibrated": True,
            "options": options_of(config.files, says),
            "metadata": provenance.file_metadata(says)
            if says is not None
            else provenance.dense_metadata(source.name),
        }

    known = list(dict.fromkeys(target for target in targets if target is not None))
    out = config.out
    if out is None and config.cut.min_tps is not None:  # a name that no measurement changes
        out = Path(f"{source.name}-clp-{config.cut.min_tps:g}tps")
    bandwidth = None
    if config.cut.min_tps is not None:
        assert out is not None
        bandwidth = memory_bandwidth(config, out)

    def sizes(dropped: int) -> list[int]:
        """What every target's file weighs without so many blocks; for a speed-up, what a token
        reads of it."""
        plans = [
            export.plan(
                model_config,
                tokenizer,
                target,
                tokenizer_gguf=carried,
                blocks=blocks - dropped,
                **planning(dropped),
            )
            for target in known
        ]
        by_speed = config.cut.min_speedup is not None or config.cut.min_tps is not None
        found = [(by_speed and plan.read_bytes) or plan.predicted_bytes for plan in plans]
        if config.cut.min_tps is None:
            return found
        depth = mean_decode_depth(config.bench.generate)
        cached = cached_bytes(model_config, blocks - dropped, depth)
        return [size + cached for size in found]

    count = problems.attempt(
        lambda: (
            fewest_that_may_go(model_config, formats)
            if config.cut.auto
            else blocks_to_drop(config.cut, blocks, sizes, bandwidth)
        )
    )
    if count is None:
        problems.raise_if_any()
    assert count is not None
    assert device is not None
    problems.attempt(lambda: check_weights(source, model_config))
    _check_vocabulary(problems, model_config, tokenizer)
    limit = int(getattr(model_config, "max_position_embeddings", 0) or config.evaluation.length)
    total, block = parameter_counts(model_config)
    named = config.cut.segment
    forbidden = _forbidden(problems, model_config, targets, named, count)
    compared = _compared(problems, config, known)
    planned = []
    for target in (*known, *compared):
        dense = export.plan(model_config, tokenizer, target, tokenizer_gguf=carried, **planning(0))
        pruned = export.plan(
            model_config,
            tokenizer,
            target,
            tokenizer_gguf=carried,
            blocks=blocks - count,
            dropped=named.blocks if named else None,
            **planning(count),
        )
        for problem in dense.problems:
            problems.add(problem)
        planned.append(PlannedTarget(target, dense, pruned))
    frontier = tuple(planned[len(known) :])
    planned = planned[: len(known)]
    name = _name(source, count, blocks)
    suffix = suffix or ("clp-auto" if config.cut.auto else None)
    default = f"{source.name}-{suffix}" if suffix else name
    out = out if out is not None else Path(default)
    _check_out(problems, config, source, out)
    sequence_length = min(config.calibration.length, limit)
    evaluation_length = min(config.evaluation.length, limit)
    _check_texts(
        problems, config, tokenizer, documents, measured, (sequence_length, evaluation_length)
    )
    stored = stored_dtype(source)
    kept = total - count * block
    artifacts = sum(
        p.pruned.predicted_bytes + (p.dense.predicted_bytes if config.bench.wanted else 0)
        for p in planned
    )
    beside = sum(p.pruned.predicted_bytes + p.dense.predicted_bytes for p in frontier)
    if frontier:
        _check_side_by_side(problems, artifacts + beside)
    artifacts += beside
    # healed folder; the dense folder and both F16 files where the dense model is written too
    copies = kept + kept + (2 * total if config.bench.wanted else 0)
    disk = artifacts + 2 * copies
    compute = compute_dtype(config.dtype)
    memory = int(1.6 * total * compute.itemsize + 0.6 * GIB)
    healing = problems.attempt(lambda: foretold(config, model_config, count, device, compute))
    if healing is not None and device == "cpu":
        memory = max(memory, healing.peak + int(0.6 * GIB))
    _check_room(problems, out, disk, memory)
    problems.raise_if_any()
    notes = [note for p in planned for note in p.pruned.notes]
    return Plan(
        source=source,
        fingerprint=fingerprint(source),
        config=model_config,
        tokenizer=tokenizer,
        name=name,
        blocks=blocks,
        count=count,
        parameters=total,
        block_parameters=block,
        targets=tuple(planned),
        forbidden=forbidden,
        documents=documents,
        out=out,
        threads=config.threads or default_threads(),
        device=device,
        compute=compute,
        stored=stored,
        sequence_length=sequence_length,
        evaluation_length=evaluation_length,
        memory_bytes=memory,
        disk_bytes=disk,
        frontier=frontier,
        bandwidth=bandwidth,
        healing=healing,
        warnings=tuple(dict.fromkeys([*source_warnings(source), *notes])),
    )


def memory_bandwidth(config: CompressConfig, out: Path) -> BandwidthRecord | None:
    """Measured now, or what the run that is resumed in `out` began with: the number of blocks
    follows from it. None where it cannot be measured."""
    if config.resume and not config.force:
        said = (read_state(out) or {}).get("memory_bandwidth")
        try:
            if said is not None:
                return from_plain(said, BandwidthRecord)
        except RecordError:
            pass  # another version's: measured again
    return read_bandwidth(config.threads or default_threads())


def _compared(
    problems: Problems, config: CompressConfig, known: Sequence[Target]
) -> tuple[Target, ...]:
    """The GGUF types that --frontier asks for beside the targets."""
    found = []
    for name in config.frontier.types:
        target = problems.attempt(partial(resolve, name))
        if target is not None and target.format != "gguf":
            problems.add(
                UsageError(
                    f"--frontier-types {name} is no GGUF type",
                    "give types such as q8_0,q4_k_m,q3_k_m",
                )
            )
        elif target is not None:
            found.append(target)
    if found and (missing := FORMATS.load("gguf").requires()) is not None:
        problems.add(missing)
    gate = config.gate
    names = {target.name for target in (*found, *known)}
    if (
        config.frontier.aim is not None
        and gate.max_kl is None
        and gate.max_ppl_ratio is None
        and BAR_TARGET not in names
    ):
        problems.add(
            UsageError(
                f"--aim {config.frontier.aim} needs a bar for quality, and the dense Q4_K_M file, "
                "which is it where none is given, is not among those compared",
                "give --max-kl or --max-ppl-ratio, or add q4_k_m to --frontier-types",
            )
        )
    return tuple(target for target in dict.fromkeys(found) if target not in known)


def _check_side_by_side(problems: Problems, size: int) -> None:
    """All files are open at once, each round reads them all: they have to fit in memory."""
    available = psutil.virtual_memory().available
    if size > available:
        problems.add(
            ClpEdgeError(
                f"--frontier times its files side by side: {size / GIB:.1f} GiB together, and "
                f"{available / GIB:.1f} GiB of memory are available, so it would time the disk",
                "give fewer types, such as --frontier-types q4_k_m,q3_k_m",
            )
        )


def _name(source: Source, dropped: int, blocks: int) -> str:
    """Of the model without so many of its blocks."""
    return f"{source.name}-clp{round(100 * dropped / blocks)}"


def _forbidden(
    problems: Problems,
    config: Any,
    targets: Sequence[Target | None],
    named: Segment | None,
    count: int,
) -> tuple[Segment, ...]:
    """The windows of `count` blocks that some target cannot express; a problem where the named
    one is among them, or where no other is left."""
    windows = [Segment.from_start(s, count) for s in range(config.num_hidden_layers - count + 1)]
    found: set[Segment] = set()
    for name in dict.fromkeys(target.format for target in targets if target is not None):
        chosen: export.Format = FORMATS.load(name)
        reasons = {window: chosen.forbids(config, window) for window in windows}
        barred = [window for window, reason in reasons.items() if reason is not None]
        found.update(barred)
        asked = named or (windows[len(windows) // 2] if len(barred) == len(windows) else None)
        if asked is not None and (reason := reasons.get(asked)) is not None:
            near = ", ".join(str(segment) for segment in chosen.nearest(config, asked))
            problems.add(
                UsageError(
                    f"{name} cannot express this model without blocks {asked}: {reason}",
                    f"the nearest cuts that it can: --blocks {near}",
                )
            )
    return tuple(sorted(found))


def parameter_counts(config: Any) -> tuple[int, int]:
    """(parameters of the model, a tied head once; parameters of one block), without any memory."""
    from transformers import AutoModelForCausalLM

    from clp_edge.models.anatomy import dissect, parameter_count

    with torch.device("meta"):
        body = dissect(AutoModelForCausalLM.from_config(config))
    total = parameter_count(body.model)
    if config.tie_word_embeddings and body.head_module.weight is not body.embedding.weight:
        total -= body.head_module.weight.numel()
    return total, sum(p.numel() for p in body.blocks[0].parameters())


def device_of(wanted: str) -> str:
    """Where torch computes. Raises UsageError where the device asked for is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device", "give --device cpu")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def compute_dtype(wanted: str) -> torch.dtype:
    """What torch computes in; auto is float32."""
    names = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    return names.get(wanted, torch.float32)


def _check_vocabulary(problems: Problems, config: Any, tokenizer: Any) -> None:
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= int(config.vocab_size):
        problems.add(
            ClpEdgeError(
                f"the tokenizer has ids up to {highest}, the model a vocabulary of "
                f"{config.vocab_size}",
                "the tokenizer belongs to another model: put the right tokenizer.json beside it",
            )
        )


def _check_out(problems: Problems, config: CompressConfig, source: Source, out: Path) -> None:
    """The output folder is ours or new, nobody works in it, and nothing that is read is in it."""
    texts = {"calibration": config.calibration.spec, "evaluation": config.evaluation.text}
    for problem in overlaps(out, model=source.path, **texts):
        problems.add(problem)
    problems.attempt(lambda: lock.check_free(out))
    problems.attempt(lambda: admit(out, force=config.force, resume=config.resume))


def _check_texts(
    problems: Problems,
    config: CompressConfig,
    tokenizer: Any,
    documents: Documents | None,
    measured: Documents | None,
    lengths: tuple[int, int],
) -> None:
    """Long enough, and not measured on what is calibrated with: as the stages will find it.

    Text that the model writes is not known yet, and very long text is left to its stage.
    """
    against = None
    if documents is not None:
        sequences, known = config.calibration.sequences, documents
        against = problems.attempt(
            lambda: calibrate(
                known, tokenizer, sequences=sequences, length=lengths[0], seed=config.seed
            )
        )
        if against is None:
            return
    if measured is not None and measured.characters <= CHECKED_CHARACTERS:
        text = measured
        problems.attempt(
            lambda: evaluation_text(
                text,
                tokenizer,
                sequences=config.evaluation.sequences,
                length=lengths[1],
                against=against,
            )
        )


def _check_room(problems: Problems, out: Path, disk: int, memory: int) -> None:
    check_disk(problems, out, disk)
    available = psutil.virtual_memory().available
    if available < memory:
        problems.add(
            ClpEdgeError(
                f"the run needs about {memory / GIB:.1f} GiB of memory and "
                f"{available / GIB:.1f} GiB are available",
                "close other programs, or take a smaller model",
            )
        )


def check_disk(problems: Problems, out: Path, size: int) -> None:
    """There is a place for `out` that can be written to, with so many bytes free."""
    parent = out.absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        problems.add(ClpEdgeError(f"{parent} cannot be written to", "choose another --out"))
    free = shutil.disk_usage(parent).free
    if free < size:
        problems.add(
            ClpEdgeError(
                f"the run writes about {size / GIB:.1f} GiB and {free / GIB:.1f} GiB are free in "
                f"{parent}",
                "free some, choose another --out, or leave the dense files out with --no-bench",
            )
        )
