"""Record what NCCL, UCX and Open MPI write about the transports that they take."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcdat.doctor.library_output import Transport, read_nccl, read_open_mpi, read_ucx, without_open_mpi

STDOUT = 1


class LibraryLogs:
    """The debug output of this process's libraries, in files without names."""

    def __init__(self) -> None:
        self._nccl, self._ucx, self._mpi = (os.memfd_create(name) for name in ("nccl", "ucx", "mpi"))
        self._stdout: int | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that have the libraries write."""
        return {
            "NCCL_DEBUG": "INFO",
            "NCCL_DEBUG_SUBSYS": "INIT,ENV",
            "NCCL_DEBUG_FILE": f"/proc/self/fd/{self._nccl}",
            "UCX_LOG_LEVEL": "info",
            "UCX_LOG_FILE": f"/proc/self/fd/{self._ucx}",
            "OMPI_MCA_hook_comm_method_display": "mpi_init",
            "OMPI_MCA_hook_comm_method_brief": "1",
        }

    def take_stdout(self) -> None:
        """Record this process's standard output: Open MPI writes its table there when MPI is initialised."""
        sys.stdout.flush()
        self._stdout = os.dup(STDOUT)
        os.dup2(self._mpi, STDOUT)

    def release_stdout(self) -> None:
        """End that; what was recorded and is not Open MPI's table is written to the standard output."""
        if self._stdout is None:
            return
        # The table is in C's own buffer.
        ctypes.CDLL(None).fflush(None)
        sys.stdout.flush()
        os.dup2(self._stdout, STDOUT)
        os.close(self._stdout)
        self._stdout = None
        print(without_open_mpi(_text(self._mpi)), end="", flush=True)

    def close(self) -> None:
        """Give the files back; the libraries then write to none."""
        self.release_stdout()
        for file in (self._nccl, self._ucx, self._mpi):
            os.close(file)

    def read(self) -> list[Transport]:
        """The transports that the libraries have named so far."""
        found = (read_nccl(_text(self._nccl)), read_ucx(_text(self._ucx)), read_open_mpi(_text(self._mpi)))
        return [transport for transport in found if transport]


def _text(file: int) -> str:
    return Path(f"/proc/self/fd/{file}").read_text(errors="replace")


@contextmanager
def library_logs() -> Iterator[LibraryLogs]:
    """Record the output of the libraries that this process initialises, and its standard output.

    The standard output until :meth:`LibraryLogs.release_stdout` is called.
    """
    logs, before = LibraryLogs(), dict(os.environ)
    os.environ.update(logs.variables)
    logs.take_stdout()
    try:
        yield logs
    finally:
        logs.close()
        for name in logs.variables:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
