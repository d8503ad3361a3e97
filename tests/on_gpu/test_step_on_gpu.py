"""What tests/fake_cuda proves of steps without numbers, with numbers on a GPU."""

import warnings

import numpy as np
import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.data.device_loader import DeviceLoader
from hpcdat.data.images import Images
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model_for
from hpcdat.models.losses import Labelled
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO
from tests.fake_cuda.test_step_on_fake_cuda import STEPS

pytestmark = pytest.mark.gpu
NEAR = 0.02
"""Largest distance between the changes of weights on GPU and CPU, of the change: a choice, not measured."""


def make(device, *settings):
    job = read_job(DEMO, ["attack.steps=1", *settings])
    model = build_model_for(job, 10).to(device).train()
    return Algorithm1(job, model, job.exchange, SingleProcess(), device)


def batch(algorithm, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(8, 1, 8, 8, generator=generator).to(algorithm.device)
    y = torch.randint(10, (8,), generator=generator).to(algorithm.device)
    numbers = range(algorithm.batches)
    return Batch(0, step, 8 * len(numbers), dict.fromkeys(numbers, Labelled(x, y)))


def train(algorithm, steps):
    """The weights after some steps, (P,)."""
    delay = algorithm.adversary.delay
    batches = [batch(algorithm, step) for step in range(steps + delay)]
    algorithm.adversary.begin_epoch(batches[:delay])
    for step in range(steps):
        outcome = algorithm.step(batches[step], batches[step + delay] if delay else None)
        assert outcome.finite
    return weights_of(algorithm)


def weights_of(algorithm):
    return torch.cat([p.detach().flatten().double().cpu() for p in algorithm.parameters])


@pytest.mark.parametrize("settings", STEPS.values(), ids=STEPS)
def test_a_step_waits_once(device, settings):
    algorithm = make(device, *settings)
    train(algorithm, 2)
    on_gpu = device.type == "cuda"
    delay = algorithm.adversary.delay
    batches = [batch(algorithm, step) for step in range(1 + delay)]
    if delay:
        algorithm.adversary.begin_epoch(batches[:delay])
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            algorithm.step(batches[0], batches[delay] if delay else None)
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    # Not the remark that this mode is a prototype, which comes once in a process.
    synchronizing = [str(one.message) for one in waits if "called a synchronizing" in str(one.message)]
    assert len(synchronizing) == int(on_gpu), synchronizing


@pytest.mark.parametrize("method", ["plain", "at", "dat-pgd-without-lalr"])
def test_weights_change_as_on_the_cpu(device, method):
    settings = [f"method={method}", "optimizer.name=sgd", "attack.random_start=false", "attack.steps=2"]
    changes = []
    for where in (device, torch.device("cpu")):
        algorithm = make(where, *settings)
        before = weights_of(algorithm)
        changes.append(train(algorithm, 2) - before)
    assert changes[1].norm() > 0
    assert (changes[0] - changes[1]).norm() <= NEAR * changes[1].norm()


@pytest.mark.parametrize("settings", [[], ["concurrent.delay=2"], ["optimizer.name=lamb"]], ids=str)
def test_conadv_in_a_second_stream_gives_the_weights_of_one_stream(device, settings):
    weights = []
    for beside in (True, False):
        algorithm = make(device, "method=conadv", *settings)
        if device.type == "cuda":
            assert algorithm.adversary._stream is not None
        if not beside:
            algorithm.adversary._stream = None
        weights.append(train(algorithm, 6))
    assert torch.equal(*weights)


def test_the_device_loader_gives_the_cpus_pixels(device):
    pixels = np.random.default_rng(0).integers(256, size=(10, 8, 8, 1), dtype=np.uint8)
    images = Images([""] * 10, np.arange(10) % 2, ["a", "b"], pixels)
    data = read_job(DEMO, ["data.augmentation=pad-crop"]).data
    read = [
        list(DeviceLoader(images, data, training=True, device=where).read([np.arange(10)], seed=1))
        for where in (device, torch.device("cpu"))
    ]
    for there, here in zip(*read, strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(there, here, strict=True))
