"""A robust regression on which what the theorems speak of has a closed form.

    phi(theta, delta; x, y) = (theta^T (x + delta) - y)^2 / 2 - mu / 2 ||delta||^2,  mu > ||theta||^2

The regulariser makes phi strongly concave in the perturbation, as both papers assume (DAT, A2; ConAdv,
Assumption 2). With r = theta^T x - y and k = mu / (mu - ||theta||^2):

    delta* = r theta / (mu - ||theta||^2),    max phi = k r^2 / 2

The objective is c times the mean of phi(theta, 0) plus 1 - c times the mean of max phi: DAT's Psi with
lambda = 0 for c = 0, ConAdv's L_D for c = 1/2. It is convex, being a mean of maxima of convex functions, so
that its minimum is where the gradient vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Regression:
    """The problem of S data sets side by side, or of one that S runs share.

    Attributes:
        x, y: inputs (S, n, d) and targets (S, n); S = 1 goes with weights (S, d) of any S.
        mu: strength of the regulariser.
        clean: c, the weight of the loss without perturbation.
    """

    x: Tensor
    y: Tensor
    mu: float
    clean: float = 0.0

    def _left(self, theta: Tensor) -> Tensor:
        """Mu - ||theta||^2, how strongly phi is concave in delta: (S, 1)."""
        return self.mu - theta.square().sum(1, keepdim=True)

    def residual(self, theta: Tensor) -> Tensor:
        """R of each sample, (S, n)."""
        return (self.x @ theta[..., None])[..., 0] - self.y

    def best(self, theta: Tensor) -> Tensor:
        """delta* of each sample, (S, n, d)."""
        return (self.residual(theta) / self._left(theta))[..., None] * theta[:, None]

    def inner_gradient(self, theta: Tensor, delta: Tensor) -> Tensor:
        """The gradient of phi with respect to delta, (S, n, d)."""
        shifted = self.residual(theta) + (delta @ theta[..., None])[..., 0]
        return shifted[..., None] * theta[:, None] - self.mu * delta

    def ascended(self, theta: Tensor, steps: int) -> Tensor:
        """The perturbations after so many steps of gradient ascent from zero with rate 1 / (2 mu)."""
        delta = torch.zeros_like(self.x).expand(len(theta), -1, -1)
        for _ in range(steps):
            delta = delta + self.inner_gradient(theta, delta) / (2 * self.mu)
        return delta

    def sample_gradients(self, theta: Tensor, delta: Tensor) -> Tensor:
        """The gradient of each sample's share of the objective with respect to theta, delta fixed, (S, n, d).

        At delta* it is that of the maximum, by Danskin's theorem.
        """
        r = self.residual(theta)[..., None]
        perturbed = (r + delta @ theta[..., None]) * (self.x + delta)
        return self.clean * r * self.x + (1 - self.clean) * perturbed

    def value(self, theta: Tensor) -> Tensor:
        """The objective, (S,)."""
        k = self.mu / self._left(theta)[:, 0]
        return (self.clean + (1 - self.clean) * k) * self.residual(theta).square().mean(1) / 2

    def gradient(self, theta: Tensor) -> Tensor:
        """The exact gradient of the objective, (S, d)."""
        r, k = self.residual(theta), self.mu / self._left(theta)
        mean_rx = (r[..., None] * self.x).mean(1)
        turned = k.square() / self.mu * r.square().mean(1, keepdim=True) * theta
        return (self.clean + (1 - self.clean) * k) * mean_rx + (1 - self.clean) * turned

    def hessian(self, theta: Tensor) -> Tensor:
        """The second derivative of the objective at weights (d,), (d, d), of one data set."""
        k = self.mu / (self.mu - theta @ theta)
        moments = self.moments
        second, b = moments.second, moments.second @ theta - moments.mixed
        squared = theta @ moments.second @ theta - 2 * theta @ moments.mixed + moments.targets
        crossed = torch.outer(theta, b)
        robust = (
            k * second
            + 2 * k**2 / self.mu * (crossed + crossed.T)
            + squared * k**2 / self.mu * torch.eye(len(theta), dtype=theta.dtype)
            + 4 * squared * k**3 / self.mu**2 * torch.outer(theta, theta)
        )
        return self.clean * second + (1 - self.clean) * robust

    def minimum(self) -> float:
        """The least value of the objective of one data set: Newton's method from zero."""
        theta = torch.zeros_like(self.x[0, 0])
        for _ in range(50):
            step = torch.linalg.solve(self.hessian(theta), self.gradient(theta[None])[0])
            theta = theta - step
            if step.norm() < 1e-12:
                return self.value(theta[None]).item()
        raise RuntimeError("Newton's method has not converged: is mu too small for the data?")

    @cached_property
    def moments(self) -> Moments:
        """Of the only data set."""
        (x,), (y,) = self.x, self.y
        return Moments(x.T @ x / len(x), x.T @ y / len(x), y.square().mean())


@dataclass(frozen=True)
class Moments:
    """Means over the samples.

    Attributes:
        second: of x x^T, (d, d).
        mixed: of y x, (d,).
        targets: of y^2.
    """

    second: Tensor
    mixed: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Ball:
    """Constants that hold for all weights with ||theta|| <= radius, of one data set.

    Attributes:
        problem: the regression.
        radius: R, with R^2 < mu.
    """

    problem: Regression
    radius: float

    @property
    def concavity(self) -> float:
        """Mu of both papers: phi is mu - ||theta||^2 strongly concave in delta."""
        return self.problem.mu - self.radius**2

    @property
    def smoothness(self) -> float:
        """An upper bound of ||Hessian|| of the objective, term by term of ``Regression.hessian``.

        With it as every L_i, DAT's (A54) holds. Constants of (A11) alone would not do: they are about one
        layer that moves, (A54) about all at once.
        """
        mu, r, moments = self.problem.mu, self.radius, self.problem.moments
        k = mu / self.concavity
        steepest = torch.linalg.eigvalsh(moments.second)[-1].item()
        mixed, targets = moments.mixed.norm().item(), moments.targets.item()
        squared = steepest * r**2 + 2 * r * mixed + targets
        b = min((steepest * squared) ** 0.5, steepest * r + mixed)
        turned = 4 * k**2 / mu * r * b + squared * k**2 / mu + 4 * squared * k**3 * r**2 / mu**2
        return self.problem.clean * steepest + (1 - self.problem.clean) * (k * steepest + turned)

    @property
    def reach(self) -> Tensor:
        """An upper bound of ||x + delta||, (n,), for any delta on the way from zero to delta*."""
        (x,), (y,) = self.problem.x, self.problem.y
        norms = x.norm(dim=1)
        return norms + (self.radius * norms + y.abs()) * self.radius / self.concavity

    @property
    def l_theta_theta(self) -> float:
        """L_{theta theta} of ConAdv's Assumption 1: the second derivative is x x^T."""
        return self.reach.square().max().item()

    @property
    def l_theta_x(self) -> float:
        """L_{theta x}, and L_{x theta}, of Assumption 1: the mixed derivative is r I + x theta^T."""
        return (2 * self.radius * self.reach + self.problem.y[0].abs()).max().item()

    @property
    def l_concurrent(self) -> float:
        """L of ConAdv's Lemma 2: L_{theta theta} + L_{x theta} L_{theta x} / (2 mu)."""
        return self.l_theta_theta + self.l_theta_x**2 / (2 * self.concavity)


def on_the_sphere(samples: int, dimensions: int, mu: float, noise: float, clean: float = 0.0) -> Regression:
    """One data set of inputs of norm one, so that no sample's constants are far above the others'.

    The targets come from weights of norm 0.6, with noise; always the same ones.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, dimensions, generator=generator, dtype=torch.float64)
    x /= x.norm(dim=1, keepdim=True)
    truth = torch.randn(dimensions, generator=generator, dtype=torch.float64)
    y = x @ (0.6 * truth / truth.norm())
    y = y + noise * torch.randn(samples, generator=generator, dtype=torch.float64)
    return Regression(x[None], y[None], mu, clean)


def gaussian(seeds: int, samples: int, dimensions: int, mu: float, noise: float) -> Regression:
    """A data set for each seed, of normal inputs; the targets come from weights of norm one, with noise."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(seeds, dimensions, generator=generator, dtype=torch.float64)
    truth /= truth.norm(dim=1, keepdim=True)
    x = torch.randn(seeds, samples, dimensions, generator=generator, dtype=torch.float64)
    y = (x @ truth[..., None])[..., 0]
    y = y + noise * torch.randn(seeds, samples, generator=generator, dtype=torch.float64)
    return Regression(x, y, mu)
