"""Training with synchronised batch norm: as one worker with the whole batch."""

import threading

import numpy as np
import pytest
import torch

import hpcdat.commands.train as command
from hpcdat.commands.train import train
from hpcdat.config.job_file import JobError, read_job
from hpcdat.distributed.loopback import Loopback, loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, Stopped
from hpcdat.models import MODELS
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.replicas import BatchNormStatistics
from tests.conftest import DEMO, Never
from tests.distributed.programs.training import in_float64, with_batch_norm, without_batch_norm
from tests.training.test_resume import AfterPolls, quick

SYNCHRONISED = "model.batch_norm=synchronised"
SMALL = ["attack.random_start=false", "data.train_images=100", "epochs=2", "data.last_batch=short"]
SMALL += ["schedule.decay_epochs=[]", "exchange.bucket_mb=0.05", "data.test_images=50"]
EQUAL = {
    "attack with running statistics": ["attack.steps=2", "objective.lambda=0.5"],
    "attack with the batch's": ["attack.steps=2", "attack.batch_norm=train"],
    "conadv": ["method=conadv", "optimizer.name=sgd"],
}
RANDOM = {
    "trades": ["attack.random_start=true", "objective.regulariser=trades", "attack.batch_norm=train"],
    "smoothing": ["smoothing.sigma=0.1"],
}


@pytest.fixture(autouse=True)
def _one_model_at_a_time(monkeypatch):
    """Ranks are threads with one global random state, from which initial weights are drawn."""
    lock, build = threading.Lock(), command.build_model_for

    def build_alone(*arguments):
        with lock:
            return build(*arguments)

    monkeypatch.setattr(command, "build_model_for", build_alone)


def state_of(job):
    model = RunFolder(job.run_dir).newest_checkpoint().model
    return torch.cat([t.flatten().double() for t in model.values()]).numpy()


class Logged(Loopback):
    """A rank that lists the collectives of batch norm."""

    def iall_reduce(self, tensors, name):
        if name.startswith("batch norm "):
            self.log.append(name)
        return super().iall_reduce(tensors, name)


def logged(size):
    ranks = loopback(size, timeout=60)
    for rank in ranks:
        rank.__class__, rank.log = Logged, []
    return ranks


@pytest.mark.parametrize("case", EQUAL)
def test_three_workers_equal_one_with_the_whole_batch(tmp_path, case, monkeypatch):
    """In float64, with a step in which two workers have no image."""
    monkeypatch.setitem(MODELS, "digits-cnn", with_batch_norm)
    settings = [*SMALL, *EQUAL[case]]
    one = quick(tmp_path / "one", *settings, "batch_size=99")
    three = quick(tmp_path / "three", *settings, "batch_size=33", SYNCHRONISED)
    ranks = logged(3)
    with in_float64():
        train(one, SingleProcess(), Never())
        run_threads(ranks, lambda workers: train(three, workers, Never()))
    np.testing.assert_allclose(state_of(three), state_of(one), rtol=0, atol=1e-6)
    assert np.ptp(state_of(one)) > 0.1
    # The order of collectives is the same on all workers, with and without images.
    assert ranks[0].log == ranks[1].log == ranks[2].log
    # Without it, they are others.
    local = quick(tmp_path / "local", *settings, "batch_size=33")
    with in_float64():
        run_threads(loopback(3), lambda workers: train(local, workers, Never()))
    assert not np.allclose(state_of(local), state_of(one), rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", RANDOM)
def test_workers_without_images_take_part_in_every_pass(tmp_path, case):
    """Random starts and noise depend on the batch, so one worker has others."""
    job = quick(tmp_path / "run", *SMALL, "batch_size=33", SYNCHRONISED, *RANDOM[case])
    ranks = logged(3)
    results = run_threads(ranks, lambda workers: train(job, workers, Never()))
    assert results[0] == results[1] == results[2]
    assert ranks[0].log == ranks[1].log == ranks[2].log != []


def test_statistics_never_differ_and_averaging_them_changes_no_bit(tmp_path, monkeypatch):
    average, local = BatchNormStatistics.average, []

    def compared(statistics):
        before = [t.clone() for t in (*statistics.means, *statistics.variances)]
        rows = statistics.workers.iall_gather(torch.cat([t.flatten() for t in before]), "compare").wait()
        local.append(bool((rows == rows[0]).all()))
        average(statistics)
        after = (*statistics.means, *statistics.variances)
        local.append(all(torch.equal(a, b) for a, b in zip(before, after, strict=True)))

    monkeypatch.setattr(BatchNormStatistics, "average", compared)
    job = quick(tmp_path / "run", *SMALL, "batch_size=33", SYNCHRONISED)
    run_threads(loopback(3), lambda workers: train(job, workers, Never()))
    assert local and all(local)


def test_it_resumes_bit_for_bit_in_the_middle_of_an_epoch(tmp_path):
    settings = [*SMALL, "batch_size=20", SYNCHRONISED]
    peace, stopped = (quick(tmp_path / name, *settings) for name in ("in peace", "stopped"))
    run_threads(loopback(2), lambda workers: train(peace, workers, Never()))
    with pytest.raises(Stopped, match="epoch 1, step 2"):
        run_threads(loopback(2), lambda workers: train(stopped, workers, AfterPolls(1)))
    run_threads(loopback(2), lambda workers: train(stopped, workers, Never()))
    assert np.array_equal(state_of(peace), state_of(stopped))


@pytest.mark.parametrize(
    "settings, subject",
    [
        (["virtual_workers=2"], "virtual_workers"),
        (["method=conadv", "concurrent.place=workers"], "concurrent.place"),
        (["method=conadv", "concurrent.halves=apart"], "concurrent.halves"),
        (["smoothing.sigma=0.1", "smoothing.workers=2"], "smoothing.workers"),
        (["model.compiled=true"], "model.compiled"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(settings, subject):
    with pytest.raises(JobError, match=rf"model.batch_norm: expected local with this {subject}: "):
        read_job(DEMO, ["attack.steps=1", "optimizer.lr=0.1", *settings, SYNCHRONISED])


def test_a_network_without_batch_norm_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "digits-cnn", without_batch_norm)
    with pytest.raises(InputError, match="the network has no batch norm"):
        train(quick(tmp_path / "run", SYNCHRONISED), SingleProcess(), Never())
