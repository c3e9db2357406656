"""Write the report's files so that no half file is ever seen under its final name.

Temporary name in the same folder, fsync, rename, fsync of the folder (PITFALLS 25).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clp_edge.errors import ClpEdgeError
from clp_edge.report.card import render_card
from clp_edge.report.document import validate
from clp_edge.report.markdown import render_markdown


def write_report(report: Mapping[str, Any], out_dir: Path) -> list[Path]:
    """Write report.json, report.md and README.md; returns their paths.

    Nothing is written unless the report is valid and all three could be rendered. Raises
    ReportError, or ClpEdgeError when the folder cannot be written.
    """
    validate(report)
    texts = {
        "report.json": json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": render_markdown(report),
        "README.md": render_card(report),
    }
    for name, text in texts.items():
        write_atomically(out_dir / name, text)
    return [out_dir / name for name in texts]


def write_atomically(path: Path, text: str) -> None:
    """Replace the file by one with this text (UTF-8), whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ClpEdgeError(
            f"cannot write {path} ({error.strerror or error})", "free space or choose another --out"
        ) from error
