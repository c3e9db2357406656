"""bench: tokens per second of any files, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import import_torch, opened
from clp_edge.progress import Interruptible


def run(
    paths: Annotated[
        list[Path], typer.Argument(help=".gguf files, ONNX folders or Hugging Face folders.")
    ],
    baseline: Annotated[
        Path | None,
        typer.Option(help="The file that all others are compared with. [default: dense ones]"),
    ] = None,
    prompt: Annotated[int, typer.Option("--prompt", "-p", help="Tokens of the prompt.")] = 512,
    generate: Annotated[int, typer.Option("--generate", "-n", help="Tokens to generate.")] = 128,
    depth: Annotated[int, typer.Option("--depth", "-d", help="Tokens already in the cache.")] = 0,
    rounds: Annotated[int, typer.Option(help="Measured rounds; 6 is the least for 95 %.")] = 8,
    budget: Annotated[float, typer.Option(help="Seconds that it may take in all.")] = 180.0,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure prefill, decode and time to first token, interleaved, with honest intervals.

    Example: clp-edge bench dense.Q4_K_M.gguf pruned.Q4_K_M.gguf --threads 4
    """
    with opened(json=json_output, quiet=quiet, debug=debug) as ui:
        import_torch()
        from clp_edge.bench.runner import BenchSettings
        from clp_edge.pipeline.verbs.bench import bench
        from clp_edge.records import to_plain

        settings = BenchSettings(
            prompt=prompt,
            generate=generate,
            depth=depth,
            rounds=rounds,
            threads=threads,
            seed=seed,
            time_budget_s=budget,
        )
        with Interruptible(ui) as observer, observer.stage(1, 1, "Bench") as progress:
            measured = bench(paths, settings, baseline=baseline, progress=progress)
        if json_output:
            ui.print_json(to_plain(measured))
        rows = []
        for one in measured.runs:
            cells = [
                f"{found.median:.1f} ({found.low:.1f} to {found.high:.1f})"
                if (found := one.summary.get(name)) is not None
                else "not measured"
                for name in ("prefill_tps", "decode_tps", "ttft_ms")
            ]
            test = f"pp{one.test.prompt} tg{one.test.generate} @ d{one.test.depth}"
            memory = "not measured" if one.peak_rss_mib is None else f"{one.peak_rss_mib:.0f} MiB"
            rows.append((one.artifact, one.runtime, one.backend, test, *cells, memory))
        ui.table(
            f"{measured.settings.rounds} rounds, {measured.settings.threads} threads",
            (
                "file",
                "runtime",
                "on",
                "test",
                "prefill t/s",
                "decode t/s",
                "first token ms",
                "memory",
            ),
            rows,
        )
        for pair in measured.speedup:
            ui.result(
                f"{pair.after} against {pair.before}: decode {pair.decode.median:.2f}x "
                f"({pair.decode.low:.2f} to {pair.decode.high:.2f}, "
                f"{100 * pair.confidence:.0f} %, n {pair.n}), prefill {pair.prefill.median:.2f}x"
            )
        for one in measured.runs:
            if one.status != "ok":
                ui.warn(f"{one.artifact}: {one.reason}")
        for text in measured.warnings:
            ui.warn(text)
        if all(one.status != "ok" for one in measured.runs):
            raise typer.Exit(1)
