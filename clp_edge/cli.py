"""The command line: verbs to modules, imported lazily; the only place that parses and exits.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 a file was written but failed verification;
130 interrupted (the same command resumes).
"""

from __future__ import annotations

import os
import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import clp_edge
from clp_edge import config as configuration
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.progress import Interruptible
from clp_edge.waiting import spin_briefly

if TYPE_CHECKING:
    from clp_edge.pipeline import Plan
    from clp_edge.ui import Ui

app = typer.Typer(
    name="clp-edge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Cut the transformer blocks a language model can do without, mend the cut, quantize, "
        "export, prove every file and measure tokens per second before and after.\n\n"
        "Start with: clp-edge compress --target gguf-q4"
    ),
)


class PresetName(str, Enum):
    """How much work is done."""

    quick = "quick"
    balanced = "balanced"
    best = "best"


def _version(wanted: bool) -> None:
    if wanted:
        _ui(False, False).result(f"clp-edge {clp_edge.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command()
def compress(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A Hugging Face folder, a hub id in the local cache, or a .gguf file. "
            "Left out: the demo model (SmolLM2-135M-Instruct)."
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="What to write, such as gguf-q4, gguf-q8_0 or a llama.cpp type name; repeatable. "
            "[default: gguf-q4]",
        ),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(help="Share of blocks to drop, between 0 and 1. [default: 0.2]"),
    ] = None,
    drop_blocks: Annotated[int | None, typer.Option(help="Number of blocks to drop.")] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="The very blocks to drop, FIRST-LAST, both inclusive, from 0."),
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="Drop as few blocks as this file size allows. Not yet.")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Drop as few blocks as this speed-up needs. Not yet.")
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            help="auto (the cheaper one), gate (the concave gate) or exact (every window's KL)."
        ),
    ] = "auto",
    heal: Annotated[
        str,
        typer.Option(
            help="none, refit (closed form, seconds) or endpoints (the refit, then tuning of the "
            "two blocks beside the cut)."
        ),
    ] = "endpoints",
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text to search and heal with: a .txt or .jsonl file, a folder, or hf:NAME. "
            "Your own text is better than the default, text that the model writes itself."
        ),
    ] = None,
    eval_text: Annotated[
        str | None,
        typer.Option(
            help="Text to measure on. Left out: a held-back part of the calibration text."
        ),
    ] = None,
    eval_tokens: Annotated[
        str | None, typer.Option(help="How many tokens of it: a number, or all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder. [default: ./NAME-clp20]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier run of ours in --out.")
    ] = False,
    preset: Annotated[
        PresetName, typer.Option(help="How much work: quick, balanced or best.")
    ] = PresetName.balanced,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. [default: the physical cores]")
    ] = None,
    device: Annotated[str, typer.Option(help="Where torch computes: auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="What torch computes in: auto (float32), float32, float16, bfloat16."),
    ] = "auto",
    no_bench: Annotated[
        bool,
        typer.Option(
            "--no-bench", help="Do not measure speed (and write no dense file to compare with)."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Keep the stages of an earlier run that still hold."
        ),
    ] = True,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print report.json on stdout and nothing else.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, only results.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Prune, heal, quantize, export, prove and measure a model: the whole way.

    Search, healing and export are resumable: the same command goes on where it stopped.
    """
    ui = _ui(quiet, json_output)
    with _errors(ui, debug):
        for flag, value in (("--max-bytes", max_bytes), ("--min-speedup", min_speedup)):
            if value is not None:
                raise UsageError(
                    f"{flag} is not yet built", "say how much to drop with --prune or --drop-blocks"
                )
        work = configuration.PRESETS[preset.value]
        asked = configuration.CompressConfig(
            model=model,
            targets=tuple(target) if target else ("gguf-q4",),
            cut=configuration.CutConfig(prune, drop_blocks, blocks),
            calibration=configuration.CalibrationConfig(
                calibration, work.given_sequences if calibration else work.own_sequences
            ),
            search=configuration.SearchConfig(search, work.search_tokens),
            heal=configuration.HealConfig(heal, work.tuning_steps, work.tuning_rate),
            evaluation=configuration.EvaluationConfig.with_tokens(
                eval_text, eval_tokens, work.evaluation_sequences
            ),
            bench=configuration.BenchConfig(not no_bench, work.bench_rounds),
            out=out,
            force=force,
            resume=resume,
            seed=seed,
            threads=threads,
            device=device,
            dtype=dtype,
            command=shlex.join(["clp-edge", *sys.argv[1:]]),
        )
        ui.note("looking at the model and the machine")
        _import_torch()
        from clp_edge import pipeline

        plan = pipeline.preflight(asked)
        if dry_run:
            from clp_edge.pipeline.rehearsal import rehearse

            made_before = rehearse(asked, plan)
            _print_plan(ui, asked, plan)
            if made_before:
                ui.note(f"{plan.out} holds this very run already: it would compute nothing")
            return
        with Interruptible(ui) as observer:
            outcome = pipeline.compress(asked, observer=observer, plan=plan)
        if outcome.reused:
            ui.note(f"{outcome.out} holds this very run already: nothing was computed")
        ui.report(outcome.report, outcome.out)
        if json_output:
            ui.print_json(outcome.report)


@app.command()
def inspect(
    model: Annotated[
        str | None,
        typer.Argument(help="A folder, a hub id or a .gguf file. Left out: the demo model."),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="Targets to price; repeatable.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback.")] = False,
) -> None:
    """Show a model's anatomy, what a block weighs, and what each target would cost."""
    ui = _ui(False, json_output)
    with _errors(ui, debug):
        from clp_edge.pipeline.inspection import inspect_model

        found = inspect_model(model, tuple(target or ()))
        if json_output:
            ui.print_json(found.as_json())
            return
        ui.table(found.name, ("part", "value"), found.facts)
        ui.table("targets, whole model", ("target", "size", "bits/weight", "note"), found.costs)
        for warning in found.warnings:
            ui.warn(warning)


@app.command()
def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback.")] = False,
) -> None:
    """Say what this machine can run, with the line that installs what is missing."""
    ui = _ui(False, json_output)
    with _errors(ui, debug):
        from clp_edge.doctor import examine

        diagnosis = examine()
        if json_output:
            rows = [vars(row) for row in diagnosis.rows]
            ui.print_json({"ready": diagnosis.ready, "rows": rows})
        else:
            found = [(row.status, row.name, row.detail) for row in diagnosis.rows]
            ui.table("", ("", "what", "found"), found)
            for row in diagnosis.rows:
                if row.cure:
                    ui.result(f"{row.name}: {row.cure}")
        if not diagnosis.ready:
            raise typer.Exit(1)


@app.command()
def targets(
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """List the targets that can be written, with a line of advice for each."""
    ui = _ui(False, json_output)
    from clp_edge.export.targets import all_targets

    found = all_targets()
    if json_output:
        ui.print_json([{"name": t.name, "aliases": t.aliases, "advice": t.advice} for t in found])
        return
    rows = [(t.name, ", ".join(t.aliases), t.advice) for t in found]
    ui.table("targets", ("target", "also", "advice"), rows)


def _import_torch() -> None:
    """Import torch with OpenMP threads that spin briefly while they wait, as every child does.

    What the user has set stays (`clp_edge.waiting` says why and how much). A torch that is loaded
    already, by a program that uses this one as a library, has read its variables and keeps them.
    """
    if "torch" not in sys.modules:
        spin_briefly(os.environ)
        import torch  # noqa: F401


def _ui(quiet: bool, json_output: bool) -> Ui:
    from clp_edge.ui import Ui

    return Ui(quiet=quiet, json=json_output)


class _errors:
    """Turns what went wrong into one line and an exit code; a traceback only with --debug."""

    def __init__(self, ui: Ui, debug: bool) -> None:
        self.ui = ui
        self.debug = debug

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, (typer.Exit, typer.Abort)):
            return
        if isinstance(error, KeyboardInterrupt):
            self.ui.warn("interrupted; the same command goes on where it stopped")
            self._leave(130, error)
        if self.debug:
            return
        if isinstance(error, ClpEdgeError):
            self.ui.problem(error)
            self._leave(error.exit_code, error)
        if isinstance(error, MemoryError):
            self.ui.problem(
                ClpEdgeError("the machine has too little memory", "take a smaller model or preset")
            )
            self._leave(1, error)
        if isinstance(error, OSError) and error.errno is not None:
            named = f"{error.filename}: " if error.filename else ""
            self.ui.problem(
                ClpEdgeError(f"{named}{os.strerror(error.errno)}", "mend that and run it again")
            )
            self._leave(1, error)
        if isinstance(error, Exception):
            self.ui.problem(
                ClpEdgeError(
                    f"{type(error).__name__}: {error}",
                    "this is a mistake in clp-edge; run again with --debug and report it",
                )
            )
            self._leave(1, error)

    @staticmethod
    def _leave(code: int, error: BaseException) -> NoReturn:
        raise typer.Exit(code) from error


def _print_plan(ui: Ui, asked: configuration.CompressConfig, plan: Plan) -> None:
    """What a run would do, and nothing is done."""
    mib, mb = 2**20, 1e6
    segment = asked.cut.segment
    what = f"blocks {segment}" if segment else "found by the search"
    text = plan.documents.origin if plan.documents else "written by the model itself"
    measured = asked.evaluation.text or "a held-back part of the calibration text"
    facts = [
        ("model", f"{plan.source.name} ({plan.config.model_type}), {plan.parameters:,} parameters"),
        ("blocks", f"{plan.blocks}, of which {plan.count} go ({what})"),
        ("parameters after", f"{plan.kept_parameters:,}"),
        ("search", f"{asked.search.method}, {asked.search.tokens} tokens"),
        ("calibration", f"{text}: {asked.calibration.sequences} x {plan.sequence_length} tokens"),
        ("heal", f"{asked.heal.rungs}, {asked.heal.steps} steps"),
        ("evaluate on", f"{measured}, sequences of {plan.evaluation_length} tokens"),
        ("bench", f"{asked.bench.rounds} rounds" if asked.bench.wanted else "left out"),
        ("device", f"{plan.device}, {plan.compute}, {plan.threads} threads"),
        ("peak memory", f"about {plan.memory_bytes / mib:,.0f} MiB"),
        ("disk", f"about {plan.disk_bytes / mib:,.0f} MiB"),
        ("output", str(plan.out)),
    ]
    costs = [
        (
            p.target.name,
            f"{p.dense.predicted_bytes / mb:.1f} MB",
            f"{p.pruned.predicted_bytes / mb:.1f} MB",
            f"{p.pruned.bits_per_weight:.2f}",
            str(p.pruned.fallback_tensors),
        )
        for p in plan.targets
    ]
    if ui.json:
        ui.print_json(
            {
                "plan": dict(facts),
                "targets": [
                    dict(zip(("target", "dense", "pruned", "bits", "fallback"), c, strict=True))
                    for c in costs
                ],
                "warnings": list(plan.warnings),
            }
        )
        return
    ui.table("plan (nothing was written)", ("step", "what"), facts)
    ui.table(
        "files, predicted",
        ("target", "dense", "pruned", "bits/weight", "tensors that fall back"),
        costs,
    )
    for warning in plan.warnings:
        ui.warn(warning)


def main() -> None:
    """The console script."""
    app()
