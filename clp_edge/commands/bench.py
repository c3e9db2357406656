"""bench: tokens per second of any files, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import command_line, import_torch, opened
from clp_edge.durable import write_text
from clp_edge.errors import UsageError
from clp_edge.progress import Interruptible

if TYPE_CHECKING:
    from clp_edge.records import BenchRecord
    from clp_edge.ui import Ui

OUTPUTS = ("table", "md", "json", "jsonl", "csv", "html")


def run(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help=".gguf files, ONNX folders or Hugging Face folders."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="The file that all others are compared with. [default: dense ones]"),
    ] = None,
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt", "-p", help="Tokens of the prompt; several as 128,512: each a test."
        ),
    ] = "512",
    generate: Annotated[
        str, typer.Option("--generate", "-n", help="Tokens to generate, as 32,128.")
    ] = "128",
    depth: Annotated[
        str, typer.Option("--depth", "-d", help="Tokens already in the cache, as 0,512.")
    ] = "0",
    rounds: Annotated[int, typer.Option(help="Measured rounds; 6 is the least for 95 %.")] = 20,
    budget: Annotated[
        float, typer.Option("--time-budget", "--budget", help="Seconds that it may take in all.")
    ] = 180.0,
    delay: Annotated[
        float, typer.Option(help="Seconds to cool down before each measurement.")
    ] = 0.0,
    threads: options.Threads = None,
    cpus: Annotated[
        str | None,
        typer.Option(
            help="Processors to pin to, as 0-3 or 0,2. [default: one of each core, fastest first]"
        ),
    ] = None,
    gpu_layers: options.GpuLayers = "auto",
    device: Annotated[
        str, typer.Option(help="Where torch computes a Hugging Face folder: auto, cpu or cuda.")
    ] = "auto",
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="table, md, json (each round), jsonl or csv (a row), html."
        ),
    ] = "table",
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page of its own, with plots, to this file as well."),
    ] = None,
    append: Annotated[
        Path | None,
        typer.Option(help="Add the whole record, with date, device and versions, to this file."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Measure nothing: two earlier benches beside each other."),
    ] = None,
    seed: options.Seed = 0,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure prefill, decode and time to first token, interleaved, with honest intervals.

    Example: clp-edge bench dense.Q4_K_M.gguf pruned.Q4_K_M.gguf -p 128,512 --threads 4
    """
    form = "json" if json_output and output == "table" else output
    with opened(json=form == "json", quiet=quiet, debug=debug) as ui:
        if form not in OUTPUTS or (json_output and form != "json"):
            given = f"--json with -o {form}" if json_output else f"-o {form}"
            raise UsageError(f"cannot write {given}", f"take one of {', '.join(OUTPUTS)}")
        if html is not None:
            check_page(html)
        if compare is not None:
            if paths:
                raise UsageError("--compare measures nothing", "give --compare A B without files")
            _compare(ui, compare, form, html)
            return
        if not paths:
            raise UsageError("nothing to measure", "give .gguf files or model folders")
        import_torch()
        from clp_edge.bench import history
        from clp_edge.bench.affinity import parse_cpus
        from clp_edge.bench.settings import BenchSettings
        from clp_edge.pipeline.verbs.bench import bench
        from clp_edge.runtimes import parse_gpu_layers

        try:
            pinned = None if cpus is None else parse_cpus(cpus)
        except ValueError as error:
            raise UsageError(f"cannot read --cpus {cpus!r}", "give a list as 0-3 or 0,2") from error
        settings = BenchSettings(
            prompt=_numbers("--prompt", prompt),
            generate=_numbers("--generate", generate),
            depth=_numbers("--depth", depth),
            rounds=rounds,
            threads=threads,
            seed=seed,
            time_budget_s=budget,
            delay_s=delay,
            cpus=pinned,
            gpu_layers=parse_gpu_layers(gpu_layers),
            device=device,
        )
        if append is not None:
            history.check_appendable(append)
        with Interruptible(ui) as observer, observer.stage(1, 1, "Bench") as progress:
            measured = bench(paths, settings, baseline=baseline, progress=progress)
        if append is not None:
            history.append(append, measured)
        if html is not None:
            from clp_edge.report.bench_page import bench_page

            write_text(html, bench_page(measured, command_line()))
        _show(ui, measured, form)
        if all(one.status != "ok" for one in measured.runs):
            raise typer.Exit(1)


def check_page(path: Path) -> None:
    """Raise UsageError where no file can stand there: asked before minutes of measuring."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "give --html a file, such as bench.html")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"cannot read {option} {text!r}", "give whole numbers with commas between, as 128,512"
        ) from None


def _show(ui: Ui, measured: BenchRecord, form: str) -> None:
    from clp_edge.bench import formats
    from clp_edge.records import to_plain

    if form == "json":
        ui.print_json(to_plain(measured))
    writers = {"md": formats.as_markdown, "csv": formats.as_csv, "jsonl": formats.as_jsonl}
    if form == "html":
        from clp_edge.report.bench_page import bench_page

        ui.result(bench_page(measured, command_line()))
    if form in writers:
        for line in writers[form](measured).splitlines():
            ui.result(line)
    if form == "table":
        rows = [formats.run_cells(one) for one in measured.runs]
        ui.table(formats.conditions(measured), formats.HEADER, rows)
        if measured.speedup:
            pairs = [formats.pair_cells(pair) for pair in measured.speedup]
            ui.table("round by round", formats.PAIR_HEADER, pairs)
        for text in formats.notes(measured):
            ui.result(text)
    if form not in ("md", "html"):  # where they are part of the text
        for text in (*formats.failures(measured), *measured.warnings):
            ui.warn(text)


def _compare(ui: Ui, files: tuple[Path, Path], form: str, html: Path | None) -> None:
    from clp_edge.bench import formats, history
    from clp_edge.bench.compare import compare

    if form not in ("table", "json", "html"):
        raise UsageError(f"--compare has no -o {form}", "take table, json or html")
    first, second = (history.read(path) for path in files)
    found = compare(first, second)
    if not found.rows and form != "json":
        for text in found.unmatched:
            ui.warn(text)
        raise UsageError("the two benches have no file and test in common", "see what each holds")
    page = ""
    if html is not None or form == "html":
        from clp_edge.report.bench_page import comparison_page

        sides = tuple((str(path), side) for path, side in zip(files, (first, second), strict=True))
        page = comparison_page(found, sides, command_line())
    if html is not None:
        write_text(html, page)
    if form == "json":
        ui.print_json(found)
        return
    if form == "html":
        ui.result(page)
        return
    rows = [cells for one in found.rows for cells in formats.compared_cells(one)]
    ui.table(f"A: {files[0]}, B: {files[1]}", formats.COMPARED_HEADER, rows)
    ui.result(found.note)
    for text in found.differences:
        ui.result(f"differs: {text}")
    for text in found.unmatched:
        ui.warn(text)
