"""Memory, utilisation, energy and NVLinks of GPUs, through NVML (the package nvidia-ml-py)."""

from __future__ import annotations

import contextlib
import importlib
from types import ModuleType
from typing import Any, NamedTuple

MILLIJOULE = 1e-3
KIB = 2**10
"""Bytes in the unit of NVLink's counters of data."""


class GpuSample(NamedTuple):
    """What a GPU does at one moment.

    Attributes:
        memory: bytes in use, by all processes on it.
        utilisation: share of the last moments, up to a second, in which a kernel ran, in [0, 1].
    """

    memory: int
    utilisation: float


class Gpu:
    """A GPU, by NVML.

    Args:
        nvml: the module pynvml, initialised.
        handle: NVML's, of the GPU.
    """

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def energy(self) -> int | None:
        """Millijoules since the driver was loaded; None if it does not count them (before Volta, MIG)."""
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError:
            return None

    def sample(self) -> GpuSample | None:
        """What it does now; None if NVML does not know."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
            busy = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
        except self._nvml.NVMLError:
            return None
        return GpuSample(int(memory), busy / 100)

    def nvlinks(self) -> list[int]:
        """The numbers of its active NVLinks."""
        active = []
        for link in range(self._nvml.NVML_NVLINK_MAX_LINKS):
            # NVML has an error for the numbers that this GPU lacks.
            with contextlib.suppress(self._nvml.NVMLError):
                if self._nvml.nvmlDeviceGetNvLinkState(self._handle, link):
                    active.append(link)
        return active

    def nvlink_bytes(self) -> int | None:
        """Bytes of data sent over its active NVLinks, rounded down to KiB for each; None if not counted."""
        links = self.nvlinks()
        fields = [(self._nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, link) for link in links]
        try:
            values = self._nvml.nvmlDeviceGetFieldValues(self._handle, fields)
        except self._nvml.NVMLError:
            return None
        if any(value.nvmlReturn != self._nvml.NVML_SUCCESS for value in values):
            return None
        return KIB * sum(int(value.value.ullVal) for value in values)


def load_nvml() -> ModuleType | None:
    """The module pynvml; None if nvidia-ml-py is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def open_gpu(uuid: str) -> Gpu | None:
    """The GPU with this UUID, as torch has it; None without nvidia-ml-py, driver or such a GPU."""
    nvml = load_nvml()
    if nvml is None:
        return None
    try:
        nvml.nvmlInit()
        return Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except nvml.NVMLError:
        return None


def nvlink_bytes() -> dict[int, int | None]:
    """Bytes of data sent over the NVLinks of each GPU that has active ones, by NVML's number of the GPU.

    None for a GPU that does not count them; empty without nvidia-ml-py, driver or NVLink.
    """
    nvml = load_nvml()
    if nvml is None:
        return {}
    try:
        nvml.nvmlInit()
        gpus = [Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return {}
    return {number: gpu.nvlink_bytes() for number, gpu in enumerate(gpus) if gpu.nvlinks()}
