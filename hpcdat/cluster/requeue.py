"""Whether a Slurm job that has ended goes back into the queue; the batch script asks.

``python -m hpcdat.cluster.requeue RUN CODE WARNED`` exits with 0 for yes. Stopped in time after Slurm's
warning: yes. Failed: yes if the run has come further since it failed the last time, so that a job that
always fails at the same step does not come back for ever.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from hpcdat.errors import Exit, HpcdatError
from hpcdat.files import write_text
from hpcdat.record import RunFolder


def decide(run_dir: Path, code: int, *, warned: bool) -> tuple[bool, str]:
    """Decide, and note a failure beside the run's script for the next time.

    Args:
        run_dir: of the run.
        code: that its launcher ended with.
        warned: whether Slurm had announced the time limit.

    Returns:
        The decision, and the reason in words.
    """
    if code == Exit.DONE:
        return False, "the run is done"
    if code == Exit.WRONG_INPUT:
        return False, "wrong input stays wrong"
    if code == Exit.STOPPED_RESUMABLE:
        if warned:
            return True, "stopped in time, with a checkpoint"
        return False, "stopped as somebody asked; sbatch of the same script goes on"
    place = progress(run_dir)
    notes = RunFolder(run_dir).slurm_folder / "failures.jsonl"
    # A line without its end was being written when the node was lost.
    earlier = [json.loads(line) for line in notes.read_text().split("\n")[:-1]] if notes.exists() else []
    note = {"time": time.time(), "job": os.environ.get("SLURM_JOB_ID"), "code": code, "place": place}
    where = f"epoch {place[0]}, step {place[1]}" if place else "before its first checkpoint"
    try:
        notes.parent.mkdir(parents=True, exist_ok=True)
        write_text(notes, "".join(json.dumps(each) + "\n" for each in [*earlier, note]))
    except OSError as error:
        return False, f"failed (code {code}) {where}, and {notes} cannot be written: {error.strerror}"
    if earlier and earlier[-1]["place"] == place:
        return False, f"failed (code {code}) twice {where}: not again; {notes} tells when"
    return True, f"failed (code {code}) {where}; it goes on from there"


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
