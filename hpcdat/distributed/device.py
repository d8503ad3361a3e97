"""The device that a worker computes on."""

from __future__ import annotations

import os

import torch

from hpcdat.config.job import Job
from hpcdat.distributed.communicator import Communicator
from hpcdat.errors import InputError


def choose_device(job: Job, workers: Communicator) -> torch.device:
    """This worker's GPU, or the CPU with its share of the cores.

    Raises:
        InputError: the job requests a GPU and none is available.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if job.device == "cuda" and gpus == 0:
        raise InputError("device: cuda: torch finds no usable GPU")
    if job.device != "cpu" and gpus:
        device = torch.device("cuda", workers.local_rank % gpus)
        torch.cuda.set_device(device)
        return device
    if "OMP_NUM_THREADS" in os.environ:
        # Set explicitly by the user or the launcher.
        return torch.device("cpu")
    mine, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    # A launcher that binds each worker to its own cores has already divided them.
    bound = mine < all_cores
    torch.set_num_threads(mine if bound else max(1, mine // workers.local_size))
    return torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait for all queued work of a GPU; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
