"""What a worker computes in a step, held against the formulas written out."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from hpcdat.attacks.norm_balls import BALLS
from hpcdat.cluster.workers import Workers
from hpcdat.concurrent import Batch
from hpcdat.data import find_images
from hpcdat.job_file import read_job
from hpcdat.objectives import Labelled
from hpcdat.record import RunFolder
from hpcdat.seeds import derive
from hpcdat.trainer import Trainer, build_model_for
from tests.conftest import DEMO, Never


@pytest.fixture
def make(tmp_path):
    def make(*settings):
        job = read_job(DEMO, [f"run_dir={tmp_path}", "attack.steps=1", *settings])
        train, test = find_images(job.data)
        folder, device = RunFolder(job.run_dir), torch.device("cpu")
        return Trainer(job, Workers(), folder, train, test, test, device, Never())

    return make


@pytest.fixture
def images(generator):
    return Labelled(torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 10)


def kl(clean, perturbed):
    """sum_k p_k(x) (log p_k(x) - log p_k(x + delta)): Zhang et al. 2019, eq. (5)."""
    p, q = clean.softmax(1), perturbed.softmax(1)
    return (p * (p.log() - q.log())).sum(1)


def gradients(trainer, images, x_adv):
    trainer.model.train()
    batch = Batch(0, len(images.x), {0: images})
    trainer.local_gradient(batch, {0: Labelled(x_adv, images.y)})
    trainer.exchange.finish(torch.zeros(5))
    return [p.grad for p in trainer.parameters]


def test_trades_attacks_the_divergence_and_descends_loss_and_divergence(make, images):
    trainer = make("objective.regulariser=trades", "objective.beta=3", "attack.norm=l2")
    job, (x, y) = trainer.job, images
    net = build_model_for(job, 10)
    # Step 2, (A1): one step from a random start up the divergence from the image as it is.
    ball = BALLS["l2"](x, job.attack.eps)
    random = torch.Generator().manual_seed(derive(job.seed, "attack", 0, 0, 0))
    start = ball.project(x + ball.sample(random)).requires_grad_()
    net.eval()
    (up,) = torch.autograd.grad(kl(net(x).detach(), net(start)).sum(), start)
    step = job.attack.step_size * up / up.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x_adv = trainer.attack(images, 0, 0)
    torch.testing.assert_close(x_adv, ball.round_inside(ball.project(start.detach() + step)))
    # Step 3, (A2): the cross entropy of the image and beta times the divergence.
    net.train()
    perturbed, clean = net(x_adv), net(x)
    cost = (cross_entropy(clean, y, reduction="none") + 3 * kl(clean, perturbed)).mean()
    expected = torch.autograd.grad(cost, list(net.parameters()))
    torch.testing.assert_close(gradients(trainer, images, x_adv), list(expected))


def test_the_sum_of_conadvs_losses_is_twice_their_mean(make, images):
    x_adv = (images.x + 0.1).clamp(max=1)
    mean, total = (
        gradients(make("method=disadv", f"objective.combine={how}"), images, x_adv) for how in ("mean", "sum")
    )
    assert all(p.abs().max() > 0 for p in mean)
    torch.testing.assert_close(total, [2 * p for p in mean])
