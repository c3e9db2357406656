"""The graph's tables of cosines and sines against transformers' frequencies, to the last position.

A text reaches a few hundred positions and a table 131,072: LongRoPE's second table, or a scaling
that only shows far out, would pass every comparison of logits (PITFALLS 15).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clp_edge.errors import VerificationError
from clp_edge.export.onnx.contents import Graph
from clp_edge.export.torch_reference import rotations

# The end of a table's name -> whose frequencies they are.
_WHOSE = {"_small": "short", "_large": "long", "_local": "local", "_global": "full", "": "full"}
_POSITIONS = 257
_ROUNDING = {np.dtype(np.float32): 1e-4, np.dtype(np.float16): 2e-3}
_ANGLE_ROUNDING = 2.0**-21
"""An angle is position times frequency in float32, and a frequency may be an ulp or two off."""


def check_angles(graph: Graph, model: Any) -> int:
    """How many tables that a block uses were right, at 257 positions from the first to the last.

    Raises VerificationError naming the table that is not; without a rotary embedding there is none.
    """
    if not hasattr(model.get_decoder(), "rotary_emb"):
        return 0
    frequencies, gain = rotations(model)
    tables = graph.angle_tables()
    compared = 0
    for name, table in tables.items():
        which = _WHOSE.get(name[len("cos_cache") :], "full")
        wanted = frequencies.get(which)
        if wanted is None:  # Gemma 3 with blocks of one kind alone: no block uses this table
            continue
        if table.shape[1] != len(wanted):
            what = f"{name} is {table.shape}, not as wide as transformers' {which} frequencies"
            raise VerificationError(f"{graph.folder.name} failed verification: {what}")
        at = np.unique(np.linspace(0, len(table) - 1, _POSITIONS).astype(np.int64))
        angles = at[:, None] * np.asarray(wanted, dtype=np.float64)[None, :]
        exact = gain * (np.cos(angles) if name.startswith("cos") else np.sin(angles))
        off = np.abs(table[at].astype(np.float64) - exact)
        wrong = off > gain * (_ROUNDING.get(table.dtype, 2e-2) + _ANGLE_ROUNDING * angles)
        if wrong.any():
            row = int(np.argmax(wrong.any(axis=1)))
            raise VerificationError(
                f"{graph.folder.name} failed verification: {name} is off by "
                f"{float(off[row].max()):.3g} at position {int(at[row])}"
            )
        compared += 1
    if not compared:
        raise VerificationError(f"{graph.folder.name} failed verification: no table of angles")
    return compared
