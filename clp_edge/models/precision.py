"""What the learning stages compute in: float32, or float32 weights under bfloat16 autocast.

On a CPU with bfloat16 matrix products a forward is two to three times as fast under autocast, and
what comes of it is as good (docs/LOG.md): weights that are trained, norms, the residual stream,
losses and Gram sums stay float32, and what is reported is evaluated in float32. A CPU without such
products would only emulate them, slower than float32. The choice is made once a run and kept where
the run is resumed, on another machine too.

>>> choose("float32", "cpu", flags=frozenset({"amx_bf16"}))
Learning(autocast=False, reason='--dtype float32')
>>> choose("auto", "cpu", flags=frozenset({"avx2", "amx_bf16"}))
Learning(autocast=True, reason='this CPU has amx_bf16')
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

FLAGS = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True)
class Learning:
    """Whether the learning stages run under bfloat16 autocast, and why."""

    autocast: bool
    reason: str

    @property
    def dtype(self) -> torch.dtype | None:
        """For `Anatomy.autocast`."""
        return torch.bfloat16 if self.autocast else None

    @property
    def name(self) -> str:
        """As it is recorded: the word before the bracket is read again on resume."""
        kind = "bfloat16" if self.autocast else "none"
        return f"{kind} ({self.reason})"


NO_AUTOCAST = Learning(False, "not asked for")


def cpu_flags() -> frozenset[str]:
    """The instruction sets that Linux names for this CPU; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(found.partition(":")[2].split())


def choose(
    wanted: str,
    device: str,
    *,
    kept: str | None = None,
    flags: Collection[str] | None = None,
) -> Learning:
    """For `--dtype` wanted and where torch computes; `kept` is the `name` of the run that is
    resumed, which holds where the choice is ours to make."""
    if wanted != "auto":
        return Learning(False, f"--dtype {wanted}")
    if device != "cpu":
        return Learning(False, f"on {device} --dtype decides")
    if kept is not None:
        word, _, reason = kept.partition(" (")
        return Learning(word == "bfloat16", reason.removesuffix(")"))
    has = [flag for flag in FLAGS if flag in (cpu_flags() if flags is None else flags)]
    if has:
        return Learning(True, f"this CPU has {' and '.join(has)}")
    return Learning(False, f"this CPU has neither {' nor '.join(FLAGS)}")
