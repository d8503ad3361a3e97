"""LALR against eq. (3) and Algorithm A2 written out in float64."""

import numpy as np
import pytest
import torch

from hpcdat.config.sections import Optimizer
from hpcdat.models import build_model
from hpcdat.optim import build_optimizer
from hpcdat.optim.lamb import LAMB, MomentumLALR
from hpcdat.optim.lars import LARS

ETA, BETA1, BETA2, ZETA = 0.05, 0.9, 0.999, 1e-12


def reference(theta, gradients, *, layerwise, decay, c_l, c_u):
    """Eq. (3) for one layer, step by step, in float64; 1 for the ratio where it is not defined or zero."""
    theta = theta.astype(np.float64)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g**2
        u = (m / (1 - BETA1**t)) / np.sqrt(v / (1 - BETA2**t) + ZETA) + decay * theta
        tau, size = min(max(np.linalg.norm(theta), c_l), c_u), np.linalg.norm(u)
        ratio = tau / size if layerwise and tau > 0 and size > 0 else 1.0
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


@pytest.mark.parametrize("name", ["lamb", "lalr-momentum", "lars", "sgd"])
@pytest.mark.parametrize("exclude", ["none", "vectors"])
def test_exclude_decides_whether_biases_and_batch_norm_are_decayed_and_rescaled(name, exclude):
    model = build_model("digits-cnn", channels=1, num_classes=10, mean=[0.5], std=[0.25], seed=0)
    settings = Optimizer(name=name, lr=0.1, weight_decay=0.5, exclude=exclude)
    layers, *others = build_optimizer(model, settings).param_groups
    assert layers["layerwise"] is True and layers["weight_decay"] == 0.5
    if exclude == "none":
        assert not others and len(layers["params"]) == len(list(model.parameters()))
        return
    (vectors,) = others
    assert vectors["layerwise"] is False and vectors["weight_decay"] == 0
    assert {p.dim() > 1 for p in layers["params"]} == {True}
    assert {p.dim() > 1 for p in vectors["params"]} == {False}
    assert len(layers["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_without_momentum_and_clip_eq_3_over_momentum_is_lars():
    """Where the two differ is in what momentum averages and in the clip."""
    generator = np.random.default_rng(0)
    theta = torch.tensor(generator.normal(size=(4, 3)))
    one, other = theta.clone(), theta.clone()
    lalr = MomentumLALR([one], lr=ETA, momentum=0.0, c_u=1e9)
    lars = LARS([other], lr=ETA, momentum=0.0, trust_coefficient=1.0)
    for _ in range(4):
        one.grad = other.grad = torch.tensor(generator.normal(size=(4, 3)))
        lalr.step()
        lars.step()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert not torch.equal(one, theta)


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


@pytest.mark.parametrize("change", [{"lr": 0}, {"weight_decay": -1}, {"momentum": 1.0}, {"c_u": -1.0}])
def test_so_are_those_of_eq_3_over_momentum(change):
    with pytest.raises(ValueError):
        MomentumLALR([torch.ones(2)], **{"lr": 0.1} | change)
