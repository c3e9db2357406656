"""How OpenMP's threads wait at a barrier: briefly awake, then asleep, unless the user says how.

By default the threads of libgomp and of Intel's and LLVM's OpenMP stay awake at every barrier for a
long time, and a barrier waits for a thread that has no core: beside one busy program llama.cpp's
decode fell from 145 to 180 tokens/s to 2 to 6 on one machine. Threads that sleep at once are three
times slower when it is quiet. A short spin is good at both (the tables are in docs/LOG.md).

Each runtime reads its variable once, when it is loaded: it has to stand in the environment before
torch is imported, and before a child process starts. Only the standard library is imported here.

>>> spin_briefly({"OMP_WAIT_POLICY": "active"})
{}
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

SHORT_SPIN = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""libgomp counts turns of a loop, Intel's and LLVM's OpenMP count milliseconds"""
WAITING = (*SHORT_SPIN, "OMP_WAIT_POLICY", "KMP_LIBRARY", "MKL_BLOCKTIME")
"""every variable by which a user may have said how threads wait"""


def in_force(environment: Mapping[str, str]) -> dict[str, str]:
    """The waiting variables that are set, with their values; an empty value counts as not set."""
    return {name: environment[name] for name in WAITING if environment.get(name, "").strip()}


def short_spin(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add for a short spin; none where the user has chosen his own waiting."""
    return {} if in_force(environment) else dict(SHORT_SPIN)


def spin_briefly(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Set the short spin in `environment` unless the user has set his own; returns what was set."""
    added = short_spin(environment)
    environment.update(added)
    return added


def warning(environment: Mapping[str, str]) -> str | None:
    """What to tell a user whose own choice makes everything slower, or None."""
    if environment.get("OMP_WAIT_POLICY", "").strip().lower() != "passive":
        return None
    if environment.get("GOMP_SPINCOUNT", "").strip():  # it counts more than the policy in libgomp
        return None
    return (
        "OMP_WAIT_POLICY=PASSIVE is set: on a quiet machine decoding was measured to be three "
        "times slower with it; unset it, and threads spin briefly instead"
    )
