"""Local workers, started by hpcdat itself with mpirun."""

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
        InputError: there is no mpirun.
    """
    # Open MPI otherwise spends a second per start scanning for networks that local workers do not use.
    environment = {"OMPI_MCA_btl": "^ofi,openib"} | dict(os.environ)
    if on_terminal:
        environment[ON_TERMINAL] = "1"
    # In its own session, so that the terminal's Ctrl-C reaches only this process.
    mpirun = subprocess.Popen(
        mpirun_command(workers, [sys.executable, "-m", "hpcdat", *arguments]),
        env=environment,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            mpirun.terminate()
            return
        asked = True
        if number == signal.SIGINT:
            print(
                "\nstopping after this step; press Ctrl-C again to end immediately",
                file=sys.stderr,
                flush=True,
            )
        # mpirun forwards this signal to the workers.
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


def _die_with_parent() -> None:
    """Have the kernel terminate this process when its parent dies."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def mpirun_command(workers: int, program: Sequence[str]) -> list[str]:
    """The command line that starts a program once for every worker, on this machine.

    It uses the mpirun of this environment, or else the one on PATH.

    Raises:
        InputError: neither exists.
    """
    local = Path(sys.executable).parent / "mpirun"
    mpirun = str(local) if local.exists() else shutil.which("mpirun")
    if mpirun is None:
        raise InputError("several workers need mpirun, which is neither in the environment nor on PATH")
    command = [mpirun, "-np", str(workers), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    return [*command, *program]
