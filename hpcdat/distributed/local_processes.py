"""Local workers over torch.distributed, started by hpcdat itself as its child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hpcdat.distributed.launcher import RANK, SIZE, STORE
from hpcdat.distributed.local_mpirun import (
    check_temporary_folder,
    die_with_parent,
    local_environment,
    passing_on_requests,
)
from hpcdat.distributed.stop_signals import hold_launchers_request
from hpcdat.errors import Exit
from hpcdat.progress import ON_TERMINAL

SECONDS_TO_FOLLOW = 1.0
"""How long the other workers may take to end by themselves after one has failed."""
SECONDS_BETWEEN_CHECKS = 0.05


def launch_local(workers: int, arguments: Sequence[str], *, on_terminal: bool) -> int:
    """Run ``hpcdat ARGUMENTS`` in several processes on this machine, and wait for them.

    Ctrl-C, SIGTERM and SIGUSR2 request the workers to stop after the current step; a second Ctrl-C ends them
    immediately. If a worker fails, the others are ended.

    Args:
        workers: number of processes.
        arguments: of hpcdat, without the number of workers.
        on_terminal: whether the workers' output goes to a terminal.

    Returns:
        The exit code of the first worker that failed, 128 more than its number for a signal; otherwise 0.

    Raises:
        InputError: there is no folder for temporary files.
    """
    check_temporary_folder()
    with tempfile.TemporaryDirectory(prefix="hpcdat-workers-", ignore_cleanup_errors=True) as folder:
        # They are on one machine, whose name need not resolve, and meet in a file that is the user's alone.
        common = {"GLOO_SOCKET_IFNAME": "lo"} | local_environment(os.environ)
        common |= {SIZE: str(workers), STORE: str(Path(folder, "store"))}
        if on_terminal:
            common[ON_TERMINAL] = "1"
        with passing_on_requests(_kill) as requests:
            try:
                for rank in range(workers):
                    if requests.ending:
                        return Exit.INTERRUPTED
                    # In sessions of their own, so that the terminal's Ctrl-C reaches only this process.
                    process = subprocess.Popen(
                        [sys.executable, "-m", "hpcdat", *arguments],
                        env=common | {RANK: str(rank)},
                        start_new_session=True,
                        preexec_fn=_before_start,
                    )
                    requests.pass_to(process)
                code = _wait(requests.processes)
            finally:
                _kill(requests.processes)
    return Exit.INTERRUPTED if requests.ending else code


def _before_start() -> None:
    die_with_parent(signal.SIGKILL)
    hold_launchers_request()


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all workers, or until one has failed; its exit code, or 0."""
    while True:
        # First: those that end while this looks are seen the next time.
        running = [process for process in processes if process.poll() is None]
        failed = [rank for rank, process in enumerate(processes) if process.returncode]
        if failed:
            return _report(processes, failed)
        if not running:
            return 0
        time.sleep(SECONDS_BETWEEN_CHECKS)


def _report(processes: Sequence[subprocess.Popen[bytes]], failed: Sequence[int]) -> int:
    """Name the workers that a signal has ended, let the others end, and return the first failure's code."""
    for rank in failed:
        number = -processes[rank].returncode
        if number > 0:
            ended = f"was ended by signal {number} ({signal.Signals(number).name})"
            print(
                f"hpcdat: worker {rank} (process {processes[rank].pid}) {ended}", file=sys.stderr, flush=True
            )
    deadline = time.monotonic() + SECONDS_TO_FOLLOW
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(SECONDS_BETWEEN_CHECKS)
    code: int = processes[failed[0]].returncode
    return code if code > 0 else 128 - code


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()
