"""Peak resident memory of one stage of this process.

Linux keeps a high-water mark per process and resets it on request (writing 5 to
/proc/self/clear_refs). Where that cannot be done the peak is not measured: None, not a guess.

What earlier stages freed may still be held by the C library: it is handed back first, so that it
neither counts for this stage nor takes room from it.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from clp_edge.runtimes.memory import hand_back, peak_rss_mib

_RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """A context: `peak_mib` is the largest resident set while it was open, or None."""

    peak_mib: float | None = None

    def __enter__(self) -> PeakMemory:
        hand_back()
        try:
            _RESET.write_text("5")
            self._reset = True
        except OSError:
            self._reset = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._reset:
            self.peak_mib = peak_rss_mib()
