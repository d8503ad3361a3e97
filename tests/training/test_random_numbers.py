"""The random numbers that a network draws itself come from the job's seed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import dropout

from hpcdat.commands.train import train
from hpcdat.data.images import Images
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import Stopped
from hpcdat.evaluation.accuracy import PgdAccuracy, measure_accuracy
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.models import MODELS, build_model_for
from hpcdat.models.losses import Labelled
from hpcdat.models.random_numbers import seeded
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1
from tests.conftest import Never
from tests.evaluation.conftest import execution
from tests.training.test_resume import AfterPolls, quick


class Drawing(nn.Module):
    """A network with dropout in training, and noise that it draws in attacks and evaluations too."""

    def __init__(self, channels, classes):
        super().__init__()
        self.first, self.second = nn.Linear(64 * channels, 32), nn.Linear(32, classes)
        self.norm, self.dropout = nn.BatchNorm1d(32), nn.Dropout(0.1)
        self.masks = []

    def forward(self, x):
        mask = self.dropout(torch.ones(32)) * dropout(torch.ones(32), 0.1, training=True)
        self.masks.append(mask)
        return self.second(self.norm(self.first(x.flatten(1))).relu() * mask)


@pytest.fixture(autouse=True)
def drawing(monkeypatch):
    monkeypatch.setitem(MODELS, "digits-cnn", Drawing)


def weights(job):
    return RunFolder(job.run_dir).newest_checkpoint().model


@pytest.mark.parametrize(
    "settings",
    [
        ["method=dat-pgd"],
        ["objective.regulariser=trades", "virtual_workers=2", "batch_size=25"],
        ["method=conadv", "optimizer.lr=2"],
    ],
    ids=["dat-pgd", "trades, two virtual workers", "conadv"],
)
def test_runs_and_a_resumed_run_are_equal_bit_for_bit(tmp_path, settings):
    jobs = {
        name: quick(tmp_path / name, *settings, "evaluation.every=1", f"seed={int(name == 'other seed')}")
        for name in ("one", "again", "resumed", "other seed")
    }
    for name in ("one", "again", "other seed"):
        torch.manual_seed(len(name))
        train(jobs[name], SingleProcess(), Never())
    with pytest.raises(Stopped, match="stopped in epoch 1, step 2"):
        train(jobs["resumed"], SingleProcess(), AfterPolls(1))
    torch.manual_seed(5)
    train(jobs["resumed"], SingleProcess(), Never())
    one, again, resumed, other = (weights(job) for job in jobs.values())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert all(torch.equal(one[name], resumed[name]) for name in one)
    assert not torch.equal(one["1.second.weight"], other["1.second.weight"])
    metrics = [RunFolder(jobs[name].run_dir).metrics("evaluation") for name in ("one", "again", "resumed")]
    assert metrics[0] == metrics[1] == metrics[2]


def test_batches_steps_passes_and_seeds_draw_different_numbers(tmp_path):
    """Two steps of two virtual workers, each with an attack's pass, a clean and an adversarial one."""
    masks = []
    for seed in (0, 1):
        job = quick(tmp_path, "objective.lambda=1", "virtual_workers=2", f"seed={seed}")
        model = build_model_for(job, 10).train()
        algorithm = Algorithm1(job, model, job.exchange, SingleProcess(), torch.device("cpu"))
        images = Labelled(torch.full((3, 1, 8, 8), 0.5), torch.arange(3))
        for step in range(2):
            algorithm.step(Batch(0, step, 6, {0: images, 1: images}), None)
        masks += [tuple(mask.tolist()) for mask in model[1].masks]
    assert len(set(masks)) == len(masks) == 2 * 2 * 2 * 3


def test_an_evaluation_draws_the_same_whatever_was_drawn_before_it(tmp_path):
    """As another worker would, or after it was resumed; and it leaves the global generator alone."""
    job = quick(tmp_path, "evaluation.batch_size=10")
    model = build_model_for(job, 10).eval()
    names = [str(number) for number in range(10)]
    images = Images(names * 3, list(range(10)) * 3, names, np.zeros((30, 8, 8, 1), np.uint8))
    pgd, found = PgdAccuracy(job.evaluation, "linf", job.seed), []
    for numbers in ([0, 1, 2], [2]):
        batches = ImageBatches(images, job.data, 10, torch.device("cpu"))
        batches.batches = {number: batches.batches[number] for number in numbers}
        batches.loader = Grey()
        torch.rand(7)
        state = torch.get_rng_state()
        model[1].masks.clear()
        measure_accuracy(pgd, batches, model, job, execution())
        assert torch.equal(torch.get_rng_state(), state)
        found.append([tuple(mask.tolist()) for mask in model[1].masks])
    every, last = found
    assert every[-len(last) :] == last and len(every) == 3 * len(last)
    assert len(set(every)) == len(every)


class Grey:
    """A loader of grey images."""

    def read(self, batches, seed):
        for indices in batches:
            yield torch.full((len(indices), 1, 8, 8), 0.5), torch.tensor(indices) % 10


def test_the_state_of_the_generator_is_restored_after_a_failure_too():
    state = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(3, torch.device("cpu")):
        first = torch.rand(2)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(3, torch.device("cpu")):
        assert torch.equal(torch.rand(2), first)
