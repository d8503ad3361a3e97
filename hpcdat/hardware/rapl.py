"""Energy of a node's processors and memory: RAPL, as Linux shows it in /sys/class/powercap.

The counters are those of the whole node: they include other programs. ``package`` is a processor with its
cores, caches and graphics; ``dram`` is its memory, which many processors do not measure. Linux lets only root
read them unless an administrator permits more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from hpcdat.hardware.energy_meter import EnergyMeter, total

POWERCAP = Path("/sys/class/powercap")
MICROJOULE = 1e-6

Domain = Literal["package", "dram"]
DOMAINS: tuple[Domain, ...] = ("package", "dram")


class Zone(NamedTuple):
    """A counter of energy.

    Attributes:
        domain: what it measures.
        file: the counter, microjoules.
        wraps_at: its largest value.
    """

    domain: Domain
    file: Path
    wraps_at: int

    def read(self) -> int | None:
        """The counter; None if it cannot be read."""
        try:
            return int(self.file.read_text())
        except (OSError, ValueError):
            return None


def find_zones(powercap: Path = POWERCAP) -> list[Zone]:
    """The counters of this node's processors and memory, readable or not.

    Cores and graphics are parts of a package, ``psys`` contains the packages, and ``intel-rapl-mmio`` counts
    the same energy: these are left out, so that nothing counts twice.
    """
    zones = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            wraps_at = int((folder / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
        domain: Domain | None = (
            "package" if name.startswith("package") else "dram" if name == "dram" else None
        )
        if domain and wraps_at > 0:
            zones.append(Zone(domain, folder / "energy_uj", wraps_at))
    return zones


class NodeEnergy:
    """The energy of a node's processors and memory.

    Args:
        zones: its counters.
        clock: seconds.
    """

    def __init__(self, zones: Sequence[Zone], clock: Callable[[], float] = time.monotonic) -> None:
        self._meters: dict[Domain, list[EnergyMeter]] = {domain: [] for domain in DOMAINS}
        for zone in zones:
            meter = EnergyMeter(zone.read, MICROJOULE, zone.wraps_at, clock)
            self._meters[zone.domain].append(meter)

    def begin(self) -> None:
        """Start measuring."""
        for meters in self._meters.values():
            for meter in meters:
                meter.begin()

    def sample(self) -> None:
        """Read all counters, so that none wraps twice."""
        for meters in self._meters.values():
            for meter in meters:
                meter.sample()

    def take(self) -> dict[Domain, float | None]:
        """Joules of each domain since :meth:`begin` or the last call; None if a counter is missing."""
        taken = {domain: [meter.take() for meter in meters] for domain, meters in self._meters.items()}
        return {domain: total(parts) for domain, parts in taken.items()}
