"""The closed forms that benchmarks/theory.py takes for exact, against automatic differentiation."""

import pytest
import torch

from tests.conftest import CHECKOUT


@pytest.fixture
def theory(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    import theory

    return theory


@pytest.fixture
def problem():
    """Weights of two seeds, and six samples of each, in float64."""
    torch.manual_seed(0)
    theta = torch.randn(2, 5, dtype=torch.float64)
    return theta / theta.norm(dim=1, keepdim=True), torch.randn(2, 6, 5).double(), torch.randn(2, 6).double()


def phi(theory, theta, delta, x, y):
    """Of each sample, as the docstring of the benchmark defines it."""
    return ((theta[:, None] * (x + delta)).sum(2) - y).square() / 2 - theory.MU / 2 * delta.square().sum(2)


def test_the_best_perturbation_is_the_maximum(theory, problem):
    theta, x, y = problem
    best = theory.best_perturbation(*problem).requires_grad_()
    (slope,) = torch.autograd.grad(phi(theory, theta, best, x, y).sum(), best)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)
    other = best + 0.1 * torch.randn_like(best)
    assert (phi(theory, theta, other, x, y) < phi(theory, theta, best, x, y)).all()
    (slope,) = torch.autograd.grad(phi(theory, theta, other, x, y).sum(), other)
    torch.testing.assert_close(theory.inner_gradient(theta, other, x, y), slope)


def test_the_outer_gradient_is_that_of_each_workers_mean_maximum(theory, problem):
    """Through the maximum, whose own derivative Danskin's theorem leaves out."""
    theta, x, y = problem
    theta.requires_grad_()
    psi = phi(theory, theta, theory.best_perturbation(theta, x, y), x, y).unflatten(1, (3, 2)).mean(2)
    expected = torch.stack([torch.autograd.grad(p.sum(), theta, retain_graph=True)[0] for p in psi.T], 1)
    delta = theory.best_perturbation(*problem)
    torch.testing.assert_close(theory.outer_gradient(theta, delta, x, y, workers=3), expected)


def test_lemma_1_bounds_a_small_step_of_the_perturbation(theory, problem):
    theta, x, y = problem
    old = theta + 1e-4 * torch.randn_like(theta)
    moved = (theory.best_perturbation(*problem) - theory.best_perturbation(old, x, y)).norm(dim=2)
    assert (moved <= 1.001 * theory.lemma(theta, old, x, y)).all() and (moved > 0).all()
