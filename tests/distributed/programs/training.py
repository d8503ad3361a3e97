"""Runs of the demo's job, whole or disturbed."""

import contextlib
import io
import itertools
import time

import torch
from torch import nn

import hpcdat.commands.train
import hpcdat.models
from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.errors import Stopped
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.step import Algorithm1
from hpcdat.training.validation import Validation
from tests.conftest import DEMO, Never


def train_job(workers, patch, *settings):
    """Train the demo's job with these settings; what this rank wrote to stderr."""
    written = io.StringIO()
    with contextlib.redirect_stderr(written):
        train(read_job(DEMO, list(settings)), workers, Never())
    return {"stderr": written.getvalue()}


def train_and_stop(workers, patch, steps, *settings):
    """Train the demo's job and stop after so many steps; the first words of how it ended."""
    stop, step = Never(), Algorithm1.step
    done = itertools.count(1)

    def step_and_stop(algorithm, *batches):
        stop.requested = next(done) == steps
        return step(algorithm, *batches)

    patch.setattr(Algorithm1, "step", step_and_stop)
    try:
        train(read_job(DEMO, list(settings)), workers, stop)
    except Stopped as stopped:
        return str(stopped).partition(";")[0]


def one_gradient_is_not_a_number(workers, patch, root, run_dir, *settings):
    """The last worker's gradient has a NaN in the second step of the first epoch, and only there."""
    gradient = Algorithm1.local_gradient

    def spoilt(algorithm, now, x_adv):
        cost = gradient(algorithm, now, x_adv)
        if (now.epoch, now.step) == (0, 1) and workers.rank == workers.size - 1:
            algorithm.model[1].classifier.weight.grad[0, 0] = float("nan")
        return cost

    patch.setattr(Algorithm1, "local_gradient", spoilt)
    # Exchanged once the backward pass is over, when the gradient has been spoilt.
    always = ["epochs=1", "attack.steps=1", "evaluation.steps=1", "exchange.overlap=false"]
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", *always, *settings])
    train(job, workers, Never())
    folder = RunFolder(job.run_dir)
    weights = torch.cat([p.flatten().float() for p in folder.newest_checkpoint().model.values()])
    return {"skipped": folder.metrics("epoch")[0]["skipped_steps"], "finite": bool(weights.isfinite().all())}


def without_batch_norm(channels, num_classes):
    """A net on which the samples of a batch do not see each other."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, num_classes)
    )


def with_batch_norm(channels, num_classes):
    """A net in which rounding stays small.

    It has no maxima and kinks, which on flat parts of an image depend on the last bit, and no biases before
    batch norm, whose gradient is a rounding error that Adam's normalisation makes large.
    """
    return nn.Sequential(
        *(nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Tanh()),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(8 * 64, num_classes)),
    )


@contextlib.contextmanager
def in_float64():
    """Make float64 the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def train_small(workers, patch, global_batch, root, run_dir, *settings):
    """Train the demo's job with a net without batch norm, in float64; its weights and costs."""
    patch.setitem(hpcdat.models.MODELS, "digits-cnn", without_batch_norm)
    batch = global_batch // workers.size
    always = [f"batch_size={batch}", f"data.root={root}", f"run_dir={run_dir}", "data.last_batch=short"]
    job = read_job(DEMO, [*always, *settings])
    with in_float64():
        train(job, workers, Never())
    folder = RunFolder(job.run_dir)
    model = folder.newest_checkpoint().model
    return {
        "weights": torch.cat([p.flatten() for p in model.values()]).tolist(),
        "costs": [line["cost"] for line in folder.metrics("epoch")],
    }


def train_synchronised(workers, patch, run_dir, *settings):
    """Train a small job in global batches of 99 with synchronised batch norm, in float64; its state.

    Of 100 images, the last batch of an epoch has one, so all but one worker have none.
    """
    patch.setitem(hpcdat.models.MODELS, "digits-cnn", with_batch_norm)
    always = [f"batch_size={99 // workers.size}", f"run_dir={run_dir}", "model.batch_norm=synchronised"]
    always += ["attack.random_start=false", "data.train_images=100", "epochs=2", "data.last_batch=short"]
    always += ["data.test_images=50", "evaluation.steps=1", "evaluation.every=0", "exchange.bucket_mb=0.01"]
    job = read_job(DEMO, [*always, "schedule.decay_epochs=[]", *settings])
    with in_float64():
        train(job, workers, Never())
    state = RunFolder(job.run_dir).newest_checkpoint().model
    return torch.cat([t.flatten().double() for t in state.values()]).tolist()


def collapse(workers, patch, root, run_dir, *settings):
    """Train a job whose classifier is wiped out at the end of the fourth epoch and of all later ones."""
    has_overfitted = Validation.has_overfitted

    def wipe_first(validation):
        if validation.state.epoch >= 4:
            torch.nn.init.zeros_(validation.state.model[1].classifier.weight)
        return has_overfitted(validation)

    patch.setattr(Validation, "has_overfitted", wipe_first)
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", "epochs=9", *settings])
    result = train(job, workers, Never())
    folder = RunFolder(job.run_dir)
    checkpoint = folder.checkpoint_of_result(job)
    return {
        "epoch": result.epoch,
        "ra": result.ra,
        "trained": [line["epoch"] for line in folder.metrics("epoch")],
        "judged": [line["ra"] for line in folder.metrics("evaluation")],
        "overfitting": [line["epoch"] for line in folder.metrics("overfitting")],
        "kept epoch": checkpoint.epoch,
        "kept weights": bool(checkpoint.model["1.classifier.weight"].any()),
    }


def train_virtually(workers, patch, virtual, root, run_dir, *settings):
    """Train the demo's net, batch norm and random starts and all, in float64; its weights and statistics."""
    always = [f"virtual_workers={virtual}", f"data.root={root}", f"run_dir={run_dir}", "batch_size=75"]
    always += ["epochs=2", "attack.steps=2", "evaluation.steps=1", "evaluation.every=0"]
    always += ["data.last_batch=short", "data.train_images=800"]
    job = read_job(DEMO, [*always, *settings])
    with in_float64():
        result = train(job, workers, Never())
    state = RunFolder(job.run_dir).newest_checkpoint().model
    return {"state": torch.cat([t.flatten().double() for t in state.values()]).tolist(), "ta": result.ta}


def train_seeds(workers, patch, root, run_dir, *settings):
    """TA and RA of three seeds of a shortened demo."""
    short = ["epochs=8", "attack.steps=3", "schedule.decay_epochs=[6]", "evaluation.every=0"]
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", *short, *settings])
    results = hpcdat.commands.train.train_seeds(job, 3, workers, Never())
    return [{"ta": result.ta, "ra": result.ra} for result in results.values()]


def one_is_slow(workers, patch, root, run_dir):
    """Worker 1 takes half a second longer for each of its steps; the workers are on nodes of their own."""
    patch.setattr(workers, "node_of", list(range(workers.size)))
    gradient = Algorithm1.local_gradient

    def slow(algorithm, *batch):
        time.sleep(0.5 * (workers.rank == 1))
        return gradient(algorithm, *batch)

    patch.setattr(Algorithm1, "local_gradient", slow)
    settings = ["epochs=1", "method=plain", "batch_size=400", "evaluation.steps=1", "data.split=nodes"]
    settings += ["data.last_batch=short"]
    job = read_job(DEMO, [f"data.root={root}", f"run_dir={run_dir}", *settings])
    train(job, workers, Never())
    ((times),) = [line["workers"] for line in RunFolder(job.run_dir).metrics("epoch")]
    return times
