"""What a run reads must not lie in the folder that it writes: else it deletes its own source.

Paths are compared as they are on the disk, links followed, so that neither a linked folder nor a
linked weight file hides in `--out`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clp_edge.errors import UsageError

CURE = "choose another --out"


def overlaps(
    out: Path, *, model: Path, calibration: str | None, evaluation: str | None
) -> Iterator[UsageError]:
    """One problem for each input that the output folder holds, or whose text the output would join.

    The output folder may lie inside the model's folder, whose sub-folders nobody reads; not inside
    a folder of text, which is read whole: the next run would read its own report.
    """
    base = out.expanduser().resolve()
    if (found := _first_inside(base, model, recursive=False)) is not None:
        yield _held(out, "model", found)
    for flag, spec in (("--calibration", calibration), ("--eval-text", evaluation)):
        if spec is None or spec.startswith("hf:"):
            continue
        path = Path(spec).expanduser()
        if path.resolve() in base.parents:
            yield UsageError(
                f"--out {out} lies inside the text folder {spec} of {flag}, so the next run would "
                "read its own report",
                "choose an --out outside of it",
            )
        elif (found := _first_inside(base, path, recursive=True)) is not None:
            yield _held(out, f"text of {flag}", found)


def _held(out: Path, what: str, found: Path) -> UsageError:
    return UsageError(
        f"the {what} ({found}) lies inside --out {out}, where a run deletes and replaces files",
        CURE,
    )


def _first_inside(base: Path, path: Path, *, recursive: bool) -> Path | None:
    """The path, or the first file below it, that is really the base folder or in it."""
    files = path.rglob("*") if recursive else path.glob("*")
    for candidate in (path, *(f for f in sorted(files) if f.is_file())):
        real = candidate.resolve()
        if real == base or base in real.parents:
            return candidate
    return None
