"""Decide whether a Slurm job that has ended is requeued; called by the batch script.

``python -m hpcdat.slurm.preemption RUN CODE WARNED COMMAND`` exits with 0 to requeue. A job that
failed, or stopped after Slurm's warning, is requeued if the run has advanced since the job last ended. A job
that always fails at the same step, or whose time limit is too short for an evaluation, is therefore not
requeued forever.

Some launchers forward neither signals nor exit codes (horovodrun forwards neither), so the batch script and
worker 0 communicate through files in the run folder: :func:`connected_to_batch_script`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import Exit, HpcdatError
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder


@contextlib.contextmanager
def connected_to_batch_script(run_dir: Path, stop: StopRequest) -> Iterator[None]:
    """Inside the block, stop when the batch script requests it, and write the exit code of an error for it.

    Outside a Slurm job this does nothing.

    Args:
        run_dir: of the run.
        stop: worker 0's stop request.
    """
    job, folder = os.environ.get("SLURM_JOB_ID"), RunFolder(run_dir).slurm_folder
    if job is None or not folder.exists():
        yield
        return
    stop.watch(folder / f"stop-{job}")
    try:
        yield
    except HpcdatError as error:
        with contextlib.suppress(OSError):
            write_text(folder / f"code-{job}", str(int(error.exit_code)))
        raise


def decide(run_dir: Path, code: int, *, warned: bool, command: str = "train") -> tuple[bool, str]:
    """Decide whether to requeue, and append this end of the job to ``ends.jsonl`` next to its script.

    Args:
        run_dir: of the run.
        code: exit code of the launcher; the code that worker 0 has written takes precedence.
        warned: whether Slurm had announced the time limit.
        command: that the workers have run: ``train``, ``evaluate`` or ``certify``.

    Returns:
        The decision and its reason.
    """
    folder, job = RunFolder(run_dir).slurm_folder, os.environ.get("SLURM_JOB_ID")
    if code != Exit.DONE:
        with contextlib.suppress(OSError, ValueError):
            code = int((folder / f"code-{job}").read_text())
    if code == Exit.DONE:
        return False, "the run is done"
    if code == Exit.WRONG_INPUT:
        return False, "invalid input"
    stopped = code == Exit.STOPPED_RESUMABLE
    if stopped and not warned:
        return False, "stopped on request; submit the same script with sbatch to resume"
    position = progress(run_dir) if command == "train" else measured(run_dir)
    ends = folder / "ends.jsonl"
    # An unterminated line was being written when the node was lost.
    lines = [json.loads(line) for line in ends.read_text().split("\n")[:-1]] if ends.exists() else []
    end = {"time": time.time(), "job": job, "code": code, "place": position}
    where = _describe(position, command)
    stop = "stopped with a checkpoint" if command == "train" else "stopped"
    event = f"{stop}: {where}" if stopped else f"failed (code {code}): {where}"
    try:
        ends.parent.mkdir(parents=True, exist_ok=True)
        write_text(ends, "".join(json.dumps(each) + "\n" for each in [*lines, end]))
    except OSError as error:
        return False, f"{event}; {ends} cannot be written: {error.strerror}"
    earlier = [each for each in lines if each["job"] == job]
    if earlier and earlier[-1]["place"] == position:
        hint = "the time limit is too short for the next step or evaluation; " if stopped else ""
        return False, f"{event}, no further than the previous time; {hint}see {ends}"
    return True, f"{event}; it resumes from there"


def progress(run_dir: Path) -> list[int] | None:
    """Epoch and step of the newest readable checkpoint; None if there is none."""
    try:
        checkpoint = RunFolder(run_dir).newest_checkpoint()
    except HpcdatError:
        return None
    return [checkpoint.epoch, checkpoint.step]


def measured(run_dir: Path) -> list[int]:
    """Number of stored outcomes of evaluations and certifications, as a list of one."""
    run = RunFolder(run_dir)
    files = [
        file for folder in (run.outcomes_folder, run.certification_folder) for file in folder.glob("*.jsonl*")
    ]
    # The first line of a file that is no part is its key.
    return [sum(file.read_bytes().count(b"\n") - (file.suffix == ".jsonl") for file in files)]


def _describe(position: list[int] | None, command: str) -> str:
    if position is None:
        return "before the first checkpoint"
    if command == "train":
        return f"epoch {position[0]}, step {position[1]}"
    return f"{position[0]} stored outcomes"


def main() -> None:
    """Entry point for the batch script."""
    # Scripts of earlier versions give no command.
    run_dir, code, warned, command = [*sys.argv[1:], "train"][:4]
    requeue, reason = decide(Path(run_dir), int(code), warned=warned == "yes", command=command)
    print(f"hpcdat: {'requeue' if requeue else 'no requeue'}: {reason}", file=sys.stderr)
    raise SystemExit(0 if requeue else 1)


if __name__ == "__main__":
    main()
