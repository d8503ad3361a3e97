"""LARS against float64 arithmetic, across changes of the rate."""

import numpy as np
import pytest
import torch
from torch import nn

from hpcdat.config.sections import Optimizer
from hpcdat.optim import build_optimizer
from hpcdat.optim.lars import LARS


def reference(theta, gradients, rates, *, momentum, decay, coefficient, layerwise):
    """You et al. 2017, Algorithm 1: the rate multiplies what goes into the momentum."""
    theta, v = theta.copy(), np.zeros_like(theta)
    for g, rate in zip(gradients, rates, strict=True):
        norm, slope = np.sqrt((theta**2).sum()), np.sqrt((g**2).sum())
        local = 1.0
        if layerwise and norm > 0 and slope > 0:
            local = coefficient * norm / (slope + decay * norm)
        v = momentum * v + rate * local * (g + decay * theta)
        theta = theta - v
    return theta


RATES = [0.0, 3.0, 3.0, 35.0, 0.5, 0.05]
"""A warm-up's first step, and falls by which the two places of the rate differ."""


@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_updates_are_those_of_float64_arithmetic(layerwise, decay):
    random = np.random.default_rng(0)
    theta = random.normal(size=(4, 5))
    gradients = random.normal(size=(len(RATES), 4, 5)) * 0.1
    gradients[1] = 0
    settings = {"momentum": 0.9, "decay": decay, "coefficient": 0.001, "layerwise": layerwise}
    expected = reference(theta, gradients, RATES, **settings)
    parameter = nn.Parameter(torch.tensor(theta))
    group = {"params": [parameter], "layerwise": layerwise}
    optimizer = LARS([group], lr=1.0, momentum=0.9, weight_decay=decay, trust_coefficient=0.001)
    for g, rate in zip(gradients, RATES, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-15)


def test_a_layer_that_starts_at_zero_moves():
    parameter = nn.Parameter(torch.zeros(3, 3))
    optimizer = LARS([parameter], lr=0.5)
    parameter.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.full((3, 3), -0.5))


def test_biases_and_batch_norm_are_left_out_where_the_job_excludes_them():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, Optimizer(name="lars", lr=2.0, weight_decay=0.5, exclude="vectors"))
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.1)
    optimizer.step()
    for name in ("0.bias", "1.weight", "1.bias"):
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), before[name] - 0.2)
    weight, g = before["0.weight"], torch.full((3, 3), 0.1)
    local = 0.001 * weight.norm() / (g.norm() + 0.5 * weight.norm())
    torch.testing.assert_close(model[0].weight.detach(), weight - 2 * local * (g + 0.5 * weight))


@pytest.mark.parametrize(
    "change", [{"lr": 0.0}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"trust_coefficient": 0.0}]
)
def test_values_out_of_range_are_refused(change):
    with pytest.raises(ValueError):
        LARS([nn.Parameter(torch.ones(1))], **{"lr": 0.1} | change)
