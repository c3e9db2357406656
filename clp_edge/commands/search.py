"""search: which blocks go, with receipts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import command_line, import_torch, opened
from clp_edge.config import CompressConfig
from clp_edge.errors import MissingDependencyError, UsageError
from clp_edge.progress import Interruptible
from clp_edge.registry import METHODS

if TYPE_CHECKING:
    from clp_edge.pipeline.verbs.ending import Done
    from clp_edge.records import CompareDocument, SearchDocument, SearchRecord, WindowRecord
    from clp_edge.ui import Ui

SHOWN = 8
"""windows in the table; all are in search.json"""


def run(
    model: options.Model = None,
    prune: Annotated[
        float | None,
        typer.Option(help="Share of blocks to drop, between 0 and 1. [default: 0.2]"),
    ] = None,
    drop_blocks: Annotated[int | None, typer.Option(help="Number of blocks to drop.")] = None,
    method: Annotated[
        str, typer.Option(help=f"How to find the blocks. {METHODS.help()}.")
    ] = "auto",
    criterion: options.Criterion = "healed",
    tokens: Annotated[
        int | None,
        typer.Option(help="Tokens to judge windows on. [default: the preset's]"),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Never propose a cut that this target cannot express; repeatable.",
        ),
    ] = None,
    segments: Annotated[
        int,
        typer.Option(
            help="2: say as well whether two separate runs of as many blocks would be better."
        ),
    ] = 1,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the KL of every window into this .svg file."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Run every method and table their choices and costs against the exact curve, "
            "in OUT/compare.json.",
        ),
    ] = False,
    seeds: Annotated[
        str, typer.Option(help="With --compare: the seeds of each method, as in 0,1,2.")
    ] = "0",
    calibration: options.Calibration = None,
    out: options.Out = None,
    force: options.Force = False,
    resume: options.Resume = True,
    preset: options.Preset = options.PresetName.balanced,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Find the run of blocks a model can do without; cut nothing.

    Writes OUT/search.json (by default in ./NAME-search) for `clp-edge prune --from`.

    Example: clp-edge search ./my-model --drop-blocks 6 --out found --plot found.svg
    """
    with opened(json=json_output, quiet=quiet, debug=debug) as ui:
        asked = CompressConfig.of(
            model,
            targets=tuple(target or ()),
            preset=preset.value,
            prune=prune,
            drop_blocks=drop_blocks,
            search=method,
            criterion=criterion,
            calibration=calibration,
            out=out,
            force=force,
            resume=resume,
            seed=seed,
            threads=threads,
            device=device,
            dtype=dtype,
            command=command_line(),
        )
        searching = replace(
            asked.search, segments=segments, compare_seeds=_seeds(seeds) if compare else ()
        )
        if tokens is not None:
            if tokens < 1:
                raise UsageError(f"--tokens {tokens} judges nothing", "give 256 or more")
            searching = replace(searching, tokens=tokens)
        asked = replace(asked, search=searching)
        if plot is not None and compare:
            raise UsageError("--plot draws one search, and --compare runs several", "give one")
        if plot is not None and plot.suffix.lower() != ".svg":
            raise UsageError(f"--plot {plot} is no .svg file", "name one that ends in .svg")
        ui.note("looking at the model and the machine")
        import_torch()
        from clp_edge.pipeline import verbs
        from clp_edge.records import to_plain

        if compare:
            with Interruptible(ui) as observer:
                compared = verbs.compare(asked, observer=observer)
            if json_output:
                ui.print_json(to_plain(compared.document))
            else:
                _print_comparison(ui, compared)
            return
        with Interruptible(ui) as observer:
            done = verbs.search(asked, observer=observer)
        if plot is not None:
            _draw(done.document.search, plot)
        if json_output:
            ui.print_json(to_plain(done.document))
            return
        _print_search(ui, done)
        if plot is not None:
            ui.result(f"wrote {plot}")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 0:
        raise UsageError(f"cannot read --seeds {text!r}", "give numbers, as in 0,1,2")
    return found


def _draw(found: SearchRecord, path: Path) -> None:
    from clp_edge.durable import write_text
    from clp_edge.report.curves import search_plots
    from clp_edge.report.plots import standalone

    plots = list(search_plots(found))
    drawn = standalone(plots[0]) if plots else None
    if not plots:
        raise UsageError("one window alone makes no curve", "leave --plot out")
    if drawn is None:
        raise MissingDependencyError(
            "plots need matplotlib", "run `pip install 'clp-edge[report]'`, or leave --plot out"
        )
    write_text(path, drawn)


def _print_search(ui: Ui, done: Done[SearchDocument]) -> None:
    found = done.document.search
    healed = found.criterion == "healed"

    def by(window: WindowRecord) -> tuple[bool, float]:
        after = window.kl_healed if healed else window.kl_raw
        # those that were not refitted come after those that were
        return after is None, window.kl_raw or 0.0 if after is None else after

    best = sorted((window for window in found.windows if window.kl_raw is not None), key=by)
    ui.table(
        f"{found.method}: {found.reason}",
        ("blocks", "KL when they go (nats)", "± one standard error", "KL after the refit"),
        [
            (
                f"{window.first}-{window.last}",
                _number(window.kl_raw),
                _number(window.kl_raw_se),
                _number(window.kl_healed),
            )
            for window in best[:SHOWN]
        ],
    )
    for note in found.notes:
        ui.note(note)
    if found.near_tie:
        ui.warn("the two best windows are a near tie: their gap is within its error")
    assert found.segment is not None
    raw = found.raw_choice
    if raw is not None and raw != found.segment:
        ui.note(
            f"by the KL of the cut alone, blocks {raw.first}-{raw.last} would go; after the refit "
            "they leave more"
        )
    if found.pair is not None:
        low, high = found.pair.segments
        ui.note(
            f"two runs, {low.first}-{low.last} and {high.first}-{high.last}: KL "
            f"{found.pair.kl:.3f}, {found.pair.gap:+.3f} ± {_number(found.pair.gap_se)} against "
            "the best single one; to cut them, prune one after the other"
        )
    gone = f"{found.segment.first}-{found.segment.last} of {done.document.blocks}"
    ui.result(f"wrote {done.out / 'search.json'}")
    ui.result(f"blocks {gone} can go at the least loss", style="bold")


def _print_comparison(ui: Ui, done: Done[CompareDocument]) -> None:
    found = done.document.comparison
    ui.table(
        f"{found.count} of {done.document.blocks} blocks, {found.tokens:,} tokens; the exact "
        f"curve costs {found.forward_equivalents:.1f} forward passes",
        ("method", "seed", "own choice", "its regret", "final", "regret", "judged", "passes", "s"),
        [
            (
                row.method,
                str(row.seed),
                f"{row.own.first}-{row.own.last}" if row.own else "-",
                "-" if row.own_regret is None else f"{row.own_regret:.1%}",
                f"{row.segment.first}-{row.segment.last}",
                f"{row.regret:.1%}" + (" (tie)" if row.tie and row.regret > 0 else ""),
                str(row.judged),
                f"{row.forward_equivalents:.1f}",
                f"{row.seconds:.1f}",
            )
            for row in found.rows
        ],
    )
    if found.criteria is not None:
        raw, healed = found.criteria.raw, found.criteria.healed
        same = raw == healed
        ui.result(
            f"raw and healed KL both choose blocks {raw.first}-{raw.last}"
            if same
            else f"by raw KL blocks {raw.first}-{raw.last} go, by healed KL {healed.first}-"
            f"{healed.last}: {found.criteria.gap:+.3f} ± {found.criteria.gap_se:.3f} nats after "
            "the refit, on text that neither saw"
        )
    ui.result(f"wrote {done.out / 'compare.json'}")


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
