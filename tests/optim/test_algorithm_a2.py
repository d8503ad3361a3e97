"""Algorithm A2 over a whole network, batch norm and biases included, against NumPy in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from hpcdat.config.job_file import read_job
from hpcdat.optim import build_optimizer
from hpcdat.optim.lr_schedule import learning_rate
from tests.conftest import DEMO

DECAY = 0.01
STEPS = 2


def make_model():
    """Convolutions without and with a bias, batch norm, and a layer whose norm c_u = 10 clips, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(12, 5)),
    ).double()
    with torch.no_grad():
        model[-1].weight.mul_(12 / model[-1].weight.norm())
    return model


def gradients_of(model, weights, update):
    """Of the cost of the update's batch, at these weights."""
    generator = torch.Generator().manual_seed(update)
    x = torch.randn(16, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(5, (16,), generator=generator)
    theta = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
    cost = nn.functional.cross_entropy(functional_call(copy.deepcopy(model), theta, x), y)
    found = torch.autograd.grad(cost, list(theta.values()))
    return {name: g.numpy() for name, g in zip(theta, found, strict=True)}


def clip(norm, c_l, c_u):
    return min(max(norm, c_l), c_u)


def algorithm_a2(model, rates, *, decay, c_l, c_u, beta1=0.9, beta2=0.999, zeta=1e-12):
    """A2 with weight decay in the direction, as the public code has it; yields the weights of every t."""
    theta = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    m, v = ({name: np.zeros_like(p) for name, p in theta.items()} for _ in range(2))
    for t, eta in enumerate(rates, start=1):
        for name, g in gradients_of(model, theta, t).items():
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            u = (m[name] / (1 - beta1**t)) / np.sqrt(v[name] / (1 - beta2**t) + zeta) + decay * theta[name]
            tau, size = clip(np.linalg.norm(theta[name]), c_l, c_u), np.linalg.norm(u)
            ratio = tau / size if tau > 0 and size > 0 else 1.0
            theta[name] = theta[name] - eta * ratio * u
        yield dict(theta)


def momentum_lalr(model, rates, *, decay, c_l, c_u, beta=0.9):
    """Eq. (3) over momentum: LARS as Algorithm 1 of You et al. 2019 has it, phi the clip."""
    theta = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    m = {name: np.zeros_like(p) for name, p in theta.items()}
    for t, eta in enumerate(rates, start=1):
        for name, g in gradients_of(model, theta, t).items():
            m[name] = beta * m[name] + (1 - beta) * (g + decay * theta[name])
            phi = clip(np.linalg.norm(theta[name]), c_l, c_u)
            rate = eta * phi / np.linalg.norm(m[name]) if phi > 0 else eta
            theta[name] = theta[name] - rate * m[name]
        yield dict(theta)


@pytest.mark.parametrize("method", ["dat-pgd", "dat-fgsm"])
@pytest.mark.parametrize("name, reference", [("lamb", algorithm_a2), ("lalr-momentum", momentum_lalr)])
@pytest.mark.parametrize("c_l, c_u", [(0, 10), (0.5, 1.5)])
def test_a_network_trains_as_eq_3_in_float64(method, name, reference, c_l, c_u):
    """Five warm-up epochs in front of two, the rate falling after the first of these; two updates each."""
    rates = [r for k in (0.06, 0.12, 0.18, 0.24, 0.3, 0.3, 0.03) for r in [k] * STEPS]
    lalr = [f"optimizer.name={name}", f"optimizer.c_l={c_l}", f"optimizer.c_u={c_u}"]
    lalr += ["optimizer.lr=0.3", f"optimizer.weight_decay={DECAY}"]
    lalr += ["epochs=2", "schedule.decay_epochs=[1]", "attack.steps=1"]
    job = read_job(DEMO, [f"method={method}", *lalr])
    model, network = make_model(), make_model()
    optimizer = build_optimizer(model, job.optimizer)
    expected = reference(network, rates, decay=DECAY, c_l=c_l, c_u=c_u)
    for update, theta in enumerate(expected):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(job, *divmod(update, STEPS), STEPS, 100)
        weights = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
        found = gradients_of(network, weights, update + 1)
        for n, p in model.named_parameters():
            p.grad = torch.tensor(found[n])
        optimizer.step()
        for n, p in model.named_parameters():
            np.testing.assert_allclose(p.detach().numpy(), theta[n], rtol=1e-12, atol=1e-12, err_msg=n)
    assert update + 1 == job.total_epochs * STEPS == len(rates)


@pytest.mark.parametrize("name", ["lamb", "lalr-momentum"])
def test_every_tensor_moves_by_eta_times_its_clipped_norm(name):
    job = read_job(DEMO, [f"optimizer.name={name}", "optimizer.lr=0.1", f"optimizer.weight_decay={DECAY}"])
    model = make_model()
    optimizer = build_optimizer(model, job.optimizer)
    for update in range(3):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        found = gradients_of(model, {n: p.numpy() for n, p in before.items()}, update)
        for n, p in model.named_parameters():
            p.grad = torch.tensor(found[n])
        optimizer.step()
        for n, p in model.named_parameters():
            if norm := before[n].norm().item():
                length = (p.detach() - before[n]).norm().item()
                assert length == pytest.approx(0.1 * min(norm, 10), rel=1e-12), n
    assert all(p.detach().norm() > 0 for p in model.parameters())


@pytest.mark.parametrize("exclude, step", [("none", 0.05 * 10 / 2048**0.5), ("vectors", 0.05)])
def test_a_wide_batch_norm_moves_as_far_as_its_clipped_norm_allows(exclude, step):
    """gamma of 2,048 ones has norm 45; with a constant gradient Adam's direction has +-1 everywhere."""
    job = read_job(DEMO, ["optimizer.lr=0.05", "optimizer.weight_decay=0", f"optimizer.exclude={exclude}"])
    model = nn.BatchNorm1d(2048).double()
    optimizer = build_optimizer(model, job.optimizer)
    for p in model.parameters():
        p.grad = torch.linspace(1, 2, 2048, dtype=torch.float64)
    for _ in range(5):
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), torch.full_like(model.weight, 1 - 5 * step))
