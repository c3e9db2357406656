"""What llama.cpp itself would do: its own dry run of every type, in a process of its own.

python -m tests.export.dry_run F16.gguf MATRIX.npz|-       prints {file type: {tensor: type}}
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

_LINE = re.compile(r"\] (\S+) +- \[.*?\], type = +(\w+), size = .*?MiB(?: -> .*?\((\w+)\))?\s*$")


def types(source: Path, file_types: list[int], matrix: Path | None) -> dict[int, dict[str, str]]:
    """The type of each tensor in a file of each type, in capitals."""
    arguments = [str(source), str(matrix or "-"), *map(str, file_types)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.dry_run", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=Path(__file__).resolve().parents[2],
    )
    return {int(number): made for number, made in json.loads(done.stdout).items()}


def _run(source: str, matrix: str, file_types: list[str]) -> dict[str, dict[str, str]]:
    import llama_cpp

    from clp_edge.runtimes.llama import _importance_entries

    library: Any = llama_cpp
    pieces: list[str] = []

    @library.llama_log_callback
    def keep(level: int, text: bytes, user_data: object) -> None:
        pieces.append(text.decode("utf-8", "replace"))

    library.llama_log_set(keep, ctypes.c_void_p(0))
    found = {}
    for number in file_types:
        pieces.clear()
        params = library.llama_model_quantize_default_params()
        params.ftype, params.dry_run, params.nthread = int(number), True, 1
        if matrix != "-":
            params.imatrix = _importance_entries(library, dict(np.load(matrix)))
        if library.llama_model_quantize(source.encode(), b"/nowhere", params) != 0:
            raise RuntimeError("".join(pieces[-5:]))
        lines = map(_LINE.search, "".join(pieces).splitlines())
        found[number] = {m[1]: (m[3] or m[2]).upper() for m in lines if m}
    return found


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1], sys.argv[2], sys.argv[3:])))
