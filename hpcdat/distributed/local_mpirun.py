"""Local workers, started by hpcdat itself with mpirun."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hpcdat.distributed.stop_signals import LAUNCHERS_SIGNAL, StopRequest
from hpcdat.errors import Exit, InputError, first_line, shorten
from hpcdat.progress import ON_TERMINAL

ALLOCATIONS = (
    *("SLURM_JOBID", "SLURM_NODELIST", "SLURM_JOB_NODELIST", "SLURM_TASKS_PER_NODE", "SLURM_STEP_"),
    *("PBS_ENVIRONMENT", "PBS_JOBID", "PBS_NODEFILE", "PE_HOSTFILE", "FLUX_JOB_", "LSB_"),
)
"""Beginnings of the variables in which mpirun finds the nodes of an allocation."""
PLACES = ("OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "PMIX_", "PMI_", "SLURM_PROCID", "FLUX_TASK_")
"""Beginnings of the variables that state a process's place among the workers of a launcher."""
SHARED_MEMORY, SHARED_BYTES = "/dev/shm", 2**24  # noqa: S108
"""Where Open MPI puts the messages between local workers, and how much of it each worker takes."""
MPIRUN_FILES = "PRTE_MCA_prte_tmpdir_base"
"""Variable that names the folder for mpirun's own files."""
SECONDS_BETWEEN_CHECKS = 5.0
"""How often mpirun is checked for workers."""
CHECKS_WITHOUT_WORKERS, CHECKS_AFTER_REQUEST = 120, 3
"""How many checks in a row may find no worker: usually, and once a stop was requested."""
SECONDS_FOR_NAME = 5.0
"""How long this machine's name may take to resolve without a message."""


def launch_local(workers: int, arguments: Sequence[str], *, on_terminal: bool) -> int:
    """Run ``hpcdat ARGUMENTS`` in several processes on this machine, and wait for them.

    Ctrl-C, SIGTERM and SIGUSR2 request the workers to stop after the current step; a second Ctrl-C ends them
    immediately.

    Args:
        workers: number of processes.
        arguments: of hpcdat, without the number of workers.
        on_terminal: whether the workers' output goes to a terminal.

    Returns:
        The exit code of the workers.

    Raises:
        InputError: there is no mpirun, or no folder for temporary files.
    """
    check_temporary_folder()
    # Open MPI otherwise spends a second per start scanning for networks that local workers do not use.
    environment = (
        {"OMPI_MCA_btl": "^ofi,openib"} | folder_of_messages(workers) | local_environment(os.environ)
    )
    if on_terminal:
        environment[ON_TERMINAL] = "1"
    command = mpirun_command(workers, [sys.executable, "-m", "hpcdat", *arguments])
    # mpirun names its files by its process number, and does not start where a killed one of that number has
    # left some.
    with tempfile.TemporaryDirectory(prefix="hpcdat-mpirun-", ignore_cleanup_errors=True) as folder:
        return _run(command, {MPIRUN_FILES: folder} | environment)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run mpirun with such an environment, pass requests to stop on to it, and return its exit code."""
    with passing_on_requests(_terminate) as requests:
        # In its own session, so that the terminal's Ctrl-C reaches only this process.
        mpirun = requests.pass_to(
            subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_parent)
        )
        # After the fork, which other threads could disturb.
        warn_of_slow_name()
        code = _wait(mpirun, requests)
    if code is None:
        resumes = "; the same command resumes" if requests.any else ""
        why = f"mpirun went on without any worker and was killed: how the workers ended is unknown{resumes}"
        print(f"hpcdat: {why}", file=sys.stderr, flush=True)
        return Exit.STOPPED_RESUMABLE if requests.any else Exit.FAILURE
    if code < 0:
        code = 128 - code
    if requests.any and code == 128 + LAUNCHERS_SIGNAL:
        # The request has ended mpirun, or a worker, that did not handle the signal yet.
        return Exit.STOPPED_RESUMABLE
    return code


def _terminate(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()


def _wait(mpirun: subprocess.Popen[bytes], requests: Requests) -> int | None:
    """Wait for mpirun, or kill it if it goes on without workers; its exit code, or None.

    Open MPI 5.0.10's mpirun hangs, and handles no signals, if a worker ends while another one connects to it.
    """
    without = 0
    while without < (CHECKS_AFTER_REQUEST if requests.any else CHECKS_WITHOUT_WORKERS):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return mpirun.wait(SECONDS_BETWEEN_CHECKS)
        without = 0 if workers_of(mpirun.pid) else without + 1
        # While it starts, mpirun passes requests on to nobody.
        requests.repeat()
    mpirun.kill()
    mpirun.wait()
    return None


def workers_of(mpirun: int) -> int:
    """How many workers of a local mpirun are running.

    Args:
        mpirun: number of its process.
    """
    import psutil

    running = 0
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(mpirun).children():
            with contextlib.suppress(psutil.Error):
                running += child.status() != psutil.STATUS_ZOMBIE
    return running


class Requests:
    """Requests to stop that this process has received, and passes on.

    Args:
        end: ends processes immediately, at a second Ctrl-C.

    Attributes:
        any: whether there was one.
        ending: whether there was a second Ctrl-C.
        processes: to which they are passed on, as SIGUSR2.
    """

    def __init__(self, end: Callable[[Sequence[subprocess.Popen[bytes]]], object]) -> None:
        self.any = self.ending = False
        self.processes: list[subprocess.Popen[bytes]] = []
        self._end = end

    def pass_to(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Pass requests on to a process that has just been started, also earlier ones.

        Args:
            process: workers, or the mpirun that passes them on to its workers.

        Returns:
            The process.
        """
        self.processes.append(process)
        if self.ending:
            self._end([process])
        elif self.any:
            process.send_signal(LAUNCHERS_SIGNAL)
        return process

    def receive(self, number: int, frame: object) -> None:
        """Handle a signal that requests a stop."""
        if self.any and number == signal.SIGINT:
            self.ending = True
            self._end(self.processes)
            return
        self.any = True
        if number == signal.SIGINT:
            print(
                "\nstopping after this step; press Ctrl-C again to end immediately",
                file=sys.stderr,
                flush=True,
            )
        self.repeat()

    def repeat(self) -> None:
        """Pass on once more that a stop was requested, if it was."""
        if self.any:
            for process in self.processes:
                process.send_signal(LAUNCHERS_SIGNAL)


@contextlib.contextmanager
def passing_on_requests(
    end: Callable[[Sequence[subprocess.Popen[bytes]]], object],
) -> Iterator[Requests]:
    """Receive requests to stop; enter before starting the workers, so that none is lost.

    Args:
        end: as for :class:`Requests`.
    """
    requests = Requests(end)
    before = {number: signal.signal(number, requests.receive) for number in StopRequest.SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent dies."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, number)


def local_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would have mpirun start workers on other machines.

    Within an allocation of Slurm or another resource manager, mpirun distributes workers over its nodes. All
    other variables stay: jobs and sites use them.
    """
    return {
        name: value
        for name, value in environ.items()
        if "_MCA_" in name or not name.startswith((*ALLOCATIONS, *PLACES))
    }


def folder_of_messages(workers: int) -> dict[str, str]:
    """The variable that has Open MPI exchange messages in the temporary folder, if /dev/shm is too small."""
    try:
        fits = shutil.disk_usage(SHARED_MEMORY).free >= workers * SHARED_BYTES
    except OSError:
        fits = False
    return {} if fits else {"OMPI_MCA_btl_sm_backing_directory": tempfile.gettempdir()}


def check_temporary_folder() -> None:
    """Check that mpirun and the workers can write temporary files.

    Raises:
        InputError: they cannot.
    """
    # Python would use another folder in place of TMPDIR without a word, mpirun would not start.
    folder = os.environ.get("TMPDIR")
    try:
        with tempfile.TemporaryFile(dir=folder or None) as file:
            file.write(bytes(4096))
    except OSError as error:
        where = f"TMPDIR={shorten(folder)}" if folder else "the folder for temporary files"
        raise InputError(
            f"{where}: cannot be written ({error.strerror or first_line(error)}): several workers need it; "
            "set TMPDIR to a folder that exists, can be written and has space"
        ) from None


def warn_of_slow_name() -> None:
    """Say so if this machine's name does not resolve soon: mpirun and MPI wait for it, several times."""
    name = socket.gethostname()

    def warn() -> None:
        print(
            f"hpcdat: the start takes long because this machine's name, {name}, does not resolve within "
            f"{SECONDS_FOR_NAME:g} s: add it to /etc/hosts",
            file=sys.stderr,
            flush=True,
        )

    timer = threading.Timer(SECONDS_FOR_NAME, warn)
    timer.daemon = True
    timer.start()

    def resolve() -> None:
        with contextlib.suppress(OSError):
            socket.gethostbyname(name)
        timer.cancel()

    threading.Thread(target=resolve, name="resolve", daemon=True).start()


def mpirun_command(workers: int, program: Sequence[str]) -> list[str]:
    """The command line that starts a program once for every worker, on this machine.

    It uses the mpirun of this environment, or else the one on PATH.

    Raises:
        InputError: neither exists.
    """
    mpirun = find_mpirun()
    if mpirun is None:
        raise InputError(
            "engine: horovod: several workers need mpirun, which is neither in the environment nor on PATH; "
            "set engine: torch, or auto"
        )
    command = [mpirun, "-np", str(workers), "--host", f"localhost:{workers}"]
    command += ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    return [*command, *program]


def find_mpirun() -> str | None:
    """The mpirun of this environment, or else the one on PATH; None if there is neither."""
    local = Path(sys.executable).parent / "mpirun"
    return str(local) if local.exists() else shutil.which("mpirun")
