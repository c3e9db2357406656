"""eval: how good models and files are beside the dense model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clp_edge import config as configuration
from clp_edge.commands import options
from clp_edge.commands.frame import command_line, import_torch, opened
from clp_edge.progress import Interruptible

if TYPE_CHECKING:
    from clp_edge.records import EvalDocument, QualityRecord, SuitesRecord
    from clp_edge.ui import Ui


def run(
    paths: Annotated[
        list[Path], typer.Argument(help="Hugging Face folders, .gguf files or ONNX folders.")
    ],
    dense: Annotated[
        str | None,
        typer.Option(help="The model to compare with. Left out: the one that a folder names."),
    ] = None,
    eval_text: Annotated[
        str | None, typer.Option(help="Text to measure on: a .txt or .jsonl file, or a folder.")
    ] = None,
    eval_tokens: Annotated[
        str | None, typer.Option(help="How many tokens of it: a number, or all.")
    ] = None,
    tasks: options.Tasks = None,
    task_items: options.TaskItems = None,
    sanity: Annotated[
        bool,
        typer.Option("--sanity", help="Ask 24 fixed prompts with a plain rule for each answer."),
    ] = False,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="A standard suite by lm-eval's name, such as arc_easy; repeatable."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="How many items of each suite. Left out: all.")
    ] = None,
    max_ppl_ratio: options.MaxPplRatio = None,
    max_kl: options.MaxKl = None,
    min_retention: options.MinRetention = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Perplexity, KL to the dense model and top-1 agreement of the very files that ship.

    With --tasks also right answers, with --sanity fixed prompts, and with --suite the standard
    suites of lm-eval (pip install 'clp-edge[eval]'; data sets from the hub or its cache). A gate
    that is not met is named, and the exit code is 4.

    Example: clp-edge eval pruned.Q4_K_M.gguf --dense ./my-model --eval-text held-back.txt
    """
    with opened(json=json_output, quiet=quiet, debug=debug) as ui:
        work = configuration.PRESETS["balanced"]
        evaluation = configuration.EvaluationConfig.with_tokens(
            eval_text,
            eval_tokens,
            work.evaluation_sequences,
            tasks=tuple(tasks or ()),
            task_items=task_items,
        )
        import_torch()
        from clp_edge.evaluate import QualityGate
        from clp_edge.pipeline.verbs.evaluate import measure, require
        from clp_edge.records import to_plain
        from clp_edge.runtimes import parse_gpu_layers

        with Interruptible(ui) as observer, observer.stage(1, 1, "Evaluate") as progress:
            found = measure(
                paths,
                evaluation,
                dense=dense,
                sanity=sanity,
                gate=QualityGate(max_ppl_ratio, max_kl, min_retention),
                suites=tuple(suite or ()),
                limit=limit,
                threads=threads,
                gpu_layers=parse_gpu_layers(gpu_layers),
                device=device,
                dtype=dtype,
                command=command_line(),
                progress=progress,
            )
        if json_output:
            ui.print_json(to_plain(found))
        else:
            _print(ui, found)
        require(found)


def _print(ui: Ui, found: EvalDocument) -> None:
    """The tables; of tasks and prompts those that a report has."""
    from clp_edge.report.judged import sanity_block, tasks_block

    rows = [
        (
            name,
            _with_error(one.perplexity, one.perplexity_se, 2),
            _ratio(one),
            _with_error(one.kl, one.kl_se, 4),
            "not measured" if one.top1_agreement is None else f"{one.top1_agreement:.1%}",
        )
        for name, one in found.quality.items()
    ]
    said = found.evaluation
    ui.table(
        f"{said.text}: {said.tokens:,} tokens in sequences of {said.sequence_length}",
        ("model", "perplexity", "over the dense", "KL to dense (nats)", "same top token"),
        rows,
    )
    for name, where in found.computed_on.items():
        ui.result(f"{name}: {where}")
    asked, talked = tasks_block(found.quality), sanity_block(found.quality)
    ui.blocks([block for block in (asked, talked) if block is not None])
    if found.suites is not None:
        _print_suites(ui, found.suites)


def _print_suites(ui: Ui, found: SuitesRecord) -> None:
    rows = []
    for task, first in next(iter(found.answers.values())).items():
        for metric in first.metrics:
            for name, records in found.answers.items():
                one = records[task].metrics[metric]
                said = _with_error(one.value, one.se, 4)
                rows.append((f"{task} {first.version}", metric, name, said, f"{first.items:,}"))
    header = ("suite", "metric", "model", "value ± standard error", "items")
    ui.table(f"{found.harness}, windows of {found.window:,} tokens", header, rows)


def _ratio(one: QualityRecord) -> str:
    if one.ppl_ratio is None:
        return "not measured"
    if one.ppl_ratio_low is None or one.ppl_ratio_high is None:
        return f"{one.ppl_ratio:.3f}"
    return f"{one.ppl_ratio:.3f} ({one.ppl_ratio_low:.3f} to {one.ppl_ratio_high:.3f})"


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "not measured"
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")
