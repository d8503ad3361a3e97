"""``python -m hpcdat.performance.other_worker``: another worker of the node in a trial.

It reads its task, one line of JSON, from its standard input, and computes the step until that is closed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys

import torch

from hpcdat.config.job import Job
from hpcdat.performance.node_share import COMPUTING
from hpcdat.performance.trial_step import TrialStep


def main() -> None:
    """Compute until standard input is closed, which the end of the process that started this one does too."""
    # A terminal and launchers send these to all processes; the one that started this one ends it.
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    task = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, task["cores"])
    torch.set_num_threads(task["threads"])
    trial = TrialStep(Job.model_validate(task["job"]), task["classes"], torch.device("cpu"), task["images"])
    trial.compute()
    print(COMPUTING, flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        trial.compute()


if __name__ == "__main__":
    main()
