"""What the trainer does holds for any network, whatever its parameters and buffers are."""

import pytest
import torch

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, Stopped
from hpcdat.exchange.gradient_exchange import gradients_of
from hpcdat.models import build_model_for
from hpcdat.models.fingerprint import named_state
from hpcdat.optim import build_optimizer
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.replicas import BatchNormStatistics, make_equal
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO, Never
from tests.distributed.programs.training import in_float64
from tests.training.network_steps import (
    algorithm_of,
    assert_no_trace,
    on_two_and_one,
    one_at_a_time,  # noqa: F401
    step_on,
)
from tests.training.test_resume import AfterPolls, quick

OWN = "tests.own_networks"
pytestmark = pytest.mark.usefixtures("one_at_a_time")


def job_of(name, *settings):
    always = ["method=dat-fgsm", "attack.steps=1", "optimizer.lr=0.1"]
    return read_job(DEMO, [f"model.name={OWN}:{name}", *always, *settings])


@pytest.mark.parametrize("name", ["Odd", "Attention", "frozen_backbone", "batch_norm", "Drawn"])
@pytest.mark.parametrize("method", ["dat-fgsm", "plain"])
def test_two_workers_are_one_with_two_virtual_workers(name, method):
    """Weights, statistics and other buffers, in float64, with dropout too."""
    job = job_of(name, f"method={method}")
    with in_float64():
        two, one = on_two_and_one(job)
        start = dict(build_model_for(job, 10).named_parameters())
    for key, value in one.items():
        assert torch.equal(two[0][key], two[1][key]), key
        torch.testing.assert_close(
            two[0][key], value, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: key + text
        )
        if key in start and not start[key].requires_grad:
            assert torch.equal(value, start[key]), key


@pytest.mark.parametrize("optimizer", ["lamb", "lalr-momentum", "lars", "sgd"])
@pytest.mark.parametrize(
    "exchange", [[], ["exchange.bits=8", "exchange.block=tensor", "exchange.exact_1d=false"]]
)
def test_every_optimiser_and_exchange_takes_parameters_of_any_kind(optimizer, exchange):
    job = job_of("Odd", "method=plain", f"optimizer.name={optimizer}", *exchange)
    two = run_threads(loopback(2), lambda worker: step_on(job, worker))
    start = dict(build_model_for(job, 10).named_parameters())
    for key, value in start.items():
        assert two[0][key].isfinite().all()
        moved = not torch.equal(two[0][key], value)
        if key != "1.unused.bias":  # which lars does not decay
            assert moved == (value.requires_grad and value.numel() > 0), key


@pytest.mark.parametrize("name", ["Odd", "Attention", "frozen_backbone", "Drawn"])
def test_an_attack_leaves_no_trace(name):
    algorithm = algorithm_of(job_of(name), SingleProcess())
    if name == "frozen_backbone":
        algorithm.model[1][0].eval()
    assert_no_trace(algorithm)


@pytest.mark.parametrize("name", ["Attention", "frozen_backbone", "batch_norm"])
def test_bfloat16_and_channels_last_leave_weights_and_buffers_in_float32(name):
    reduced = step_on(job_of(name, "model.precision=bfloat16", "model.channels_last=true"), SingleProcess())
    whole = step_on(job_of(name), SingleProcess())
    assert any(not torch.equal(value, whole[key]) for key, value in reduced.items())
    for key, value in reduced.items():
        assert value.dtype == whole[key].dtype and value.is_contiguous() and value.isfinite().all()


@pytest.mark.parametrize("name", ["Odd", "Drawn"])
def test_a_run_resumes_bit_for_bit(tmp_path, name):
    """On two workers, from the middle of an epoch, where their buffers differ."""
    jobs = {
        run: quick(tmp_path / run, f"model.name={OWN}:{name}", "epochs=2", "batch_size=25")
        for run in ("whole", "stopped")
    }

    def run(job, stop):
        return run_threads(loopback(2), lambda worker: train(job, worker, stop()))

    run(jobs["whole"], Never)
    with pytest.raises(Stopped, match="stopped in epoch 1, step 2"):
        run(jobs["stopped"], lambda: AfterPolls(1))
    run(jobs["stopped"], Never)
    whole, stopped = (RunFolder(job.run_dir).newest_checkpoint().model for job in jobs.values())
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_buffers_are_averaged_by_images_and_counters_are_the_largest():
    job = job_of("Odd")

    def program(worker):
        model = build_model_for(job, 10)
        network = model[1]
        statistics = BatchNormStatistics(model, worker, {"clean": 1, "adversarial": 1})
        statistics.count(1 + 2 * worker.rank)
        network.mean = network.mean + 4.0 * worker.rank
        network.passes += 5 + worker.rank
        statistics.average()
        return network.mean[0].item(), network.passes.item(), network.mask.all().item()

    assert run_threads(loopback(2), program) == [(3.0, 6, True)] * 2


def test_workers_are_made_equal_in_tensors_of_any_kind():
    job = job_of("Odd")

    def program(worker):
        model = build_model_for(job, 10)
        if worker.rank:
            with torch.no_grad():
                for tensor in named_state(model).values():
                    tensor.zero_()
        make_equal(worker, model)
        return [tensor.tolist() for tensor in named_state(model).values()]

    one, other = run_threads(loopback(2), program)
    assert one == other and one[0] != 0


def test_empty_parameters_are_neither_exchanged_nor_optimised():
    model = build_model_for(job_of("Odd"), 10)
    names = [name for name, _ in gradients_of(model)]
    assert "1.empty" not in names and "1.scale" in names and "1.frozen.weight" not in names
    groups = build_optimizer(model, job_of("Odd").optimizer).param_groups
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_a_network_of_frozen_parameters_alone_cannot_be_trained(monkeypatch):
    job = job_of("frozen_backbone")
    model = build_model_for(job, 10).requires_grad_(False)
    with pytest.raises(InputError, match="has no parameters that are trained: all have requires_grad=False"):
        Algorithm1(job, model, job.exchange, SingleProcess(), torch.device("cpu"))


def test_gradients_that_arrive_twice_are_reported():
    """The bucket may have been sent with the first of them."""
    job = job_of("Recomputed", "objective.lambda=1")
    with pytest.raises(InputError, match=r"1\.second\..* arrives more than once.*exchange\.overlap: false"):
        run_threads(loopback(2), lambda worker: step_on(job, worker))
    job = job_of("Recomputed", "objective.lambda=1", "exchange.overlap=false")
    with in_float64():
        two, one = on_two_and_one(job)
    assert all(torch.allclose(two[0][key], one[key], rtol=1e-9, atol=1e-9) for key in one)
