"""What the numbers were taken on, and what they cost: device, load, memory, power, temperature.

`device` and `load` look once. `Probes` (in `suite`) goes along with a bench: `before()`, then
`around(name, session)` for each run that counts, then `after()`. Everything is read from files and
from NVML; no setting of the device is ever changed.
"""

from clp_edge.bench.probes.device import DeviceCard, probe
from clp_edge.bench.probes.load import (
    BUSY_SHARE,
    CALM_LIMIT_S,
    Load,
    busy_share,
    busy_warning,
    wait_until_calm,
)
from clp_edge.bench.probes.suite import Probes

__all__ = [
    "BUSY_SHARE",
    "CALM_LIMIT_S",
    "DeviceCard",
    "Load",
    "Probes",
    "busy_share",
    "busy_warning",
    "probe",
    "wait_until_calm",
]
