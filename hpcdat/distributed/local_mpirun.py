"""Local workers, started by hpcdat itself: ``-np N``."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcdat.errors import InputError
from hpcdat.progress import ON_TERMINAL


def launch_local(workers: int, arguments: Sequence[str], *, on_terminal: bool) -> int:
    """Run ``hpcdat ARGUMENTS`` in so many processes on this machine, and wait for them.

    Ctrl-C, SIGTERM and SIGUSR2 ask the workers to stop at the end of a step; a second Ctrl-C ends
    them at once.

    Args:
        workers: how many.
        arguments: of hpcdat, without ``-np``.
        on_terminal: whether a person sees the workers' output as it comes.

    Returns:
        The exit code of the workers.

    Raises:
        InputError: there is no mpirun.
    """
    # Open MPI spends a second of each start on looking for networks that no worker on this machine would use.
    environment = {"OMPI_MCA_btl": "^ofi,openib"} | dict(os.environ)
    if on_terminal:
        environment[ON_TERMINAL] = "1"
    # In a session of its own, so that the terminal's Ctrl-C reaches this process alone.
    mpirun = subprocess.Popen(
        mpirun_command(workers, [sys.executable, "-m", "hpcdat", *arguments]),
        env=environment,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            mpirun.terminate()
            return
        asked = True
        if number == signal.SIGINT:
            print("\nstopping after this step; Ctrl-C once more ends it at once", file=sys.stderr, flush=True)
        # mpirun passes this one on to the workers.
        mpirun.send_signal(signal.SIGUSR2)

    before = {
        number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    }
    try:
        code = mpirun.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is killed."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def mpirun_command(workers: int, program: Sequence[str]) -> list[str]:
    """The command line that starts a program once for every worker, on this machine.

    It is the mpirun of this environment, or else the one on PATH.

    Raises:
        InputError: there is neither.
    """
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        raise InputError("-np needs mpirun, which is neither in the environment nor on PATH")
    command = [mpirun, "-np", str(workers), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    return [*command, *program]
