"""The probes that go along with a bench, behind one object.

    probes = Probes()
    probes.before()                                   # idle power, temperatures
    with probes.opening("dense", path):
        session = open_artifact(path)
    for each round:
        with probes.around("dense", session) as window:
            window.timed(session.time_once(...))
    probes.memory("dense", session)                   # while the process lives
    heat, warnings = probes.after()
    probes.energy("dense")

What the energy of a row covers: the decode part of the rounds that count, alone. Every runtime
decodes last (`time_once`), so the part is the last `decode_s` seconds of the call; prompt, warm-up
and loading are not in it. Everything that `EnergyRecord.covers` names is counted, this program and
all others; net takes the idle power off, which was measured before anything was opened. The
readings themselves cost one wake-up of a thread every 0.1 s, the same for every row. Where no power
can be read nothing is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clp_edge.bench.probes import memory as process_memory
from clp_edge.bench.probes.files import ProbeFaultError
from clp_edge.bench.probes.meter import PERIOD_S, Meter
from clp_edge.bench.probes.nvml import Nvml, open_nvml
from clp_edge.bench.probes.power import covers, find_sources, on_nvidia
from clp_edge.bench.probes.source import Source
from clp_edge.bench.probes.thermal import Heat, Watch, look, throttled
from clp_edge.jetson import jetson_model
from clp_edge.medians import median_interval
from clp_edge.records import EnergyRecord, HeatRecord, MemoryRecord, SummaryRecord
from clp_edge.runtimes import Timing

# Idle power is the mean of so long, before anything is opened.
IDLE_S = 3.0
# Clocks and reasons for slowing down are looked at every so many readings.
LOOK_EVERY = 5


@dataclass
class _Row:
    """What is known of one artifact so far."""

    path: Path | None = None
    sources: tuple[Source, ...] = ()
    reason: str = ""
    gross: list[float] = field(default_factory=list)
    net: list[float] = field(default_factory=list)
    joules: float = 0.0
    seconds: float = 0.0
    gpu_opened: float | None = None
    """by how much the memory in use on the GPU rose while it was opened, MiB"""
    taken_open: float | None = None
    """... and MemAvailable fell"""


@dataclass
class _Process:
    """The memory of one runtime's process while its runs were timed, MiB."""

    pid: int | None
    gpu_listed: float | None = None
    """the most that NVML listed for it"""
    taken: float = 0.0
    """by how much MemAvailable fell at most in one run"""
    lowest_available: float | None = None


class Window:
    """One timed run: it begins when it is made; `timed` says what was measured in it."""

    def __init__(self) -> None:
        self.timing: Timing | None = None

    def timed(self, timing: Timing) -> None:
        """What the runtime says of the run that has just ended."""
        self.timing = timing


class Probes:
    """Power, memory and heat of a bench. `root` and `nvml` stand for the machine (tests)."""

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        nvml: Nvml | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        period_s: float = PERIOD_S,
        threaded: bool = True,
    ) -> None:
        """`threaded` False reads nothing by itself: the caller ticks `meter`."""
        self.root = root
        self.jetson = jetson_model(root) is not None
        reason = "NVML was not asked"
        if nvml is None and root == Path("/") and not self.jetson:
            nvml, reason = open_nvml()
        self.nvml = None if self.jetson else nvml
        self.power = find_sources(root, self.nvml, reason)
        self.watch = Watch(root, self.nvml)
        self.meter = Meter(self.power.every, period_s=period_s, clock=clock, also=self._also)
        self.idle_watts: dict[Source, float] = {}
        self._clock, self._sleep, self._threaded = clock, sleep, threaded
        self._rows: dict[str, _Row] = {}
        self._processes: dict[int, _Process] = {}
        self._inside: _Process | None = None
        self._ticks = 0
        self._heat: Heat | None = None

    def before(self) -> None:
        """The state of things before anything is opened: temperatures, and idle power."""
        self._heat = look(self.root, self.nvml)
        if self._threaded:
            self.meter.start()
        if not self.meter.sources:
            return
        self.meter.tick()
        start = self._clock()
        self._sleep(IDLE_S)
        end = self._clock()
        self.meter.tick()
        for index, source in enumerate(self.meter.sources):
            try:
                joules = self.meter.joules(index, start, end)
            except ProbeFaultError:
                continue  # net figures are then not measured
            self.idle_watts[source] = joules / (end - start)

    @contextmanager
    def opening(self, name: str, path: Path) -> Iterator[None]:
        """Around the opening of an artifact: what the device's memory loses by it."""
        row = self._rows.setdefault(name, _Row(path=path))
        free, used = self._device_memory()
        yield
        free_after, used_after = self._device_memory()
        if free is not None and free_after is not None:
            row.taken_open = free - free_after
        if used is not None and used_after is not None:
            row.gpu_opened = used_after - used

    @contextmanager
    def around(self, name: str, session: Any) -> Iterator[Window]:
        """Around one run that counts; a run that raises leaves nothing.

        `name` is the row's; one session may have several, such as one for each test.
        """
        row, process = self._rows.setdefault(name, _Row()), self._process(session)
        if not row.sources and not row.reason:
            row.sources, row.reason = self.power.of(session.info.backend)
        free = process_memory.available_mib(self.root)
        self._inside, window = process, Window()
        process.lowest_available = free
        self.meter.tick()
        start = self._clock()
        try:
            yield window
        finally:
            end = self._clock()
            self.meter.tick()  # so that the window's end has a reading behind it
            self._inside = None
        if window.timing is not None:
            self._integrate(row, window.timing, end)
        if free is not None and process.lowest_available is not None:
            process.taken = max(process.taken, free - process.lowest_available)
        self.meter.forget(start)

    def close(self) -> None:
        """End the thread, whatever has happened; `after` does so too."""
        self.meter.stop()

    def after(self) -> tuple[HeatRecord, list[str]]:
        """Temperatures after the rounds, what slowed the device down, and the warning line."""
        self.meter.stop()
        now = look(self.root, self.nvml)
        before = self._heat or now
        signs = throttled(before, now, self.watch)
        record = HeatRecord(
            before=before.celsius,
            after=now.celsius,
            throttled=tuple(signs),
            cpu_mhz=_summary(self.watch.mhz) if self.watch.mhz else None,
        )
        if not signs:
            return record, []
        hottest = now.hottest
        heat = "" if hottest is None else f"; {hottest[0]} is at {hottest[1]:.0f} degrees C"
        return record, [f"the device was slowed down during the rounds: {'; '.join(signs)}{heat}"]

    def energy(self, name: str) -> EnergyRecord:
        """Joules for each generated token of that row, or why there are none."""
        row = self._rows.get(name, _Row(reason="no run was measured"))
        if not row.gross:
            return EnergyRecord(reason=row.reason or "no run was measured")
        idle = self._idle(row)
        return EnergyRecord(
            reason=None,
            source=" + ".join(source.name for source in row.sources),
            covers=covers(row.sources),
            note="; ".join(source.note for source in row.sources if source.note),
            j_per_token=tuple(row.gross),
            gross=_summary(row.gross),
            net=_summary(row.net) if len(row.net) == len(row.gross) else None,
            watts=row.joules / row.seconds,
            idle_watts=idle,
            period_s=self.meter.period_s,
        )

    def memory(self, name: str, session: Any) -> MemoryRecord:
        """What the runtime's process takes now, and took at most where that was watched.

        `name` is the one that it was opened under.
        """
        row, process = self._rows.setdefault(name, _Row()), self._process(session)
        private = mapped = None
        if process.pid is not None:
            private = process_memory.private_mib(self.root, process.pid)
            if row.path is not None:
                mapped = process_memory.mapped_mib(self.root, process.pid, row.path)
        gpu, how = self._gpu(row, process, session.info.backend)
        unified = None
        if self.jetson and row.taken_open is not None:
            unified = max(row.taken_open, 0.0) + process.taken
        return MemoryRecord(private, mapped, gpu, unified, how)

    def describe(self) -> str:
        """What the energy of a row covers, for the settings of the record."""
        if not self.meter.sources:
            reasons = {self.power.processor_reason, self.power.gpu_reason} - {""}
            return f"not measured: {'; '.join(sorted(reasons))}"
        return (
            "decode alone, without the prompt; everything that the source covers, all programs; "
            "net is less the idle power, measured before the first file was opened"
        )

    def _integrate(self, row: _Row, timing: Timing, end: float) -> None:
        if not row.sources or timing.generate == 0:
            row.reason = row.reason or "no token was generated"
            return
        start = end - timing.decode_s
        try:
            joules = sum(
                self.meter.joules(self.meter.sources.index(source), start, end)
                for source in row.sources
            )
        except ProbeFaultError as error:
            row.reason = str(error)
            return
        row.joules += joules
        row.seconds += timing.decode_s
        row.gross.append(joules / timing.generate)
        idle = self._idle(row)
        if idle is not None:
            row.net.append((joules - idle * timing.decode_s) / timing.generate)

    def _idle(self, row: _Row) -> float | None:
        watts = [self.idle_watts.get(source) for source in row.sources]
        known = [value for value in watts if value is not None]
        return sum(known) if known and len(known) == len(watts) else None

    def _process(self, session: Any) -> _Process:
        pid = getattr(session, "pid", None)
        return self._processes.setdefault(id(session) if pid is None else pid, _Process(pid))

    def _device_memory(self) -> tuple[float | None, float | None]:
        """MiB that are free for programs, and that are in use on the GPU."""
        used = process_memory.gpu_used_mib(self.nvml) if self.nvml is not None else None
        return process_memory.available_mib(self.root), used

    def _gpu(self, row: _Row, process: _Process, backend: str) -> tuple[float | None, str]:
        if self.jetson:
            return None, "one memory for both processors: see unified_mib"
        if not on_nvidia(backend):
            return None, "the runtime computes on the processor"
        if self.nvml is None:
            return None, f"not measured: {self.power.gpu_reason}"
        if process.gpu_listed is not None:
            return process.gpu_listed, "the process, by NVML"
        if row.gpu_opened is not None and row.gpu_opened > 0:
            return row.gpu_opened, "what the GPU's memory lost by opening it, by NVML"
        return None, "not measured: NVML does not list the process"

    def _also(self) -> None:
        """At every reading within a run: the extremes of memory, and now and then the clocks."""
        process = self._inside
        if process is None:
            return
        self._ticks += 1
        if self._ticks % LOOK_EVERY == 0:
            self.watch.look()
        if self.jetson:
            free = process_memory.available_mib(self.root)
            if free is not None:
                process.lowest_available = min(process.lowest_available or free, free)
        if self.nvml is not None and process.pid is not None:
            listed = process_memory.gpu_used_by_mib(self.nvml, process.pid)
            if listed is not None:
                process.gpu_listed = max(process.gpu_listed or 0.0, listed)


def _summary(values: list[float]) -> SummaryRecord:
    found = median_interval(values)
    return SummaryRecord(found.median, found.low, found.high, found.n, found.confidence)
