"""The local cost of eq. (2)."""

import pytest
import torch
from torch import nn

from hpcdat.models.losses import Labelled, clean_loss, divergence, local_cost


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])


def by_hand(logits, y):
    return torch.stack([torch.log(z.exp().sum()) - z[label] for z, label in zip(logits, y, strict=True)])


@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_clean_and_perturbed_cost_are_weighed(batch, weights):
    model, x, y = batch
    x_adv = (x + 0.1).clamp(0, 1)
    expected = weights[0] * by_hand(model(x), y).sum() + weights[1] * by_hand(model(x_adv), y).sum()
    cost = local_cost(model, Labelled(x, y), Labelled(x_adv, y), weights=weights)
    torch.testing.assert_close(cost.total, expected)
    seen = (model(x).argmax(1) == y).sum() if weights[0] else 0
    assert cost.correct == seen


def test_either_half_can_be_left_to_another_worker(batch):
    model, x, y = batch
    whole = local_cost(model, Labelled(x, y), Labelled(x, y), weights=(0.25, 0.75)).total
    halves = [
        local_cost(model, *parts, weights=(0.25, 0.75)).total
        for parts in ((Labelled(x, y), None), (None, Labelled(x, y)), (None, None))
    ]
    torch.testing.assert_close(sum(halves), whole)


def test_label_smoothing_gives_a_share_of_the_target_to_all_classes(batch):
    model, x, y = batch
    images = Labelled(x, y)
    smooth = local_cost(model, images, images, weights=(0.5, 1.0), label_smoothing=0.3).total
    classes = torch.stack([by_hand(model(x), torch.full_like(y, c)) for c in range(3)])
    torch.testing.assert_close(smooth, 1.5 * (0.7 * by_hand(model(x), y) + 0.3 * classes.mean(0)).sum())


def by_hand_divergence(model, x, x_adv):
    p, q = (model(images).double().softmax(1) for images in (x, x_adv))
    return torch.stack(
        [sum(a * (a / b).log() for a, b in zip(*row, strict=True)) for row in zip(p, q, strict=True)]
    )


def test_trades_adds_the_divergence_from_the_clean_prediction(batch):
    model, x, y = batch
    x_adv = (x + 0.4).clamp(0, 1)
    cost = local_cost(model, Labelled(x, y), Labelled(x_adv, y), weights=(1.0, 6.0), phi="trades")
    expected = by_hand(model(x), y).sum() + 6 * by_hand_divergence(model, x, x_adv).sum()
    torch.testing.assert_close(cost.total.double(), expected.double())
    assert divergence(model(x), model(x)).abs().max() < 1e-6 < divergence(model(x_adv), model(x)).min()


def test_gradients_of_trades_are_those_of_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.rand(4, 1, 2, 2).double(), torch.tensor([0, 1, 2, 0])
    x_adv = (x + 0.3).clamp(0, 1)
    parameters = tuple(p.detach().clone().requires_grad_() for p in model.parameters())

    def cost(*values):
        def with_values(images):
            return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (images,))

        clean = with_values(x)
        return clean_loss(clean, y).sum() + 6 * divergence(with_values(x_adv), clean).sum()

    names = [name for name, _ in model.named_parameters()]
    assert torch.autograd.gradcheck(cost, parameters)
    total = local_cost(model, Labelled(x, y), Labelled(x_adv, y), weights=(1.0, 6.0), phi="trades").total
    for ours, checked in zip(
        torch.autograd.grad(total, list(model.parameters())),
        torch.autograd.grad(cost(*parameters), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, checked)


def test_trades_without_weight_is_plain_training(batch):
    model, x, y = batch
    images = Labelled(x, y), Labelled((x + 0.1).clamp(0, 1), y)
    trades = local_cost(model, *images, weights=(1.0, 0.0), phi="trades").total
    assert torch.equal(trades, local_cost(model, images[0], None, weights=(1.0, 0.0)).total)


def test_plain_training_costs_the_clean_loss(batch):
    model, x, y = batch
    cost = local_cost(model, Labelled(x, y), None, weights=(1.0, 0.0))
    torch.testing.assert_close(cost.total, by_hand(model(x), y).sum())
    assert clean_loss(model(x), y).shape == (5,)
