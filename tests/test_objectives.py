"""The local cost of eq. (2)."""

import pytest
import torch
from torch import nn

from hpcdat.objectives import clean_loss, local_cost


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])


def by_hand(logits, y):
    return torch.stack([torch.log(z.exp().sum()) - z[label] for z, label in zip(logits, y, strict=True)])


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_clean_and_perturbed_cost_are_weighed(batch, lambda_):
    model, x, y = batch
    x_adv = (x + 0.1).clamp(0, 1)
    expected = lambda_ * by_hand(model(x), y) + by_hand(model(x_adv), y)
    torch.testing.assert_close(local_cost(model, x, y, x_adv, lambda_=lambda_), expected)


def test_label_smoothing_gives_a_share_of_the_target_to_all_classes(batch):
    model, x, y = batch
    smooth = local_cost(model, x, y, x, lambda_=0.5, label_smoothing=0.3)
    classes = torch.stack([by_hand(model(x), torch.full_like(y, c)) for c in range(3)])
    torch.testing.assert_close(smooth, 1.5 * (0.7 * by_hand(model(x), y) + 0.3 * classes.mean(0)))


def test_plain_training_costs_the_clean_loss(batch):
    model, x, y = batch
    torch.testing.assert_close(local_cost(model, x, y, None), by_hand(model(x), y))
    assert clean_loss(model(x), y).shape == (5,)
