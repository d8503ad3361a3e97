"""LALR against eq. (3) and Algorithm A2 written out in float64."""

import numpy as np
import pytest
import torch

from hpcdat.config.sections import Optimizer
from hpcdat.models import build_model
from hpcdat.optim import build_optimizer
from hpcdat.optim.lamb import LAMB

ETA, BETA1, BETA2, ZETA = 0.05, 0.9, 0.999, 1e-12


def reference(theta, gradients, *, layerwise, decay, c_l, c_u):
    """Eq. (3) for one layer, step by step, in float64."""
    theta = theta.astype(np.float64)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g**2
        u = (m / (1 - BETA1**t)) / np.sqrt(v / (1 - BETA2**t) + ZETA) + decay * theta
        norm, size = np.linalg.norm(theta), np.linalg.norm(u)
        tau = min(max(norm, c_l), c_u)
        ratio = tau / size if layerwise and norm > 0 and size > 0 else 1.0
        theta = theta - ETA * ratio * u
    return theta


@pytest.mark.parametrize("c_l, c_u", [(0.0, 10.0), (0.0, 0.5), (20.0, 30.0)], ids=["free", "upper", "lower"])
@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_lamb_equals_eq_3_in_float64(c_l, c_u, layerwise, dtype, tolerance):
    generator = np.random.default_rng(0)
    layers = [generator.normal(size=shape) for shape in ((4, 3), (5,), (2, 2, 3, 3))]
    layers.append(np.zeros((3, 2)))  # a layer that starts at zero
    gradients = [[generator.normal(size=layer.shape) for layer in layers] for _ in range(5)]
    theta = [torch.tensor(layer, dtype=dtype) for layer in layers]
    optimizer = LAMB(
        [{"params": theta, "layerwise": layerwise}],
        lr=ETA,
        betas=(BETA1, BETA2),
        zeta=ZETA,
        weight_decay=0.01,
        c_l=c_l,
        c_u=c_u,
    )
    for step in gradients:
        for p, g in zip(theta, step, strict=True):
            p.grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
    for index, (p, layer) in enumerate(zip(theta, layers, strict=True)):
        expected = reference(
            layer, [g[index] for g in gradients], layerwise=layerwise, decay=0.01, c_l=c_l, c_u=c_u
        )
        np.testing.assert_allclose(p.double().numpy(), expected, rtol=tolerance, atol=tolerance)


def test_zero_weights_and_zero_gradients_take_the_plain_step():
    """With c_l = 0 a layer at zero would never move; a zero direction must not divide by zero."""
    zero, still = torch.zeros(2, 2), torch.ones(2, 2)
    zero.grad, still.grad = torch.full((2, 2), 0.5), torch.zeros(2, 2)
    LAMB([zero, still], lr=ETA).step()
    torch.testing.assert_close(zero, torch.full((2, 2), -ETA))
    assert torch.equal(still, torch.ones(2, 2))


def test_the_length_of_a_layers_step_is_eta_times_its_clipped_norm():
    theta = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, theta.grad = theta.clone(), torch.randn(7, 5, dtype=torch.float64)
    LAMB([theta], lr=ETA, c_u=3.0).step()
    assert before.norm() > 3
    assert (theta - before).norm().item() == pytest.approx(ETA * 3.0)


@pytest.mark.parametrize("name", ["lamb", "sgd"])
def test_biases_and_batch_norm_are_neither_decayed_nor_rescaled(name):
    model = build_model("digits-cnn", channels=1, num_classes=10, mean=[0.5], std=[0.25], seed=0)
    optimizer = build_optimizer(model, Optimizer(name=name, lr=0.1, weight_decay=0.5))
    weights, others = optimizer.param_groups
    assert all(p.dim() > 1 for p in weights["params"]) and weights["weight_decay"] == 0.5
    assert all(p.dim() <= 1 for p in others["params"]) and others["weight_decay"] == 0
    assert others["layerwise"] is False
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_state_can_be_saved_and_taken_up():
    def fresh():
        theta = torch.ones(3, 3, dtype=torch.float64)
        return theta, LAMB([theta], lr=ETA)

    def steps(theta, optimizer, numbers):
        for number in numbers:
            theta.grad = torch.full((3, 3), float(number), dtype=torch.float64) + torch.eye(3)
            optimizer.step()

    unbroken, optimizer = fresh()
    steps(unbroken, optimizer, [1, -2, 3, 1])
    broken, optimizer = fresh()
    steps(broken, optimizer, [1, -2])
    taken_up, second = fresh()
    taken_up.copy_(broken)
    second.load_state_dict(optimizer.state_dict())
    steps(taken_up, second, [3, 1])
    assert torch.equal(taken_up, unbroken)


@pytest.mark.parametrize(
    "change", [{"lr": 0}, {"zeta": 0}, {"weight_decay": -1}, {"betas": (1.0, 0.9)}, {"c_l": 3.0, "c_u": 2.0}]
)
def test_values_out_of_range_are_refused(change):
    with pytest.raises(ValueError):
        LAMB([torch.ones(2)], **{"lr": 0.1} | change)
