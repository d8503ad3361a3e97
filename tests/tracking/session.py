"""Starts of a run without its training, and their result."""

import os

from hpcdat.config.job_file import read_job
from hpcdat.storage.run_folder import Result, RunFolder
from hpcdat.tracking.tracking import Tracking
from tests.conftest import DEMO


class Session:
    """One start of a run, without its training: writes metrics and checkpoints until it is killed.

    Args:
        folder: of the run.
        size: of the metrics at its last checkpoint.
    """

    def __init__(self, folder, size, names):
        self.folder, self.size, self.seconds = RunFolder(folder), size, os.urandom(1)[0]
        self.folder.truncate_metrics(size)
        job = read_job(DEMO, [f"run_dir={folder}"])
        self.tracking = Tracking(job, self.folder, names)
        self.tracking.begin()

    def epoch(self, epoch, **more):
        line = {"event": "epoch", "epoch": epoch, "cost": 1 / epoch, "total_seconds": self.seconds, **more}
        self.folder.log(**line)

    def evaluate(self, epoch, *, held_out=False):
        ta, ra = epoch / 10, epoch / 20
        self.folder.log(event="evaluation", epoch=epoch, ta=ta, ra=ra, held_out=held_out)

    def save(self):
        self.size = self.folder.metrics_bytes()
        self.folder.saved()

    def kill(self):
        """End without closing; what was handed over arrives."""
        for feed in self.tracking._feeds:
            feed._calls.put(None)
            feed._thread.join(60)
        return self.size


def result(**values):
    fields = {"method": "dat-pgd", "seed": 0, "p": 1, "q": 1, "batches": 1, "batch": 50, "images": 50}
    fields |= {"ta": 0.9, "ra": 0.5, "attack": "PGD-1", "communication": 0.0, "total": 1.0}
    fields |= {"exchange": "ring, 32 bits", "megabytes": 0.0, "epoch": 2}
    return Result(**fields | values)
