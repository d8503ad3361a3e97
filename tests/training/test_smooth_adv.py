"""Smooth-AT: noise, the attack on all copies together, and the cost of each of them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hpcdat.attacks.pgd import PGD, input_gradient
from hpcdat.config.job_file import JobError, read_job
from hpcdat.config.sections import Smoothing
from hpcdat.distributed.single_process import Completed, SingleProcess
from hpcdat.errors import InputError
from hpcdat.models.losses import Labelled
from hpcdat.training.roles import Role, assign_roles
from hpcdat.training.smooth_adv import NoisyCopies
from tests.conftest import DEMO

PLACE = (2, 3, 1)
"""Epoch, step and batch."""


class Member(SingleProcess):
    """One of a team, whose other members' part of an exchange is given."""

    def __init__(self, rank, size, others=()):
        super().__init__()
        self.rank, self.size, self.others = rank, size, others

    def iall_gather(self, row, name):
        return Completed(torch.stack([row, *self.others]))


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return Labelled(torch.rand(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]))


@pytest.fixture
def model():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    # So steep that the copies disagree.
    for p in net.parameters():
        p.data *= 4
    return net


def copies_of(number, sigma=0.25, team=None, seed=0):
    return NoisyCopies(Smoothing(sigma=sigma, copies=number), seed, team or SingleProcess())


def soft_loss(model, x, y, noise):
    """-log of the mean probability, by hand."""
    p = torch.stack([model(x + noise[:, i]).softmax(1) for i in range(noise.shape[1])]).mean(0)
    return -p[range(len(y)), y].log()


def test_the_attack_raises_the_loss_of_the_mean_probability(model, batch):
    """Value and gradient; the mean of the losses has another gradient."""
    copies = copies_of(6)
    noise = copies.noise(batch.x, *PLACE)
    x = batch.x.clone().requires_grad_()
    loss = soft_loss(model, x, batch.y, noise)
    (expected,) = torch.autograd.grad(loss.sum(), x)
    smoothed, phi = copies.smoothed(model, batch, *PLACE)
    torch.testing.assert_close(phi(smoothed(batch.x)), loss.detach())
    torch.testing.assert_close(input_gradient(smoothed, phi, batch.x), expected)
    losses = [cross_entropy(model(x + noise[:, i]), batch.y, reduction="none") for i in range(6)]
    (other,) = torch.autograd.grad(sum(losses).sum() / 6, x)
    assert (other - expected).abs().max() > 0.1 * expected.abs().max()


def test_parts_of_the_gradient_add_up_to_that_of_all_copies(model, batch):
    """Three workers with two copies each, each knowing the others' sums; no exchange of pixels or classes."""
    whole = copies_of(6)
    smoothed, phi = whole.smoothed(model, batch, *PLACE)
    expected = input_gradient(smoothed, phi, batch.x)
    log_p = [
        -cross_entropy(model(batch.x + eta), batch.y, reduction="none").detach()
        for eta in whole.noise(batch.x, *PLACE).unbind(1)
    ]
    sums = [torch.stack(log_p[i : i + 2]).logsumexp(0) for i in (0, 2, 4)]
    parts = []
    for rank in range(3):
        team = Member(rank, 3, [s for other, s in enumerate(sums) if other != rank])
        smoothed, phi = copies_of(6, team=team).smoothed(model, batch, *PLACE)
        torch.testing.assert_close(phi(smoothed(batch.x)), soft_loss_of_all(model, batch, whole))
        parts.append(input_gradient(smoothed, phi, batch.x))
    torch.testing.assert_close(sum(parts), expected)


def soft_loss_of_all(model, batch, copies):
    return soft_loss(model, batch.x, batch.y, copies.noise(batch.x, *PLACE)).detach()


def test_one_copy_is_the_plain_loss_at_a_noisy_image(model, batch):
    copies = copies_of(1)
    smoothed, phi = copies.smoothed(model, batch, *PLACE)
    noisy = batch.x + copies.noise(batch.x, *PLACE)[:, 0]
    torch.testing.assert_close(phi(smoothed(batch.x)), cross_entropy(model(noisy), batch.y, reduction="none"))


def test_probabilities_too_small_for_a_float_have_a_gradient(batch):
    """All copies wrong by a thousand in the logits: their probabilities are 0 in float32."""
    torch.manual_seed(2)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    linear[1].weight.data *= 1e4
    images = Labelled(batch.x.float(), linear(batch.x.float()).argmin(1))
    smoothed, phi = copies_of(4, sigma=0.01).smoothed(linear, images, *PLACE)
    gradient = input_gradient(smoothed, phi, images.x)
    assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 100).all()


def test_the_oracle_finds_the_worst_common_perturbation_of_a_linear_net(batch):
    """Two classes: along the weights, whatever the noise; the model is left as it was."""
    torch.manual_seed(3)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double().train()
    before = copy.deepcopy(linear.state_dict())
    images = Labelled(0.4 + 0.2 * batch.x, torch.tensor([0, 1, 1, 0, 1]))
    smoothed, phi = copies_of(7).smoothed(linear, images, *PLACE)
    x_adv = PGD(eps=0.1, step_size=0.1, steps=1, norm="l2", random_start=False)(smoothed, phi, images.x)
    towards = linear[1].weight[1 - images.y] - linear[1].weight[images.y]
    expected = 0.1 * towards / towards.norm(dim=1, keepdim=True)
    torch.testing.assert_close((x_adv - images.x).flatten(1), expected.detach())
    assert linear.training and all(torch.equal(before[k], v) for k, v in linear.state_dict().items())
    assert all(p.grad is None for p in linear.parameters())


def test_noise_is_that_of_the_copy_however_they_are_spread():
    x = torch.zeros(5, 3, 64, 64)
    whole = copies_of(6).noise(x, *PLACE)
    for size in (1, 2, 3, 6):
        parts = [copies_of(6, team=Member(rank, size)).noise(x, *PLACE) for rank in range(size)]
        assert torch.equal(torch.cat(parts, 1), whole)
    others = [copies_of(6, seed=1).noise(x, *PLACE), whole.roll(1, dims=1)]
    others += [copies_of(6).noise(x, *place) for place in ((1, 3, 1), (2, 2, 1), (2, 3, 0))]
    for other in others:
        # Five standard deviations of the correlation of independent numbers.
        assert (
            abs(torch.corrcoef(torch.stack([whole.flatten(), other.flatten()]))[0, 1])
            < 5 / whole.numel() ** 0.5
        )
    assert abs(whole.mean()) < 5 * 0.25 / whole.numel() ** 0.5
    assert abs(whole.std() - 0.25) < 5 * 0.25 / (2 * whole.numel()) ** 0.5


def test_copies_of_an_image_stand_together_with_its_label_and_are_not_clipped(batch):
    copies = copies_of(3, sigma=2.0)
    noisy = copies.noisy(batch, *PLACE)
    noise = copies.noise(batch.x, *PLACE)
    assert torch.equal(noisy.y, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1]))
    assert torch.equal(noisy.x[7], batch.x[2] + noise[2, 1])
    assert noisy.x.min() < 0 and noisy.x.max() > 1


def test_workers_that_share_a_batch_are_neighbours():
    job = read_job(DEMO, ["smoothing.sigma=0.1", "smoothing.copies=12", "smoothing.workers=3"])
    roles = assign_roles(job, 6)
    assert list(roles) == [Role((0,), (0,), (0,))] * 3 + [Role((1,), (1,), (1,))] * 3
    assert [roles.first_with_clean(number) for number in range(roles.batches)] == [0, 3]
    # Each learns the statistics of its own copies.
    assert [role.trained["clean"] for role in roles] == [1] * 6
    assert (job.copies, job.passes) == (12, 4)
    with pytest.raises(InputError, match="8 workers cannot be divided into teams of 3"):
        assign_roles(job, 8)


@pytest.mark.parametrize(
    "settings, told",
    [
        (["smoothing.copies=4"], "smoothing.sigma"),
        (["smoothing.workers=2"], "smoothing.sigma"),
        (["smoothing.sigma=0.1", "method=plain"], "smoothing: .*plain"),
        (["smoothing.sigma=0.1", "method=conadv", "attack.steps=1"], "smoothing: .*conadv"),
        (["smoothing.sigma=0.1", "objective.lambda=1"], "objective.lambda"),
        (["smoothing.sigma=0.1", "objective.regulariser=trades"], "objective.regulariser"),
        (["smoothing.sigma=0.1", "smoothing.copies=6", "smoothing.workers=4"], "smoothing.workers"),
        (["smoothing.sigma=0.1", "smoothing.workers=2", "data.corrupt=skip"], "data.corrupt: .*stop"),
    ],
)
def test_what_does_not_go_together_is_told(settings, told):
    with pytest.raises(JobError, match=told):
        read_job(DEMO, settings)
