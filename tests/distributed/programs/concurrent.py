"""ConAdv, and the same by hand."""

import copy
import hashlib
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hpcdat.attacks.pgd import PGD
from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.data import find_images, open_loader
from hpcdat.data.sampler import training_shares
from hpcdat.errors import Stopped
from hpcdat.models import build_model_for
from hpcdat.models.losses import clean_loss
from hpcdat.models.split_batch_norm import routed
from hpcdat.optim import build_optimizer
from hpcdat.seeds import derive
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO, Never


def train_concurrently(workers, patch, root, folder, delays, *settings):
    """Train with each delay, undisturbed and stopped once; fingerprints by name, of both by delay."""
    return {
        delay: [
            trained_concurrently(
                workers, patch, root, f"{folder}/{delay}-{stop_after}", stop_after, delay, *settings
            )
            for stop_after in (0, STOPPED_AFTER[delay])
        ]
        for delay in delays.split(",")
    }


STOPPED_AFTER = {"0": 3, "1": 7, "2": 2}
"""By delay, the step in the midst of the first (1 to 5) or second epoch (6 to 10)."""


def trained_concurrently(workers, patch, root, run_dir, stop_after, delay, *settings):
    """Stopped after so many steps (0: never) and gone on with."""
    fixed = [f"data.root={root}", f"run_dir={run_dir}", *CONCURRENTLY, *settings]
    job = read_job(DEMO, fixed if "method=disadv" in fixed else [*fixed, f"concurrent.delay={delay}"])
    if stop_after:
        stop, step = Never(), Algorithm1.step

        def step_and_stop(algorithm, now, *rest):
            stop.requested = now.epoch * 5 + now.step + 1 == stop_after
            return step(algorithm, now, *rest)

        with patch.context() as disturbed:
            disturbed.setattr(Algorithm1, "step", step_and_stop)
            with pytest.raises(Stopped):
                train(job, workers, stop)
    train(job, workers, Never())
    return fingerprints(RunFolder(job.run_dir).newest_checkpoint().model)


CONCURRENTLY = [
    *("method=conadv", "epochs=2", "batch_size=30", "data.train_images=130", "data.test_images=20"),
    "data.last_batch=short",
    *("optimizer.lr=8", "optimizer.momentum=0.5", "evaluation.every=0", "evaluation.steps=1"),
    *("schedule.decay_epochs=[1]", "attack.eps=0.1", "attack.steps=1"),
]
"""Five steps an epoch with one batch of 30 in each, the last of 10 images; three with two."""


def simulate_concurrently(root, batches, delay, *settings):
    """The same in one process, plainly: old weights are stored, and all batches computed one by one."""
    job = read_job(DEMO, [f"data.root={root}", *CONCURRENTLY, *settings])
    images, _ = find_images(job.data)
    model = build_model_for(job, 10)
    optimizer = build_optimizer(model, job.optimizer)
    loader = open_loader(images, job.data, training=True, batch_size=30, device=torch.device("cpu"))
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    # Each update worker has running statistics of its own, which are averaged after every epoch.
    statistics = [[t.clone() for layer in layers for t in layer.buffers()] for _ in range(batches)]
    for epoch in range(job.epochs):
        shares = [
            training_shares(
                130, 30, rank=n, groups=[0] * batches, seed=job.seed, epoch=epoch, last_batch="short"
            )
            for n in range(batches)
        ]
        weights, seen = [], [0] * batches
        for step in range(len(shares[0])):
            weights.append([p.detach().clone() for p in model.parameters()])
            model.train()
            gradients = []
            for number in range(batches):
                share = shares[number][step]
                if not len(share.indices):
                    continue
                (x, y), *_ = list(loader.read([share.indices], derive(job.seed, "augmentation", epoch)))
                for layer, kept in zip(
                    (t for m in layers for t in m.buffers()), statistics[number], strict=True
                ):
                    layer.copy_(kept)
                old = copy.deepcopy(model)
                for p, earlier in zip(old.parameters(), weights[max(0, step - delay)], strict=True):
                    p.data.copy_(earlier)
                seed = derive(job.seed, "attack", epoch, step, number)
                attack = PGD(eps=0.1, step_size=0.1, steps=1, batch_norm="train", branch="adversarial")
                x_adv = attack(old, partial(clean_loss, y=y), x, torch.Generator().manual_seed(seed))
                with routed(model, "adversarial"):
                    adversarial = cross_entropy(model(x_adv), y, reduction="none")
                clean = cross_entropy(model(x), y, reduction="none")
                loss = (0.5 * adversarial.sum() + 0.5 * clean.sum()) / share.global_size
                gradients.append(torch.autograd.grad(loss, list(model.parameters())))
                statistics[number] = [t.clone() for m in layers for t in m.buffers()]
                seen[number] += len(x)
            for p, *parts in zip(model.parameters(), *gradients, strict=True):
                # Laid out as its weight is: a norm adds in the order of memory.
                p.grad = torch.empty_like(p).copy_(sum(parts[1:], parts[0]))
            for group in optimizer.param_groups:
                group["lr"] = 8.0 if epoch == 0 else 0.8
            optimizer.step()
        means = averaged(statistics, seen)
        statistics = [[t.clone() for t in means] for _ in range(batches)]
    for layer, mean in zip((t for m in layers for t in m.buffers()), means, strict=True):
        layer.copy_(mean)
    return fingerprints(model.state_dict())


def averaged(statistics, seen):
    """The statistics of all images together: the law of total variance, in float64.

    Buffers of a layer are mean, variance and count of batches.
    """
    weights = torch.tensor(seen).double()[:, None] / sum(seen)
    together = []
    for means, variances, batches in zip(*[zip(*statistics, strict=True)] * 3, strict=True):
        m, v = torch.stack(means).double(), torch.stack(variances).double()
        mean = (weights * m).sum(0)
        together += [mean.float(), (weights * (v + (m - mean) ** 2)).sum(0).float(), max(batches)]
    return together


def fingerprints(state):
    """A hash of every tensor, by name."""
    return {n: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:16] for n, t in state.items()}
