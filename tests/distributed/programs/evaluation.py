"""Accuracies measured by several workers, and work of unequal shares."""

import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyautoattack
import torch
from torch import nn

from hpcdat.config.job_file import read_job
from hpcdat.data import find_images, open_loader
from hpcdat.data.images import Images
from hpcdat.distributed.uneven_work import run_unevenly
from hpcdat.errors import HpcdatError
from hpcdat.evaluation.accuracy import PgdAccuracy, measure_accuracy
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcome_store import OutcomeStore
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation.results import evaluate_robustness
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.models import build_model_for
from hpcdat.models.losses import clean_loss
from hpcdat.progress import Progress
from tests.conftest import DEMO, Never


def evaluate(workers, patch, root, *settings):
    """Counts of an evaluation of a hastily trained net, random start and all."""
    job = read_job(DEMO, [f"data.root={root}", "attack.eps=0.1", *settings])
    train_images, test_images = find_images(job.data)
    model = fit(build_model_for(job, len(train_images.classes)), train_images, job)
    images = ImageBatches(test_images, job.data, job.evaluation.batch_size, torch.device("cpu"))
    accuracy = _measured(model, images, job, workers, Never())
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    return {
        "images": accuracy.images,
        "correct": accuracy.correct,
        "robust": accuracy.robust,
        "weights": digest,
    }


def examine_all(workers, patch, root, folder, kill_after, *settings):
    """TA, RA, sweeps and a shortened AutoAttack of a hastily trained net; killed after so many batches."""

    class Quick(pyautoattack.AutoAttack):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5
            self.square.n_queries = 50

    patch.setattr(pyautoattack, "AutoAttack", Quick)
    append, written = OutcomeStore.append, []

    def append_and_die(store, number, outcome, rank):
        append(store, number, outcome, rank)
        written.append(f"{store.path.name}/{number}")
        if len(written) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    patch.setattr(OutcomeStore, "append", append_and_die)
    few = ["attack.eps=0.1", "data.test_images=100", "evaluation.batch_size=7"]
    job = read_job(DEMO, [f"data.root={root}", *few, *settings])
    train_images, test_images = find_images(job.data)
    model = fit(build_model_for(job, len(train_images.classes)), train_images, job).eval()
    request = EvaluationRequest(autoattack=30, radii=(0.0, 0.05, 0.2), steps=(1, 5))
    execution = Execution(workers, Progress(shown=False), Never())
    results = evaluate_robustness(request, test_images, model, job, execution, Path(folder))
    return {"sections": results.sections, "written": written}


def _measured(model, images, job, workers, stop):
    pgd = PgdAccuracy(job.evaluation, job.attack.norm, job.seed)
    return measure_accuracy(pgd, images, model, job, Execution(workers, Progress(shown=False), stop))


def unequal_shares(workers, patch):
    """Rank 1 has much to do; how long it took the others too, and how it ended, four times."""
    patch.setattr(workers._watchdog, "seconds", 2)
    endings = {ending: _share(workers, ending) for ending in ("end", "failure", "stop")}
    return endings | {"evaluation": _evaluation_stopped_by_one(workers)}


class _SlowForOne:
    """A loader that rank 1 waits three seconds for, and then wants to stop; it has ten batches."""

    def __init__(self, workers, stop):
        self.workers, self.stop = workers, stop

    def read(self, batches, seed):
        for number in range(len(batches)):
            if number and self.workers.rank == 1:
                time.sleep(0.3)
                self.stop.requested = number == 9
            yield torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)


def _evaluation_stopped_by_one(workers):
    stop, job, model = Never(), read_job(DEMO), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nothing = Images([""] * 3000, [0] * 3000, ["0"], np.zeros((3000, 8, 8, 1), np.uint8))
    images = ImageBatches(nothing, job.data, 100, torch.device("cpu"))
    images.loader = _SlowForOne(workers, stop)
    try:
        _measured(model, images, job, workers, stop)
    except HpcdatError as error:
        return _described(error)


def _described(error):
    return {"kind": type(error).__name__, "text": str(error), "everywhere": error.everywhere}


def _share(workers, ending):
    stop, begin, times = Never(), time.monotonic(), {}

    def work(poll):
        while workers.rank >= 1 and time.monotonic() - begin < (4 if workers.rank == 1 else 0.5):
            stop.requested = ending == "stop" and time.monotonic() - begin > 0.3
            if ending == "failure" and workers.rank == 1 and time.monotonic() - begin > 0.3:
                raise OSError("no space left")
            poll()
            time.sleep(0.01)
        times["worked_until"] = time.monotonic()
        return workers.rank

    try:
        outcome = {"result": run_unevenly(workers, "work", work, stop)}
    except HpcdatError as error:
        outcome = _described(error)
    return outcome | times | {"seconds": time.monotonic() - begin, "returned_at": time.monotonic()}


def fit(model, images, job):
    """Some steps of Adam, the same on every rank."""
    loader = open_loader(images, job.data, training=False, batch_size=1400, device=torch.device("cpu"))
    ((x, y),) = loader.read([np.arange(len(images))], seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        optimizer.zero_grad()
        clean_loss(model(x), y).mean().backward()
        optimizer.step()
    return model


def in_memory(workers, patch):
    """Accuracies and certificates of a model that is not in any run."""
    from hpcdat import api

    patch.setattr(api, "_workers", lambda: workers)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(23, 1, 6, 6, generator=generator)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    y = model(x).argmax(1)
    accuracies = api.evaluate(model, x, y, eps=0.05, batch_size=5)
    certified = api.certify(model, x[:5], y[:5], sigma=0.1, n=100)
    if workers.rank == workers.size - 1:
        model[1].bias.data.add_(1)
    error = None
    try:
        api.evaluate(model, x, y, eps=0.05)
    except HpcdatError as raised:
        error = str(raised)
    return {"ra": accuracies.ra, "radii": certified.correct_radii.tolist(), "error": error}
