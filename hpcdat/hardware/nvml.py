"""Memory, utilisation and energy of a GPU, through NVML (the package nvidia-ml-py)."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, NamedTuple

MILLIJOULE = 1e-3


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
