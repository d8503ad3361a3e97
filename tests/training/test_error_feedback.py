"""Error feedback in checkpoints: a row for each worker, which no other worker receives."""

import dataclasses
from contextlib import suppress

import pytest
import torch

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.counting import Counted
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.errors import Stopped
from hpcdat.models.digits_cnn import DigitsCNN
from hpcdat.storage.checkpoint_format import save_checkpoint
from hpcdat.storage.run_folder import RunFolder
from hpcdat.storage.worker_rows import read_row
from tests.conftest import DEMO, Never
from tests.training.test_resume import AfterPolls

SETTINGS = ["epochs=2", "batch_size=25", "data.train_images=200", "data.test_images=20", "method=plain"]
SETTINGS += ["evaluation.steps=1", "evaluation.every=0", "exchange.error_feedback=true", "exchange.bits=4"]
OPTIONS = ["exchange.rounding=correlated", "exchange.rotation=hadamard"]
WORKERS = 2
"""Four steps an epoch."""


def job_in(folder, *settings):
    """A job that starts from given weights: ranks in one process draw from the same random numbers."""
    weights = folder.parent / "weights.pth"
    if not weights.exists():
        torch.save(DigitsCNN(1, 10).state_dict(), weights)
    return read_job(DEMO, [f"run_dir={folder}", f"model.pretrained={weights}", *SETTINGS, *settings])


def train_together(job, stop_after=None):
    """Train with two workers; the bytes that each has received without gradients."""

    def program(rank):
        workers = Counted(rank)
        with suppress(Stopped):
            train(job, workers, Never() if stop_after is None else AfterPolls(stop_after))
        return sum(m.received for m in workers.messages if not m.name.startswith("gradients"))

    return run_threads(loopback(WORKERS), program)


def weights_of(job):
    return RunFolder(job.run_dir).newest_checkpoint().model


@pytest.mark.parametrize("step", [2, 4], ids=["within an epoch", "at its end"])
@pytest.mark.parametrize(
    ("exchange", "more"),
    [
        ("sharded_server", []),
        ("parameter_server", []),
        ("ring", []),
        ("ring", OPTIONS),
        ("sharded_server", OPTIONS),
    ],
    ids=lambda value: "with options" if value == OPTIONS else None,
)
def test_a_run_resumes_with_the_residuals_of_each_worker(tmp_path, exchange, more, step):
    """With a parameter server only worker 0 has rounding errors of the sum."""
    settings = [
        f"exchange.protocol={exchange}",
        f"exchange.two_sided={'false' if exchange == 'ring' else 'true'}",
        *more,
    ]
    whole, stopped = (job_in(tmp_path / name, *settings) for name in ("undisturbed", "stopped"))
    train_together(whole)
    train_together(stopped, stop_after=step - 1)
    checkpoints = RunFolder(stopped.run_dir).checkpoints
    checkpoint = checkpoints.newest(print)
    rows = checkpoint.worker_rows()
    own = [read_row(checkpoints.folder, rows, rank) for rank in range(WORKERS)]
    assert not torch.equal(*own)
    train_together(stopped)
    one, other = weights_of(whole), weights_of(stopped)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(list(checkpoints.folder.glob("statistics-*.bin"))) == 2, "of the last two epochs"


def test_a_checkpoint_of_format_9_holds_the_residuals_of_all_workers(tmp_path):
    whole, stopped = (job_in(tmp_path / name, "exchange.protocol=allgather") for name in ("whole", "stopped"))
    train_together(whole)
    train_together(stopped, stop_after=3)
    kept = RunFolder(stopped.run_dir).checkpoints
    checkpoint = kept.newest(print)
    rows = [read_row(kept.folder, checkpoint.worker_rows(), rank) for rank in range(WORKERS)]
    feedback, start = [], 0
    for bucket in checkpoint.feedback:
        feedback.append({})
        for side, shape in bucket.items():
            size = 4 * torch.Size(shape).numel()
            parts = [row[start : start + size].clone().view(torch.float32).view(shape) for row in rows]
            feedback[-1][side], start = torch.stack(parts), start + size
    save_checkpoint(kept.epoch_file, dataclasses.replace(checkpoint, feedback=feedback, statistics={}))
    train_together(stopped)
    one, other = weights_of(whole), weights_of(stopped)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_no_worker_but_the_first_receives_residuals(tmp_path):
    first, other = train_together(job_in(tmp_path / "run", "exchange.protocol=sharded_server", "epochs=1"))
    size = sum(t.numel() * t.element_size() for t in weights_of(job_in(tmp_path / "run")).values())
    assert first > WORKERS * size and other < 2 * size, "the initial weights, and none of the residuals"
