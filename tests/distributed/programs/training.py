"""Runs of the demo's job, whole or disturbed."""

import time

import torch
from torch import nn

import hpcdat.models
from hpcdat import run
from hpcdat.cluster.stopping import StopRequest
from hpcdat.job_file import read_job
from hpcdat.record import RunFolder
from hpcdat.run import train
from hpcdat.training.step import Algorithm1
from hpcdat.training.validation import Validation
from tests.conftest import DEMO


def one_gradient_is_not_a_number(workers, root, run_dir, *settings):
    """The last worker's gradient has a NaN in the second step of the first epoch, and only there."""
    gradient = Algorithm1.local_gradient

    def spoilt(algorithm, now, x_adv):
        cost = gradient(algorithm, now, x_adv)
        if (now.epoch, now.step) == (0, 1) and workers.rank == workers.size - 1:
            algorithm.model[1].classifier.weight.grad[0, 0] = float("nan")
        return cost

    Algorithm1.local_gradient = spoilt
    # Exchanged once the backward pass is over, when the gradient has been spoilt.
    always = ["epochs=1", "attack.steps=1", "evaluation.steps=1", "exchange.overlap=false"]
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", *always, *settings])
    train(job, workers, StopRequest())
    folder = RunFolder(job.run_dir)
    weights = torch.cat([p.flatten().float() for p in folder.newest_checkpoint().model.values()])
    return [folder.metrics("epoch")[0]["skipped_steps"], bool(weights.isfinite().all())]


def without_batch_norm(channels, num_classes):
    """A net on which the samples of a batch do not see each other."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, num_classes)
    )


def train_small(workers, global_batch, root, run_dir, *settings):
    """Train the demo's job with a net without batch norm, in float64; its weights and costs."""
    torch.set_default_dtype(torch.float64)
    hpcdat.models.MODELS["digits-cnn"] = without_batch_norm
    batch = int(global_batch) // workers.size
    job = read_job(DEMO, [f"batch_size={batch}", f"data.root={root}", f"run_dir={run_dir}", *settings])
    train(job, workers, StopRequest())
    folder = RunFolder(job.run_dir)
    model = folder.newest_checkpoint().model
    return {
        "weights": torch.cat([p.flatten() for p in model.values()]).tolist(),
        "costs": [line["cost"] for line in folder.metrics("epoch")],
    }


def collapse(workers, root, run_dir, *settings):
    """Train a job whose classifier is wiped out at the end of the fourth epoch and of all later ones."""
    has_overfitted = Validation.has_overfitted

    def wipe_first(validation):
        if validation.state.epoch >= 4:
            torch.nn.init.zeros_(validation.state.model[1].classifier.weight)
        return has_overfitted(validation)

    Validation.has_overfitted = wipe_first
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", "epochs=9", *settings])
    result = train(job, workers, StopRequest())
    folder = RunFolder(job.run_dir)
    checkpoint = folder.checkpoint_of_result(job)
    return {
        "epoch": result.epoch,
        "ra": result.ra,
        "trained": [line["epoch"] for line in folder.metrics("epoch")],
        "judged": [line["ra"] for line in folder.metrics("evaluation")],
        "overfitting": [line["epoch"] for line in folder.metrics("overfitting")],
        "kept": [checkpoint.epoch, bool(checkpoint.model["1.classifier.weight"].any())],
    }


def train_virtually(workers, virtual, root, run_dir, *settings):
    """Train the demo's net, batch norm and random starts and all, in float64; its weights and statistics."""
    torch.set_default_dtype(torch.float64)
    always = [f"virtual_workers={virtual}", f"data.root={root}", f"run_dir={run_dir}", "batch_size=75"]
    always += ["epochs=2", "attack.steps=2", "evaluation.steps=1", "evaluation.every=0"]
    job = read_job(DEMO, [*always, *settings])
    result = train(job, workers, StopRequest())
    state = RunFolder(job.run_dir).newest_checkpoint().model
    return {"state": torch.cat([t.flatten().double() for t in state.values()]).tolist(), "ta": result.ta}


def train_seeds(workers, root, run_dir, *settings):
    """TA and RA of three seeds of a shortened demo."""
    short = ["epochs=8", "attack.steps=3", "schedule.decay_epochs=[6]", "evaluation.every=0"]
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", *short, *settings])
    results = run.train_seeds(job, 3, workers, StopRequest())
    return [[result.ta, result.ra] for result in results.values()]


def one_is_slow(workers, root, run_dir):
    """Worker 1 takes half a second longer for each of its steps; the workers are on nodes of their own."""
    workers.node_of = list(range(workers.size))
    gradient = Algorithm1.local_gradient

    def slow(algorithm, *batch):
        time.sleep(0.5 * (workers.rank == 1))
        return gradient(algorithm, *batch)

    Algorithm1.local_gradient = slow
    settings = ["epochs=1", "method=plain", "batch_size=400", "evaluation.steps=1", "data.split=nodes"]
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", *settings])
    train(job, workers, StopRequest())
    ((times),) = [line["workers"] for line in RunFolder(job.run_dir).metrics("epoch")]
    return times
