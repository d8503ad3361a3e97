"""Two runs of pytest at the same time: tests that often wait in front, and tests that compute beside them.

``python -m tests.side_by_side`` is ``make test``, with ``--full`` it is ``make test-full``. Tests with
workers wait for launchers, Slurm and time-outs for about half of the time, in which the others run, at low
priority. The output of the others goes to a log, which is printed when both have ended. The exit code is 0 if
both have passed, and 130 after Ctrl-C, which ends both.
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
LOG = CHECKOUT / "runs" / "beside.log"
QUICK = (
    ["-m", "not full and distributed"],
    ["-m", "not full and not distributed", "--dist", "loadfile"],
)
FULL = (
    ["-m", "full and distributed and not computes"],
    ["-m", "full and (computes or not distributed)", "--dist", "worksteal"],
)
PYTEST = [sys.executable, "-m", "pytest"]
BESIDE = ["nice", "-n", "10", *PYTEST, "-n", "2"]
SECONDS_TO_END = 60


def side_by_side(front: list[str], beside: list[str], log: Path) -> int:
    """Run two commands at the same time.

    Args:
        front: its output is printed as it comes.
        beside: its output is printed when both have ended.
        log: where the latter goes meanwhile.

    Returns:
        0 if both have ended with 0, else the exit code of one that has not.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # In sessions of their own, a terminal's Ctrl-C reaches neither: each gets it once, from here.
    with log.open("wb") as output:
        started = [subprocess.Popen(beside, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)]
    try:
        started.append(subprocess.Popen(front, start_new_session=True))
        codes = [process.wait() for process in started]
    finally:
        end(started)
    print(f"\n{log}:", flush=True)
    sys.stdout.buffer.write(log.read_bytes())
    return next((code for code in codes if code), 0)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End those that still run, by the signal after which pytest leaves nothing behind."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(SECONDS_TO_END)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


def end_on_signals() -> None:
    """Let SIGINT and SIGTERM interrupt this process, even if it was started with SIGINT ignored.

    Programs that it starts do not inherit a handler, but would inherit that a signal is ignored.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def main() -> int:
    """Run the tests."""
    parser = argparse.ArgumentParser(prog="python -m tests.side_by_side", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the slow tests")
    front, beside = FULL if parser.parse_args().full else QUICK
    end_on_signals()
    try:
        return side_by_side([*PYTEST, *front], [*BESIDE, *beside], LOG)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
