"""Whether a Slurm job that has ended goes back into the queue; the batch script asks.

``python -m hpcdat.slurm.preemption RUN CODE WARNED`` exits with 0 for yes. Stopped in time after Slurm's
warning, or failed: yes if the run has come further since the job ended the last time, so that a job that
always fails at the same step, or whose time limit is too short for an evaluation, does not come back for
ever.

A launcher may pass on neither a signal nor an exit code (horovodrun does neither), so script and worker 0
tell each other by files in the run folder: :func:`in_touch`.
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
def in_touch(run_dir: Path, stop: StopRequest) -> Iterator[None]:
    """Inside, worker 0 stops when the batch script asks for it; of an error the script is told the exit code.

    Args:
        run_dir: of the run.
        stop: the worker's.
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


def decide(run_dir: Path, code: int, *, warned: bool) -> tuple[bool, str]:
    """Decide, and note the end beside the run's script for the next time.

    Args:
        run_dir: of the run.
        code: that its launcher ended with; what worker 0 has told counts more.
        warned: whether Slurm had announced the time limit.

    Returns:
        The decision, and the reason in words.
    """
    folder, job = RunFolder(run_dir).slurm_folder, os.environ.get("SLURM_JOB_ID")
    if code != Exit.DONE:
        with contextlib.suppress(OSError, ValueError):
            code = int((folder / f"code-{job}").read_text())
    if code == Exit.DONE:
        return False, "the run is done"
    if code == Exit.WRONG_INPUT:
        return False, "wrong input stays wrong"
    stopped = code == Exit.STOPPED_RESUMABLE
    if stopped and not warned:
        return False, "stopped as somebody asked; sbatch of the same script goes on"
    place, notes = progress(run_dir), folder / "ends.jsonl"
    # A line without its end was being written when the node was lost.
    lines = [json.loads(line) for line in notes.read_text().split("\n")[:-1]] if notes.exists() else []
    note = {"time": time.time(), "job": job, "code": code, "place": place}
    where = f"epoch {place[0]}, step {place[1]}" if place else "before its first checkpoint"
    ended = f"stopped in time, with a checkpoint: {where}" if stopped else f"failed (code {code}) {where}"
    try:
        notes.parent.mkdir(parents=True, exist_ok=True)
        write_text(notes, "".join(json.dumps(each) + "\n" for each in [*lines, note]))
    except OSError as error:
        return False, f"{ended}, and {notes} cannot be written: {error.strerror}"
    earlier = [each for each in lines if each["job"] == job]
    if earlier and earlier[-1]["place"] == place:
        hint = "its time limit is too short for what comes there; " if stopped else ""
        return False, f"{ended}, no further than the time before: {hint}{notes} tells when"
    return True, f"{ended}; it goes on from there"


def progress(run_dir: Path) -> list[int] | None:
    """Epoch and step of the newest whole checkpoint; None if there is none."""
    try:
        checkpoint = RunFolder(run_dir).newest_checkpoint()
    except HpcdatError:
        return None
    return [checkpoint.epoch, checkpoint.step]


def main() -> None:
    """Entry point of the batch script."""
    run_dir, code, warned = sys.argv[1:]
    again, reason = decide(Path(run_dir), int(code), warned=warned == "yes")
    print(f"hpcdat: {'back into the queue' if again else 'not requeued'}: {reason}", file=sys.stderr)
    raise SystemExit(0 if again else 1)


if __name__ == "__main__":
    main()
