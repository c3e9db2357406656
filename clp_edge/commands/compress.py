"""The whole way: search, cut, heal, export, prove, measure, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import command_line, import_torch, opened
from clp_edge.config import FRONTIER_TYPES, CompressConfig, FileConfig, GateConfig
from clp_edge.progress import Interruptible
from clp_edge.registry import METHODS, RUNGS

if TYPE_CHECKING:
    from clp_edge.pipeline import Plan
    from clp_edge.ui import Ui


def run(
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
        str | None,
        typer.Option(
            help="Share of blocks to drop, between 0 and 1; or auto: the most that a quality gate "
            "(--max-ppl-ratio, --max-kl, --min-retention) lets pass, predicted and then measured "
            "on the files, three tries at most. Where none passes, the smallest cut tried stays, "
            "marked as failed, and the exit code is 4. [default: 0.2]"
        ),
    ] = None,
    drop_blocks: Annotated[int | None, typer.Option(help="Number of blocks to drop.")] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="The very blocks to drop, FIRST-LAST, both inclusive, from 0."),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(help="Drop as few blocks as this file size needs, such as 90MB or 1.5GiB."),
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            help="Drop as few blocks as the bytes need to allow this decode speed-up; the report "
            "says whether the bench met it."
        ),
    ] = None,
    min_tps: Annotated[
        float | None,
        typer.Option(
            help="Drop as few blocks as this many tokens per second need by the card: measured "
            "memory bandwidth over bytes per token, a ceiling; the report says whether the bench "
            "met it."
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option(help=f"How to find the blocks. {METHODS.help()}"),
    ] = "auto",
    criterion: options.Criterion = "healed",
    heal: Annotated[
        str,
        typer.Option(help=f"How far to climb in mending the cut. {RUNGS.help()}"),
    ] = "endpoints",
    tune_blocks: options.TuneBlocks = "near",
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
    tasks: options.Tasks = None,
    task_items: options.TaskItems = None,
    max_ppl_ratio: options.MaxPplRatio = None,
    max_kl: options.MaxKl = None,
    min_retention: options.MinRetention = None,
    tensor_type: options.TensorType = None,
    careful: options.Careful = False,
    ep: options.Provider = "cpu",
    converter: options.Converter = "auto",
    gpu_layers: options.GpuLayers = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder. [default: ./NAME-clp20]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier run of ours in --out.")
    ] = False,
    preset: Annotated[
        options.PresetName, typer.Option(help="How much work: quick, balanced or best.")
    ] = options.PresetName.balanced,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. [default: the physical cores]")
    ] = None,
    device: Annotated[str, typer.Option(help="Where torch computes: auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="What torch computes in: auto (float32, with bfloat16 products in search and "
            "healing where the CPU has them), float32, float16, bfloat16."
        ),
    ] = "auto",
    no_bench: Annotated[
        bool,
        typer.Option(
            "--no-bench", help="Do not measure speed (and write no dense file to compare with)."
        ),
    ] = False,
    frontier: Annotated[
        bool,
        typer.Option(
            "--frontier",
            help="The question at equal bytes: write, prove and measure the dense and the cut "
            "model at several GGUF types, all in one bench (whose time budget grows with the "
            "files), and plot quality against bytes and speeds with the Pareto fronts.",
        ),
    ] = False,
    frontier_types: Annotated[
        str | None,
        typer.Option(
            help="Which types, separated by commas; implies --frontier. "
            f"[default: {','.join(FRONTIER_TYPES)}]"
        ),
    ] = None,
    keep_frontier: Annotated[
        bool,
        typer.Option(
            "--keep-frontier",
            help="Keep the files that are only there for the comparison (in frontier/); without "
            "it they are deleted once measured, but for the one that --aim chooses.",
        ),
    ] = False,
    aim: Annotated[
        str | None,
        typer.Option(
            help="bytes, decode, ttft or memory: choose the best file in it among all that "
            "--frontier (implied) measured and that --max-kl and --max-ppl-ratio let pass; without "
            "these, that have no more KL than the dense Q4_K_M file. A dense file is a possible "
            "answer: no cut. Exit with 4 where none passes."
        ),
    ] = None,
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

    Example: clp-edge compress ./my-model --target gguf-q4 --prune 0.2
    """
    with opened(json=json_output, quiet=quiet, debug=debug) as ui:
        from clp_edge.runtimes import parse_gpu_layers

        asked = CompressConfig.of(
            model,
            targets=tuple(target) if target else ("gguf-q4",),
            preset=preset.value,
            prune=prune,
            drop_blocks=drop_blocks,
            blocks=blocks,
            max_bytes=max_bytes,
            min_speedup=min_speedup,
            min_tps=min_tps,
            search=search,
            criterion=criterion,
            heal=heal,
            tune_blocks=tune_blocks,
            calibration=calibration,
            eval_text=eval_text,
            eval_tokens=eval_tokens,
            tasks=tuple(tasks or ()),
            task_items=task_items,
            bench=not no_bench,
            frontier=frontier,
            frontier_types=frontier_types,
            keep_frontier=keep_frontier,
            aim=aim,
            files=FileConfig(
                tuple(tensor_type or ()), careful, ep, parse_gpu_layers(gpu_layers), converter
            ),
            gate=GateConfig(max_ppl_ratio, max_kl, min_retention),
            out=out,
            force=force,
            resume=resume,
            seed=seed,
            threads=threads,
            device=device,
            dtype=dtype,
            command=command_line(),
        )
        ui.note("looking at the model and the machine")
        import_torch()
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
            from clp_edge.records import to_plain

            ui.print_json(to_plain(outcome.report))
        outcome.require()


def _print_plan(ui: Ui, asked: CompressConfig, plan: Plan) -> None:
    """What a run would do, and nothing is done."""
    from clp_edge.pipeline.healing_memory import words

    mib, mb = 2**20, 1e6
    segment = asked.cut.segment
    what = f"blocks {segment}" if segment else "found by the search"
    auto = asked.cut.auto
    goes = f"{plan.count} or more, as quality allows," if auto else str(plan.count)
    text = plan.documents.origin if plan.documents else "written by the model itself"
    measured = asked.evaluation.text or "a held-back part of the calibration text"
    facts = [
        ("model", f"{plan.source.name} ({plan.config.model_type}), {plan.parameters:,} parameters"),
        ("blocks", f"{plan.blocks}, of which {goes} go ({what})"),
        ("parameters after", "as the cut" if auto else f"{plan.kept_parameters:,}"),
        ("search", _searching(asked, plan)),
        ("calibration", f"{text}: {asked.calibration.sequences} x {plan.sequence_length} tokens"),
        ("heal", f"{asked.heal.rungs}, {asked.heal.steps} steps"),
        ("evaluate on", f"{measured}, sequences of {plan.evaluation_length} tokens"),
        *([("frontier", _comparing(plan))] if plan.frontier else []),
        ("bench", f"{asked.bench.rounds} rounds" if asked.bench.wanted else "left out"),
        *[("converter", who) for who in sorted({p.pruned.converter for p in plan.targets} - {""})],
        ("device", f"{plan.device}, {plan.compute}, {plan.threads} threads"),
        ("healing holds", words(plan.healing) if plan.healing else "nothing"),
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
        names = ("target", "dense", "pruned", "bits", "fallback")
        ui.print_json(
            {
                "plan": dict(facts),
                "targets": [
                    {
                        **dict(zip(names, c, strict=True)),
                        "dense_bytes": p.dense.predicted_bytes,
                        "pruned_bytes": p.pruned.predicted_bytes,
                    }
                    for c, p in zip(costs, plan.targets, strict=True)
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


def _comparing(plan: Plan) -> str:
    """What is written for the comparison at equal bytes alone."""
    names = ", ".join(p.target.quantization for p in plan.frontier)
    size = sum(p.dense.predicted_bytes + p.pruned.predicted_bytes for p in plan.frontier)
    return f"dense and cut at {names}: {size / 1e6:,.1f} MB more, for the comparison"


def _searching(asked: CompressConfig, plan: Plan) -> str:
    """How the blocks would be found, and what that costs here."""
    if asked.cut.segment is not None:
        return "none: the blocks were named"
    from clp_edge.pipeline.forecast import forecast_search
    from clp_edge.ui import duration

    cost = forecast_search(asked, plan)
    return (
        f"{cost.method}, {cost.tokens:,} tokens, about {cost.passes:.1f} forward passes of them: "
        f"{duration(cost.seconds)} at the speed of a matrix product here; "
        f"{cost.state_bytes / 2**20:,.0f} MiB of block states"
    )
