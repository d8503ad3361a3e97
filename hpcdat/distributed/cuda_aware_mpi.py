"""Whether MPI sends and receives from GPU memory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from hpcdat.distributed.local_mpirun import find_mpirun

SECONDS_TO_ANSWER = 20
"""Longest wait for ompi_info."""
PARAMETER = "mpi_built_with_cuda_support:value:"
"""What precedes the answer in the output of ``ompi_info --parsable``."""


def find_ompi_info() -> str | None:
    """Open MPI's ompi_info: the one beside mpirun, or else the one on PATH; None if there is neither."""
    mpirun = find_mpirun()
    beside = Path(mpirun).with_name("ompi_info") if mpirun else None
    return str(beside) if beside and beside.exists() else shutil.which("ompi_info")


def mpi_is_cuda_aware(ompi_info: str | None = None) -> bool | None:
    """Whether Open MPI was built with support of CUDA, so that its buffers may be in GPU memory.

    Args:
        ompi_info: its program that answers; default: that of :func:`find_ompi_info`.

    Returns:
        None if that is unknown: another MPI, or its program does not answer.
    """
    program = ompi_info or find_ompi_info()
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "--parsable", "--all"], capture_output=True, text=True, timeout=SECONDS_TO_ANSWER
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    answers = [line.rpartition(PARAMETER)[2] for line in done.stdout.splitlines() if PARAMETER in line]
    return answers[0] == "true" if answers else None
