"""The step on a fake GPU: no tensor of the CPU meets one of the GPU, and it waits once."""

import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model_for
from hpcdat.models.losses import Labelled
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO
from tests.fake_cuda.gpu import CUDA
from tests.fake_cuda.workers import EqualWorkers, check_sent

ONE_WAIT = {"training.step.step: tolist": 1}
"""The outcome of a step is read at its end, all numbers at once."""
EXCHANGED = {**ONE_WAIT, "distributed.device.synchronize: synchronize": 2}
"""Between several workers, :meth:`GradientExchange.finish` takes the time from the last gradient to the last
sum, and waits for both."""

STEPS = {
    "dat-pgd": ["attack.steps=2"],
    "dat-fgsm": ["method=dat-fgsm"],
    "plain": ["method=plain"],
    "dat-lsgd": ["method=dat-lsgd"],
    "disadv": ["method=disadv"],
    "conadv": ["method=conadv"],
    "trades": ["objective.regulariser=trades"],
    "label smoothing": ["objective.label_smoothing=0.1"],
    "l2": ["attack.norm=l2"],
    "N-FGSM": ["method=dat-fgsm", "attack.noise=2", "attack.projection=false"],
    "attack with statistics of its batch": ["attack.batch_norm=train"],
    "gradient as direction": ["method=disadv", "attack.direction=gradient"],
    "smoothing": ["smoothing.sigma=0.1", "smoothing.copies=2"],
    "momentum": ["method=dat-pgd-without-lalr"],
    "lalr-momentum": ["optimizer.name=lalr-momentum"],
    "lars": ["method=plain", "optimizer.name=lars"],
    "vectors excluded": ["optimizer.exclude=vectors"],
    "bfloat16": ["model.precision=bfloat16", "model.channels_last=true"],
    "averaged weights": ["averaging.ema=0.99"],
    "virtual workers": ["virtual_workers=2"],
}


def make(workers, *settings):
    job = read_job(DEMO, ["attack.steps=1", *settings])
    with torch.device(CUDA):
        model = build_model_for(job, 10)
    model.train()
    return Algorithm1(job, model, job.exchange, workers, CUDA)


def batch(algorithm, step):
    """Four images for each batch of the step that this worker reads."""
    numbers = range(algorithm.batches)
    images = Labelled(torch.rand(4, 1, 8, 8, device=CUDA), torch.zeros(4, dtype=torch.int64, device=CUDA))
    return Batch(0, step, 4 * len(numbers), dict.fromkeys(numbers, images))


def waits_of_second_step(gpu, algorithm):
    """Optimisers make their buffers in the first step."""
    delay = algorithm.adversary.delay
    batches = [batch(algorithm, step) for step in range(2 + delay)]
    if delay:
        algorithm.adversary.begin_epoch(batches[:delay])
    for step in range(2):
        gpu.waits.clear()
        algorithm.step(batches[step], batches[step + delay] if delay else None)
    return gpu.waits


@pytest.mark.parametrize("settings", STEPS.values(), ids=STEPS)
def test_a_step_waits_once(gpu, settings):
    algorithm = make(SingleProcess(), *settings)
    assert waits_of_second_step(gpu, algorithm) == ONE_WAIT
    assert all(p.grad.is_cuda for p in algorithm.parameters)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["exchange.bits=8", "exchange.protocol=sharded_server", "exchange.two_sided=true"],
        ["exchange.bits=8", "exchange.protocol=hierarchical", "exchange.across=ring"],
        ["exchange.bits=4", "exchange.protocol=allgather", "exchange.error_feedback=true"],
        ["exchange.bits=8", "exchange.overlap=false"],
        ["model.batch_norm=synchronised"],
        ["method=conadv", "concurrent.delay=1"],
        ["smoothing.sigma=0.1", "smoothing.copies=4", "smoothing.workers=2"],
    ],
    ids=", ".join,
)
def test_a_step_of_several_workers_waits_for_the_exchange(gpu, settings):
    workers = EqualWorkers(4, [0, 0, 1, 1])
    algorithm = make(workers, *settings)
    assert waits_of_second_step(gpu, algorithm) == EXCHANGED
    check_sent(workers)


def test_examples_are_handed_over_outside_nccl(gpu):
    workers = EqualWorkers(4)
    algorithm = make(workers, "method=conadv", "concurrent.delay=1", "concurrent.place=workers")
    copies = {"training.concurrent_attack._hand_over: copy to the host": 2}
    assert waits_of_second_step(gpu, algorithm) == {**EXCHANGED, **copies}
    assert {device for kind, _, device in workers.sent if kind == "all-to-all"} == {"cpu"}


@pytest.mark.parametrize("engine, overlaps", [("torch", False), ("horovod", True)])
def test_sums_of_batch_norm_and_of_gradients_are_not_in_progress_at_once(gpu, engine, overlaps):
    workers = EqualWorkers(4)
    workers.engine = engine
    algorithm = make(workers, "model.batch_norm=synchronised")
    assert algorithm.exchange.settings.overlap == overlaps
