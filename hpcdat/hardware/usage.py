"""What the workers of a run use: each measures its part, and the parts are added up."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from hpcdat.hardware.energy_meter import EnergyMeter, total
from hpcdat.hardware.nvml import MILLIJOULE, Gpu, GpuSample, load_nvml, open_gpu
from hpcdat.hardware.rapl import DOMAINS, POWERCAP, NodeEnergy, find_zones

SECONDS_BETWEEN_SAMPLES = 10.0
"""Shortest time between two readings: RAPL's counters wrap after two minutes or more."""

Part = tuple[str, str, float | None]
"""Energy that one worker has measured: kind, source and joules; the same source is not counted twice."""


class Energy(NamedTuple):
    """Energy of all workers together, joules; None where a part was not measured."""

    gpu: float | None
    package: float | None
    dram: float | None


class Usage:
    """What one worker measures: its GPU, and the processors of its node if it is the first one there.

    Args:
        gpu: UUID of its GPU; None without one.
        first_on_node: whether it measures the node.
        clock: seconds.
    """

    def __init__(
        self, gpu: str | None, *, first_on_node: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._uuid, self._clock = gpu, clock
        self._gpu: Gpu | None = open_gpu(gpu) if gpu else None
        self._node = NodeEnergy(find_zones(), clock) if first_on_node else None
        self._meter = EnergyMeter(self._gpu.energy, MILLIJOULE, clock=clock) if self._gpu else None
        self.begin()

    def begin(self) -> None:
        """Start measuring."""
        self._samples: list[GpuSample] = []
        self._sampled = self._clock()
        if self._meter:
            self._meter.begin()
        if self._node:
            self._node.begin()

    def step(self) -> None:
        """Read, if the last reading is long enough ago; called once a step."""
        if self._clock() - self._sampled < SECONDS_BETWEEN_SAMPLES:
            return
        self._sample_gpu()
        if self._node:
            self._node.sample()

    def take_energy(self) -> list[Part]:
        """The energy since :meth:`begin` or the last call."""
        self._sample_gpu()
        parts: list[Part] = []
        if self._uuid:
            parts.append(("gpu", self._uuid, self._meter.take() if self._meter else None))
        if self._node:
            parts += [(domain, self._machine, joules) for domain, joules in self._node.take().items()]
        return parts

    def gpu_sample(self) -> GpuSample | None:
        """Largest memory and mean utilisation since :meth:`begin`; None if not measured."""
        if not self._samples:
            return None
        memory, utilisation = zip(*self._samples, strict=True)
        return GpuSample(max(memory), fmean(utilisation))

    def _sample_gpu(self) -> None:
        self._sampled = self._clock()
        if self._gpu and (sample := self._gpu.sample()):
            self._samples.append(sample)

    @cached_property
    def _machine(self) -> str:
        """The machine whose counters these are: several emulated nodes have one."""
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return platform.node()


def describe_energy(gpus: Sequence[str], powercap: Path = POWERCAP) -> str:
    """What of this node's energy a run can measure: the empty text if it is everything.

    Args:
        gpus: UUIDs of the GPUs that its workers use.
        powercap: the counters of processors and memory.

    Returns:
        What cannot be measured, and why.
    """
    missing = []
    counted = [gpu for gpu in map(open_gpu, gpus) if gpu and gpu.energy() is not None]
    if len(counted) < len(gpus):
        why = "NVML does not count it" if load_nvml() else "nvidia-ml-py is not installed"
        missing.append(f"GPUs: {why}")
    zones = find_zones(powercap)
    if not zones:
        missing.append(f"processors: there are no counters in {powercap}")
    elif any(zone.read() is None for zone in zones):
        missing.append(f"processors: the counters in {powercap} cannot be read by this user")
    return "; ".join(missing)


def gpu_uuid(device: torch.device) -> str | None:
    """The UUID of a GPU, as NVML has it; None for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def add_up(parts: Sequence[Sequence[Part]]) -> Energy:
    """The energy of all workers, each source once.

    Args:
        parts: of every worker.
    """
    sources = {(kind, source): joules for worker in parts for kind, source, joules in worker}
    kinds = ("gpu", *DOMAINS)
    return Energy(
        *(total([joules for (kind, _), joules in sources.items() if kind == name]) for name in kinds)
    )
