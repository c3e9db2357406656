"""eval: how good models and files are beside the dense model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clp_edge import config as configuration
from clp_edge.commands import options
from clp_edge.commands.frame import command_line, import_torch, opened
from clp_edge.progress import Interruptible


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
    threads: options.Threads = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Perplexity, KL to the dense model and top-1 agreement of the very files that ship.

    Example: clp-edge eval pruned.Q4_K_M.gguf --dense ./my-model --eval-text held-back.txt
    """
    with opened(json=json_output, quiet=quiet, debug=debug) as ui:
        work = configuration.PRESETS["balanced"]
        evaluation = configuration.EvaluationConfig.with_tokens(
            eval_text, eval_tokens, work.evaluation_sequences
        )
        import_torch()
        from clp_edge.pipeline.verbs.evaluate import measure
        from clp_edge.records import to_plain

        with Interruptible(ui) as observer, observer.stage(1, 1, "Evaluate") as progress:
            found = measure(
                paths,
                evaluation,
                dense=dense,
                threads=threads,
                device=device,
                dtype=dtype,
                command=command_line(),
                progress=progress,
            )
        if json_output:
            ui.print_json(to_plain(found))
            return
        rows = [
            (
                name,
                _with_error(one.perplexity, one.perplexity_se, 2),
                _with_error(one.kl, one.kl_se, 4),
                "not measured" if one.top1_agreement is None else f"{one.top1_agreement:.1%}",
            )
            for name, one in found.quality.items()
        ]
        said = found.evaluation
        ui.table(
            f"{said.text}: {said.tokens:,} tokens in sequences of {said.sequence_length}",
            ("model", "perplexity", "KL to dense (nats)", "same top token"),
            rows,
        )


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "not measured"
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")
