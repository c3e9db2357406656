"""What the probes found, in words: energy, memory and heat of a bench, one line each.

>>> from clp_edge.records import EnergyRecord
>>> energy_words(EnergyRecord(reason="no INA3221 power rails in sysfs"))
'not measured: no INA3221 power rails in sysfs'
"""

from __future__ import annotations

from clp_edge.records import BenchRecord, EnergyRecord, MemoryRecord


def lines(record: BenchRecord) -> list[str]:
    """Energy with what it covers, memory by file, temperatures; nothing that was not looked at."""
    told = [*_energy(record), *_memory(record)]
    if record.heat is not None and record.heat.after:
        zone, after = max(record.heat.after.items(), key=lambda item: item[1])
        before = record.heat.before.get(zone)
        start = "" if before is None else f"{before:.0f} to "
        told.append(f"temperature: {zone} {start}{after:.0f} degrees C, the hottest at the end")
    return told


def energy_words(energy: EnergyRecord) -> str:
    """Gross and net joules for a token with their source, or why there are none."""
    if energy.gross is None:
        return f"not measured: {energy.reason}"
    gross, net, idle = energy.gross, energy.net, energy.idle_watts
    less = (
        "net not measured"
        if net is None or idle is None
        else f"net of {idle:.1f} W idle {net.median:.3f} ({net.low:.3f} to {net.high:.3f})"
    )
    return f"{gross.median:.3f} J a token ({gross.low:.3f} to {gross.high:.3f}), {less}"


def memory_words(memory: MemoryRecord) -> str:
    """What a process took, part by part; empty where nothing of it could be read."""
    parts = (
        (memory.private_mib, "private"),
        (memory.mapped_weights_mib, "of mapped weights (page cache)"),
        (memory.gpu_mib, f"on the GPU ({memory.gpu_source})"),
        (memory.unified_mib, "less available in the one memory"),
    )
    return ", ".join(f"{value:.0f} MiB {what}" for value, what in parts if value is not None)


def _energy(record: BenchRecord) -> list[str]:
    found = [(run.artifact, run.energy) for run in record.runs if run.energy is not None]
    measured = [(name, energy) for name, energy in found if energy.gross is not None]
    if not measured:
        reasons = dict.fromkeys(energy.reason for _, energy in found)
        return [f"energy not measured: {reason}" for reason in reasons]
    sources = dict.fromkeys(
        f"{energy.source} ({energy.covers}{f'; {energy.note}' if energy.note else ''}), "
        f"read every {energy.period_s:g} s"
        for _, energy in measured
    )
    covers = f"energy by {'; '.join(sources)}: {record.settings.energy}"
    return [covers, *(f"energy of {name}: {energy_words(energy)}" for name, energy in found)]


def _memory(record: BenchRecord) -> list[str]:
    said = {
        run.artifact: words
        for run in record.runs
        if run.memory is not None and (words := memory_words(run.memory))
    }
    return [f"memory of {name}: {words}" for name, words in said.items()]
