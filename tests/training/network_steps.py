"""Steps of a network on several workers in this process, and what they leave."""

import random
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model_for
from hpcdat.models.fingerprint import named_state
from hpcdat.models.losses import Labelled
from hpcdat.models.random_numbers import seeded
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1

IMAGES = 12
"""Images of a step, of all workers."""


@pytest.fixture
def one_at_a_time(monkeypatch):
    """Workers in threads of one process share its generators; one draws at a time, as each would alone."""
    lock = threading.RLock()

    @contextmanager
    def locked(seed, device):
        with lock, seeded(seed, device):
            yield

    for name in [name for name, module in sys.modules.items() if name.startswith("hpcdat.")]:
        if getattr(sys.modules[name], "seeded", None) is seeded:
            monkeypatch.setattr(sys.modules[name], "seeded", locked)


def images(job, start, count):
    """Random images of a job's shape, the same in float32 and float64."""
    size, places = job.data.image_size, torch.arange(start, start + count)
    x = [
        torch.rand(
            job.data.channels, size, size, generator=torch.Generator().manual_seed(n), dtype=torch.float32
        )
        for n in places.tolist()
    ]
    return Labelled(torch.stack(x).to(torch.get_default_dtype()), places % 10)


def algorithm_of(job, workers):
    return Algorithm1(job, build_model_for(job, 10).train(), job.exchange, workers, torch.device("cpu"))


def step_on(job, workers, *, steps=2):
    """Parameters and buffers after some steps, of a worker that has its share of the images."""
    algorithm = algorithm_of(job, workers)
    share = IMAGES // workers.size // job.virtual_workers
    for step in range(steps):
        read = {n: images(job, step * IMAGES + n * share, share) for n in algorithm.role.reads}
        assert algorithm.step(Batch(0, step, IMAGES, read), None).finite
    algorithm.batch_norm.average()
    algorithm.exchange.close()
    return {name: tensor.detach().clone() for name, tensor in named_state(algorithm.model).items()}


def on_two_and_one(job, *, steps=2):
    """What the steps give on two workers, and on one that stands for two."""
    two = run_threads(loopback(2), lambda worker: step_on(job, worker, steps=steps))
    return two, step_on(job.model_copy(update={"virtual_workers": 2}), SingleProcess(), steps=steps)


def assert_no_trace(algorithm):
    """Assert that an attack finds other images, and leaves model and generators as they were."""
    model, x = algorithm.model, images(algorithm.job, 0, 6)

    def state():
        return (
            [(module.training, sorted(module._buffers)) for module in model.modules()],
            [(p.requires_grad, p.grad) for p in model.parameters()],
            (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        )

    tensors, others = {name: t.detach().clone() for name, t in named_state(model).items()}, state()
    assert not torch.equal(algorithm.attack(Batch(0, 0, 6, {0: x}), 0), x.x)
    assert state() == others
    assert all(torch.equal(t, tensors.pop(name)) for name, t in named_state(model).items())
    assert not tensors
