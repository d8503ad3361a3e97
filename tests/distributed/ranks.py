"""How real workers are started over real transports."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from hpcdat.distributed.local_mpirun import MPIRUN_FILES
from tests.conftest import CHECKOUT

BIN = Path(sys.executable).parent
TRANSPORTS = {"MPI": ("horovod", "MPI"), "Gloo": ("horovod", "Gloo"), "torch": ("torch", "Gloo")}
"""Engine and transport by a team's name; its launcher is mpirun, horovodrun or torchrun."""
OUTER = (
    "SLURM",
    "OMPI",
    "PMIX",
    "HOROVOD",
    "TORCHELASTIC",
    "RANK",
    "WORLD_SIZE",
    "MASTER_",
)
"""Beginnings of variables that workers do not get."""
FILES_OF_MPIRUN = tempfile.TemporaryDirectory(prefix="hpcdat-tests-", ignore_cleanup_errors=True)


def environment():
    """Nothing of an outer launcher or Slurm allocation; one thread a worker, so that all compute alike.

    Open MPI does not look for networks that are not here, which would take a second of each start, and each
    mpirun has a folder of its own, where none that was killed has left files.
    """
    files = tempfile.mkdtemp(dir=FILES_OF_MPIRUN.name)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(OUTER)}
    alike = {"PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return clean | alike | {"OMPI_MCA_btl": "^ofi", MPIRUN_FILES: files}


def launcher(transport, size):
    """The command in front of a worker's command."""
    if size == 1:
        return []
    if transport == "torch":
        return [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(size), "--no-python"]
    if transport == "Gloo":
        return [str(BIN / "horovodrun"), "--gloo", "-np", str(size), "-H", f"localhost:{size}"]
    mpirun = [str(BIN / "mpirun"), "-np", str(size), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    return mpirun + (["--allow-run-as-root"] if os.geteuid() == 0 else [])


def on(*teams, full=()):
    """Run a test on each of these teams, as ``team``: ``"MPI 2"``, or ``"Gloo 4 divisible"``.

    ``full``: teams of ``make test-full`` alone.
    """
    more = [pytest.param(team, marks=pytest.mark.full) for team in full]
    return pytest.mark.parametrize("team", [*teams, *more], indirect=True)
