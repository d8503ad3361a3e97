"""The device that a worker computes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.distributed.communicator import Communicator
from hpcdat.errors import InputError, shorten

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""Exists on a node with an NVIDIA driver."""


def choose_device(job: EvaluationJob, workers: Communicator) -> torch.device:
    """The device of a job's worker; see :func:`device_for`."""
    return device_for(job.device, workers)


def device_for(setting: Literal["auto", "cpu", "cuda"], workers: Communicator) -> torch.device:
    """This worker's GPU, or the CPU with its share of the cores.

    Args:
        setting: ``device`` of a job.
        workers: all workers.

    Raises:
        InputError: a GPU is requested and none is available.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    hint = why_no_gpu() if gpus == 0 else ""
    if setting == "cuda" and gpus == 0:
        raise InputError(f"device: cuda: torch finds no usable GPU{hint and ': '}{hint}")
    if setting != "cpu" and gpus:
        device = torch.device("cuda", workers.local_rank % gpus)
        torch.cuda.set_device(device)
        return device
    if hint and setting == "auto" and workers.local_rank == 0:
        print(f"warning: {workers.host} computes on its CPU: {hint}", file=sys.stderr, flush=True)
    # Otherwise set explicitly by the user or the launcher.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(workers.share_of_cores())
    return torch.device("cpu")


def why_no_gpu(environ: Mapping[str, str] = os.environ) -> str:
    """Why torch finds no GPU on a node with an NVIDIA driver; empty if that is unknown or there is none."""
    if not NVIDIA_DRIVER.exists():
        return ""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return "torch cannot use the GPUs of its NVIDIA driver; check the driver's version, see hpcdat doctor"
    return (
        f"CUDA_VISIBLE_DEVICES={shorten(visible)} names none of its GPUs; unset it if it is left over, or "
        "request GPUs from Slurm"
    )


def synchronize(device: torch.device) -> None:
    """Wait for all queued work of a GPU; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
