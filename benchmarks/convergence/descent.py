"""Algorithm 1 of DAT and of ConAdv on the regression, several seeds side by side.

M workers draw B samples each, maximise over the perturbations, exactly or by K steps of ascent, at the
weights of tau steps ago, quantise by (A5) and (A6), and leave the update to one of the package's
optimisers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convergence.regression import Regression
from hpcdat.exchange.protocols import Draw
from hpcdat.exchange.quantizer import Quantizer

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Setup:
    """What a run varies.

    Attributes:
        optimiser: makes it, of the layers of all seeds.
        iterations: T.
        layers: h, of equal size.
        workers, batch: M and B, drawn with replacement; batch 0 takes all samples, so that there is no noise.
        bits: b; 32 does not quantise.
        ascent: K, steps of the inner maximisation; 0 takes the exact one.
        delay: tau of the weights that the perturbations are made with.
        fault: what a broken program would do to the gradient (S, d) before the update.
    """

    optimiser: MakeOptimizer
    iterations: int
    layers: int
    workers: int = 4
    batch: int = 0
    bits: int = 32
    ascent: int = 0
    delay: int = 0
    fault: Callable[[Tensor], Tensor] | None = None

    @property
    def samples(self) -> float:
        """M B, infinite without noise."""
        return self.workers * self.batch or float("inf")


@dataclass(frozen=True)
class Seen:
    """The largest values of a run, over all steps, seeds and workers: what the problem does not give.

    Attributes:
        weights: ||theta_t||, to be compared with the radius that constants are computed for.
        shortest, longest: the least and the largest norm of a layer's weights.
        sent: norm of a worker's gradient: G of DAT's A1.
        used: norm of the gradient that the optimiser gets: M of ConAdv's Assumption 3.
        variance: sigma_ij^2, over the samples, of the exact gradient of one, (d,): (A18).
        inner: epsilon_ij, the square of what the perturbations used change in a sample's gradient, mean over
            the samples, (d,): (A23), at the current weights' delta*.
        rounding: delta_ij^2, the variance of (A6), exact, (d,): (A19).
        suboptimality: lambda of ConAdv's Lemma 3, by its definition.
        moved: ||x*(theta_t) - x*(theta_(t - tau))||.
    """

    weights: float
    shortest: float
    longest: float
    sent: float
    used: float
    variance: Tensor
    inner: Tensor
    rounding: Tensor
    suboptimality: float
    moved: float


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        gradient: mean over the iterations of ||grad F(theta_t)||^2, of each seed, (S,).
        layers: likewise of the sum over the layers of ||grad_i F(theta_t)||.
        slack: likewise of the norm of the inner gradient at the perturbations used.
        start, start_layers: the first two at theta_1.
        seen: constants.
    """

    gradient: Tensor
    layers: Tensor
    slack: Tensor
    start: float
    start_layers: float
    seen: Seen


class _Peaks(dict[str, Tensor]):
    """The largest value of each quantity so far, element by element of its last dimension."""

    def note(self, **values: Tensor) -> None:
        for name, value in values.items():
            value = value.flatten(0, -2).amax(0)
            self[name] = torch.maximum(self[name], value) if name in self else value


def descend(problem: Regression, setup: Setup, theta: Tensor, seed: int = 0) -> Outcome:
    """Run the algorithm from weights (S, d), which stay as they are."""
    theta, update = theta.clone(), torch.zeros_like(theta)
    parameters = in_layers(theta, setup.layers)
    for parameter, gradient in zip(parameters, in_layers(update, setup.layers), strict=True):
        parameter.grad = gradient
    optimiser = setup.optimiser(parameters)
    rng = np.random.default_rng(seed)
    history, peaks, sums, first = (
        [theta.clone()],
        _Peaks(),
        theta.new_zeros(3, len(theta)),
        theta.new_zeros(2),
    )
    for t in range(setup.iterations):
        old, exact = history[0], problem.best(theta)
        stale = problem.best(old) if setup.delay else exact
        used = problem.ascended(old, setup.ascent) if setup.ascent else stale
        per_sample = problem.sample_gradients(theta, exact)
        taken = per_sample if used is exact else problem.sample_gradients(theta, used)
        g = drawn(taken, setup, rng)
        sent = g if setup.bits == 32 else quantised(g.expand(-1, setup.workers, -1), setup.bits, t)

        gradient = per_sample.mean(1)
        norms = gradient.unflatten(1, (setup.layers, -1)).norm(dim=2).sum(1)
        measures = [gradient.square().sum(1), norms, problem.inner_gradient(old, used).norm(dim=2).mean(1)]
        sums += torch.stack(measures)
        if t == 0:
            first = torch.stack(measures[:2]).mean(1)
        weights = theta.unflatten(1, (setup.layers, -1)).norm(dim=2)
        gap = (stale - used) * problem.inner_gradient(old, used)
        peaks.note(
            weights=theta.norm(dim=1)[:, None],
            shortest=-weights.flatten()[:, None],
            longest=weights.flatten()[:, None],
            sent=g.norm(dim=2)[..., None],
            variance=per_sample.var(1, correction=0),
            inner=(taken - per_sample).square().mean(1),
            rounding=rounding_variance(g, setup.bits),
            suboptimality=gap.sum(2)[..., None],
            moved=(exact - stale).norm(dim=2)[..., None],
        )

        update.copy_(sent.mean(1) if setup.fault is None else setup.fault(sent.mean(1)))
        peaks.note(used=update.norm(dim=1)[:, None])
        optimiser.step()
        history = [*history, theta.clone()][-1 - setup.delay :]
    gradient, layers, slack = sums / setup.iterations
    return Outcome(gradient, layers, slack, first[0].item(), first[1].item(), _seen(peaks))


def _seen(peaks: _Peaks) -> Seen:
    """With numbers for what has only one element."""
    return Seen(
        weights=peaks["weights"].item(),
        shortest=-peaks["shortest"].item(),
        longest=peaks["longest"].item(),
        sent=peaks["sent"].item(),
        used=peaks["used"].item(),
        variance=peaks["variance"],
        inner=peaks["inner"],
        rounding=peaks["rounding"],
        suboptimality=peaks["suboptimality"].item(),
        moved=peaks["moved"].item(),
    )


def in_layers(weights: Tensor, layers: int) -> list[Tensor]:
    """Views of weights (S, d): the layers of the first seed, those of the second and so on."""
    return [layer for of_seed in weights for layer in of_seed.chunk(layers)]


def drawn(gradients: Tensor, setup: Setup, rng: np.random.Generator) -> Tensor:
    """The mean gradient of each worker's batch, (S, M, d), of the gradients of all samples, (S, n, d).

    Without batches all workers have the same samples: (S, 1, d).
    """
    if not setup.batch:
        return gradients.mean(1, keepdim=True)
    seeds, samples, _ = gradients.shape
    counts = rng.multinomial(setup.batch, np.full(samples, 1 / samples), size=(seeds, setup.workers))
    return torch.from_numpy(counts / setup.batch) @ gradients


def quantised(g: Tensor, bits: int, step: int) -> Tensor:
    """The workers' gradients (S, M, d) as the others receive them: a norm and draws for each."""
    quantizer, g = _quantizer(g, bits), g.float()
    norms = quantizer.norms(g)
    codes = quantizer.encode(g, norms, Draw(0, 0, step, 0, g.device).key("worker", 0))
    return quantizer.decode(codes, norms).double()


def rounding_variance(g: Tensor, bits: int) -> Tensor:
    """The variance of each coordinate of Q(g) by (A6), of gradients (..., d)."""
    if bits == 32:
        return torch.zeros_like(g)
    step = g.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(g.dtype).tiny) / _quantizer(g, bits).s
    up = (g / step) % 1
    return step.square() * up * (1 - up)


def _quantizer(g: Tensor, bits: int) -> Quantizer:
    """(A5): the norm of the whole gradient."""
    return Quantizer(bits, "l2", g.shape[-1])
