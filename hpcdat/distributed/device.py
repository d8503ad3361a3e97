"""The device that a worker computes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.distributed.communicator import Communicator
from hpcdat.errors import InputError, shorten

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""Exists on a node with an NVIDIA driver."""
INSTEAD_OF_SHARING = "start as many workers there as it has GPUs, or set device: cpu"
"""What to do where :func:`why_not_shared` says why."""


def choose_device(job: EvaluationJob, workers: Communicator) -> torch.device:
    """The device of a job's worker; see :func:`device_for`."""
    return device_for(job.device, workers)


def device_for(setting: Literal["auto", "cpu", "cuda"], workers: Communicator) -> torch.device:
    """This worker's GPU, or the CPU with its share of the cores.

    Workers of a node take its visible GPUs in turn, and share them where there are fewer.

    Args:
        setting: ``device`` of a job.
        workers: all workers.

    Raises:
        InputError: a GPU is requested and none is available, or all workers would use the first of several
            MIG instances.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    hint = why_no_gpu() if gpus == 0 else ""
    if setting == "cuda" and gpus == 0:
        raise InputError(f"device: cuda: torch finds no usable GPU{hint and ': '}{hint}")
    if setting != "cpu" and gpus:
        _check_mig(workers)
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


def check_own_gpus(device: torch.device, workers: Communicator) -> None:
    """Check that no workers which NCCL connects share a GPU; all workers call this together.

    Args:
        device: of this worker; of the same type on all.
        workers: that exchange tensors of their GPUs.

    Raises:
        InputError: some do.
    """
    if device.type != "cuda" or not workers.nccl:
        return
    here = [rank for rank, node in enumerate(workers.node_of) if node == workers.node_of[workers.rank]]
    # A launcher may show each worker one GPU only, under the same number.
    own = str(torch.cuda.get_device_properties(device).uuid)
    taken = workers.exchange_objects(own, here, "GPUs of the node")

    def check() -> None:
        if shared := why_not_shared(taken):
            raise InputError(f"{workers.host}: {shared}: {INSTEAD_OF_SHARING}")

    workers.on_all_ranks("use a GPU of its own", check)


def why_not_shared(taken: Sequence[str]) -> str:
    """Why NCCL cannot connect the workers of a node that take these GPUs; empty if each has its own."""
    if len(set(taken)) == len(taken):
        return ""
    gpus = "1 GPU" if len(set(taken)) == 1 else f"{len(set(taken))} GPUs"
    return f"{len(taken)} workers share {gpus}, and NCCL needs one for each"


def _check_mig(workers: Communicator, environ: Mapping[str, str] = os.environ) -> None:
    names = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.startswith("MIG-")]
    if len(names) > 1 and workers.local_size > 1:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES names {len(names)} MIG instances, of which a process can use only the "
            "first: let the launcher give each worker one, as srun --gpus-per-task=1 does"
        )


def same_gpu() -> Callable[[], None]:
    """What a new thread calls to have the current GPU of this one, which CUDA keeps for each thread.

    A new thread has GPU 0, and libraries that restore the current GPU after a call, as Horovod does, would
    start a context of this process there, which takes some hundred MiB of its memory.
    """
    if not torch.cuda.is_initialized():
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())


def synchronize(device: torch.device) -> None:
    """Wait for all queued work of a GPU; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
