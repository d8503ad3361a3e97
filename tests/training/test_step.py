"""What a worker computes in a step, compared with the formulas written out."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from hpcdat.attacks.norm_balls import BALLS
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model_for
from hpcdat.models.losses import Labelled
from hpcdat.seeds import derive
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO


def make(*settings):
    job = read_job(DEMO, ["attack.steps=1", *settings])
    return Algorithm1(job, build_model_for(job, 10), job.exchange, SingleProcess(), torch.device("cpu"))


@pytest.fixture
def images(generator):
    return Labelled(torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 10)


def kl(clean, perturbed):
    """sum_k p_k(x) (log p_k(x) - log p_k(x + delta)): Zhang et al. 2019, eq. (5)."""
    p, q = clean.softmax(1), perturbed.softmax(1)
    return (p * (p.log() - q.log())).sum(1)


def gradients(algorithm, images, x_adv):
    algorithm.model.train()
    algorithm.local_gradient(Batch(0, 0, len(images.x), {0: images}), {0: Labelled(x_adv, images.y)})
    algorithm.exchange.finish(torch.zeros(5))
    return [p.grad for p in algorithm.parameters]


def test_trades_attacks_the_divergence_and_descends_loss_and_divergence(images):
    algorithm = make("objective.regulariser=trades", "objective.beta=3", "attack.norm=l2")
    job, (x, y) = algorithm.job, images
    net = build_model_for(job, 10)
    # Step 2, (A1): one step from a random start up the divergence from the image as it is.
    ball = BALLS["l2"](x, job.attack.eps)
    random = torch.Generator().manual_seed(derive(job.seed, "attack", 0, 0, 0))
    start = ball.project(x + ball.sample(random)).requires_grad_()
    net.eval()
    (up,) = torch.autograd.grad(kl(net(x).detach(), net(start)).sum(), start)
    step = job.attack.step_size * up / up.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x_adv = algorithm.attack(Batch(0, 0, len(x), {0: images}), 0)
    torch.testing.assert_close(x_adv, ball.round_inside(ball.project(start.detach() + step)))
    # Step 3, (A2): the cross entropy of the image and beta times the divergence.
    net.train()
    perturbed, clean = net(x_adv), net(x)
    cost = (cross_entropy(clean, y, reduction="none") + 3 * kl(clean, perturbed)).mean()
    expected = torch.autograd.grad(cost, list(net.parameters()))
    torch.testing.assert_close(gradients(algorithm, images, x_adv), list(expected))


def test_the_sum_of_conadvs_losses_is_twice_their_mean(images):
    x_adv = (images.x + 0.1).clamp(max=1)
    mean, total = (
        gradients(make("method=disadv", f"objective.combine={how}"), images, x_adv) for how in ("mean", "sum")
    )
    assert all(p.abs().max() > 0 for p in mean)
    torch.testing.assert_close(total, [2 * p for p in mean])
