"""The attack could be captured in a CUDA graph: it is a function of buffers, and a replay is the attack."""

import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model_for
from hpcdat.models.losses import Labelled
from hpcdat.seeds import derive
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO
from tests.fake_cuda.capture import Capture, difference


class Attacked:
    """A trained network, whose attack reads its images from buffers."""

    def __init__(self, *settings):
        self.job = read_job(DEMO, ["attack.steps=1", *settings])
        model = build_model_for(self.job, 10).train()
        self.algorithm = Algorithm1(self.job, model, self.job.exchange, SingleProcess(), torch.device("cpu"))
        self.images = Labelled(torch.empty(4, 1, 8, 8), torch.empty(4, dtype=torch.int64))

    def train(self, step):
        """A step of training on other images, which moves weights and statistics."""
        batches = [
            Batch(0, s, 4, {0: Labelled(torch.rand(4, 1, 8, 8), torch.arange(4))}) for s in (step, step + 1)
        ]
        delay = self.algorithm.adversary.delay
        self.algorithm.adversary.begin_epoch(batches[:delay])
        assert self.algorithm.step(batches[0], batches[1] if delay else None).finite

    def read(self, step):
        """Fill the buffers, and seed as the attack of a step does."""
        generator = torch.Generator().manual_seed(step)
        self.images.x.copy_(torch.rand(4, 1, 8, 8, generator=generator))
        self.images.y.copy_(torch.randint(10, (4,), generator=generator))
        self.algorithm.generator.manual_seed(derive(self.job.seed, "attack", 0, step, 0))

    def attack(self, step):
        return self.algorithm.attack(Batch(0, step, 4, {0: self.images}), 0)


@pytest.fixture(autouse=True)
def _images_are_not_checked(monkeypatch):
    """On a GPU the check is an assertion there: see test_measurements_on_fake_cuda."""
    monkeypatch.setattr("hpcdat.attacks.pgd._check_images", lambda x, *, wait: None)


ATTACKS = {
    "PGD, batch norm folded": ["attack.steps=3"],
    "PGD": ["attack.steps=3", "attack.fold_batch_norm=false"],
    "statistics of the batch": ["attack.steps=2", "attack.batch_norm=train"],
    "FGSM": ["method=dat-fgsm"],
    "N-FGSM": ["method=dat-fgsm", "attack.name=n-fgsm"],
    "l2": ["attack.steps=2", "attack.norm=l2"],
    "TRADES": ["attack.steps=2", "objective.regulariser=trades"],
    "ConAdv": ["method=conadv"],
    "bfloat16": ["attack.steps=2", "model.precision=bfloat16", "model.channels_last=true"],
    "pre-activation": ["attack.steps=2", "model.name=preact-resnet18", "model.width=0.0625"],
}


@pytest.mark.parametrize("settings", ATTACKS.values(), ids=ATTACKS)
def test_a_replay_with_other_images_and_weights_is_the_attack_of_then(settings):
    attacked = Attacked(*settings)
    # The optimiser makes its buffers in the first step.
    attacked.train(0)
    attacked.read(1)
    first = Capture(lambda: attacked.attack(1))
    before = first.result.clone()
    attacked.train(1)
    attacked.train(2)
    attacked.read(3)
    second = Capture(lambda: attacked.attack(3))
    assert difference(first, second) == ""
    assert not torch.equal(before, second.result)
    attacked.read(3)
    assert torch.equal(first.replay(), second.result)


def other_weights(attacked):
    layer = next(module for module in attacked.algorithm.model.modules() if hasattr(module, "weight"))
    layer.weight.data = layer.weight.data.clone()


def other_number(attacked):
    object.__setattr__(attacked.algorithm.pgd, "step_size", 0.01)


def another_step(attacked):
    object.__setattr__(attacked.algorithm.pgd, "steps", 2)


def other_buffers(attacked):
    attacked.images = Labelled(*(t.clone() for t in attacked.images))


@pytest.mark.parametrize("change", [other_weights, other_number, another_step, other_buffers])
def test_a_change_that_a_graph_would_not_see_is_found(change):
    attacked = Attacked("method=dat-fgsm", "attack.fold_batch_norm=false")
    attacked.read(0)
    first = Capture(lambda: attacked.attack(0))
    attacked.read(0)
    assert difference(first, Capture(lambda: attacked.attack(0))) == ""
    change(attacked)
    assert difference(first, Capture(lambda: attacked.attack(0))) != ""


def test_a_number_that_the_host_reads_is_found():
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        Capture(lambda: x * x.sum().item())
