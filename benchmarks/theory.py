"""The terms of the papers' convergence bounds, on a problem where they can be computed.

``python benchmarks/theory.py [--out FOLDER] [--json PATH]``: a few minutes on one core, with a plot.

The problem is a robust regression whose regulariser is strongly concave in the perturbation, as both papers
assume (DAT, (A2); ConAdv, Assumption 2):

    phi(theta, delta; x, y) = (theta^T (x + delta) - y)^2 / 2 - mu / 2 ||delta||^2,  mu > ||theta||^2

With r = theta^T x - y the best perturbation is delta* = r theta / (mu - ||theta||^2), and grad Psi is exact.
M workers take B samples each, ascend in delta for K steps, quantise to b bits by (A5) and (A6), and update
two layers by eq. (3), u being the gradient itself, with a rate of 1 / sqrt(T). All seeds run side by side.

DAT, Theorem 1: the mean of ||grad Psi||^2 over T iterations is O(1/sqrt(T) + sigma/sqrt(MB) +
min(d/4^b, sqrt(d)/2^b) + epsilon). Every panel varies one term and keeps the others as they are; the bound's
slope is drawn beside. It is an upper bound: what falls faster does not contradict it.

ConAdv, Lemma 1: ||x*(theta_t) - x*(theta_(t - tau))|| <= L/mu ||theta_t - theta_(t - tau)||, and the latter
grows with the rate times tau; and, Theorem 1, what stale examples add to ||grad||^2, at most with tau^2.

Ratios: ``slope_T``, ``slope_MB``, ``slope_b`` (of log2, a bit), ``slope_epsilon``, ``slope_moved``,
``slope_tau``: fitted to what was measured and is not lost in the spread of the seeds; the bounds' are -0.5,
-0.5, -1 to -2, 1, 1, 2.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.exchange.protocols import Draw
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.optim.lamb import trust_ratios

D, SAMPLES, MU, NOISE, SEEDS = 64, 512, 3.0, 1.0, 6
LAYERS = 2

Panel = dict[str, list[float]]
"""``x``: what was varied; ``y``: what came out, with its standard ``error``."""


@dataclass(frozen=True)
class Setup:
    """What a run varies.

    Attributes:
        iterations: T.
        workers, batch: M and B; batch 0 takes all samples, whose gradient has no noise.
        bits: b; 32 does not quantise.
        ascent: K, steps of the inner maximisation; 0 takes the exact one.
        delay: tau of the weights that the perturbations are made with.
        rate: eta is this over sqrt(T).
    """

    iterations: int = 400
    workers: int = 4
    batch: int = 0
    bits: int = 32
    ascent: int = 0
    delay: int = 0
    rate: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """Means over the iterations, one a seed, (S,).

    Attributes:
        gradient: ||grad Psi(theta_t)||^2.
        inner: norm of the inner gradient at the perturbations used: epsilon.
        moved: ||x*(theta_t) - x*(theta_(t - tau))||.
        lemma: Lemma 1's bound of it.
    """

    gradient: Tensor
    inner: Tensor
    moved: Tensor
    lemma: Tensor


def residual(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """R of each sample, (S, n), of weights (S, D), inputs (S, n, D) and targets (S, n) for S seeds."""
    return torch.einsum("snd,sd->sn", x, theta) - y


def squared(theta: Tensor) -> Tensor:
    """||theta||^2 of each seed, to be multiplied with samples: (S, 1, 1)."""
    return theta.square().sum(1)[:, None, None]


def best_perturbation(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """delta* of each sample, (S, n, D)."""
    return residual(theta, x, y)[..., None] * theta[:, None] / (MU - squared(theta))


def inner_gradient(theta: Tensor, delta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of phi with respect to delta, (S, n, D)."""
    return residual(theta, x + delta, y)[..., None] * theta[:, None] - MU * delta


def outer_gradient(theta: Tensor, delta: Tensor, x: Tensor, y: Tensor, workers: int = 1) -> Tensor:
    """Of each worker's samples, the gradient of the mean of phi with respect to theta, (S, M, D).

    By Danskin's theorem that of Psi, if delta is delta*.
    """
    per_sample = residual(theta, x + delta, y)[..., None] * (x + delta)
    return per_sample.unflatten(1, (workers, -1)).mean(2)


def quantised(g: Tensor, bits: int, draw: Draw) -> Tensor:
    """The workers' gradients (S, M, D) as the others receive them: a norm and draws for each."""
    quantizer = Quantizer(bits, "l2", D)
    norms = quantizer.norms(g)
    return quantizer.decode(quantizer.encode(g, norms, draw.key("worker", 0)), norms)


def updated(theta: Tensor, u: Tensor, eta: float) -> Tensor:
    """Eq. (3), each of the layers with the trust ratio of its own."""
    layers = theta.view(-1, D // LAYERS)
    u = u.reshape_as(layers)
    ratios = torch.stack(trust_ratios(list(layers), list(u), 0.0, 10.0))
    return (layers - eta * ratios[:, None] * u).view_as(theta)


def run(setup: Setup) -> Outcome:
    """Algorithm 1 on the problem, of all seeds side by side."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(SEEDS, D, generator=generator)
    truth /= truth.norm(dim=1, keepdim=True)
    x = torch.randn(SEEDS, SAMPLES, D, generator=generator)
    y = residual(truth, x, NOISE * torch.randn(SEEDS, SAMPLES, generator=generator))
    theta = 0.5 * torch.randn(SEEDS, D, generator=generator) / D**0.5
    eta = setup.rate / setup.iterations**0.5
    history, sums = [theta], torch.zeros(4, SEEDS)
    for t in range(setup.iterations):
        old = history[0]
        some_x, some_y = x, y
        if setup.batch:
            some = torch.randint(SAMPLES, (SEEDS, setup.workers * setup.batch), generator=generator)
            some_x, some_y = x.gather(1, some[..., None].expand(-1, -1, D)), y.gather(1, some)
        delta = best_perturbation(old, some_x, some_y)
        if setup.ascent:
            delta = torch.zeros_like(delta)
            for _ in range(setup.ascent):
                delta = delta + inner_gradient(old, delta, some_x, some_y) / (2 * MU)
        # Without batches all workers have the same samples.
        g = outer_gradient(theta, delta, some_x, some_y, setup.workers if setup.batch else 1)
        if setup.bits < 32:
            g = quantised(g.expand(-1, setup.workers, -1), setup.bits, Draw(0, 0, t, 0, g.device))
        exact = best_perturbation(theta, x, y)
        sums += torch.stack(
            [
                outer_gradient(theta, exact, x, y)[:, 0].square().sum(1),
                inner_gradient(old, delta, some_x, some_y).norm(dim=2).mean(1),
                (exact - best_perturbation(old, x, y)).norm(dim=2).mean(1),
                lemma(theta, old, x, y).mean(1),
            ]
        )
        theta = updated(theta, g.mean(1), eta)
        history = [*history, theta][-1 - setup.delay :]
    return Outcome(*(sums / setup.iterations))


def lemma(theta: Tensor, old: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Lemma 1 of ConAdv: L_{x theta} / mu ||theta_t - theta_(t - tau)|| of each sample, (S, n).

    The derivative of the inner gradient with respect to theta is r I + theta (x + delta)^T at delta*, and phi
    is (MU - ||theta||^2)-strongly concave in delta; both are taken at theta_t.
    """
    perturbed = x + best_perturbation(theta, x, y)
    norm = squared(theta)[..., 0]
    slope = residual(theta, perturbed, y).abs() + norm.sqrt() * perturbed.norm(dim=2)
    return slope / (MU - norm) * (theta - old).norm(dim=1, keepdim=True)


def vary(values: Sequence[int], change: Callable[[int], Setup]) -> list[Outcome]:
    """One outcome a value."""
    return [run(change(value)) for value in values]


def panel(x: Sequence[float], y: Sequence[Tensor], **more: list[float]) -> Panel:
    """Mean and standard error over the seeds of what came out."""
    errors = [(of.std() / SEEDS**0.5).item() for of in y]
    return {"x": list(x), "y": [of.mean().item() for of in y], "error": errors, **more}


def measure() -> dict[str, Panel]:
    """Every panel: what was varied and what came out.

    But for the first, it is what a term adds to the runs without it, of the same seeds. The exact gradient of
    all samples has no noise; bits and delays are looked at beside the noise of batches, without which the
    quantised gradient is soon nothing and weights swing to and fro, every other step where they were.
    """
    exact, noisy = Setup(), Setup(batch=64)
    without, without_but_noise = run(exact).gradient, run(noisy).gradient
    times, batches = [25, 50, 100, 200, 400, 800], [1, 2, 4, 8, 16, 32, 64]
    bits, steps, delays = [2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6], [1, 2, 4, 8, 16]
    inexact = vary(steps, lambda k: replace(exact, ascent=k))
    stale = vary(delays, lambda tau: replace(noisy, delay=tau))
    return {
        "T": panel(times, [o.gradient for o in vary(times, lambda t: replace(exact, iterations=t))]),
        "M B": panel(
            [exact.workers * b for b in batches],
            [o.gradient - without for o in vary(batches, lambda b: replace(exact, batch=b))],
        ),
        "b": panel(
            bits, [o.gradient - without_but_noise for o in vary(bits, lambda b: replace(noisy, bits=b))]
        ),
        "epsilon": panel([o.inner.mean().item() for o in inexact], [o.gradient - without for o in inexact]),
        "moved": panel(
            delays, [o.moved for o in stale], **{"Lemma 1": [o.lemma.mean().item() for o in stale]}
        ),
        "tau": panel(delays, [o.gradient - without_but_noise for o in stale]),
    }


def certain(panel: Panel) -> NDArray[np.bool_]:
    """Which values are twice their standard error or more above zero; the others lie in the noise."""
    return np.array(panel["y"]) > 2 * np.array(panel["error"])


def slopes(panels: dict[str, Panel]) -> dict[str, float]:
    """What was fitted to the values that are certain: of log y over log x, of b of log2 y over b."""
    found = {}
    for name, panel in panels.items():
        x, y = (np.array(panel[key])[certain(panel)] for key in ("x", "y"))
        if len(x) > 1:
            slope = np.polyfit(x if name == "b" else np.log2(x), np.log2(y), 1)[0]
            found[f"slope_{name.replace(' ', '')}"] = float(slope)
    return found


BOUNDS = {
    "T": ("iterations T", "mean ||grad Psi||^2", lambda x: x**-0.5),
    "M B": ("samples of a step, M B", "added", lambda x: x**-0.5),
    "b": ("bits b", "added", lambda x: np.minimum(D / 4.0**x, D**0.5 / 2.0**x)),
    "epsilon": ("inner gradient, epsilon", "added", lambda x: x),
    "moved": ("delay tau", "||x*(theta_t) - x*(theta_(t-tau))||", lambda x: x),
    "tau": ("delay tau", "added", lambda x: x**2),
}
"""Of each panel both axes, and how the bound depends on what was varied."""


def draw(panels: dict[str, Panel], file: Path) -> None:
    """A panel for each term; the bound, whose constant is not known, as low as all values allow."""
    columns = 3
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    for number, (name, (label, what, bound)) in enumerate(BOUNDS.items(), start=1):
        axes = figure.add_subplot(-(-len(BOUNDS) // columns), columns, number)
        panel = {key: np.array(values, float) for key, values in panels[name].items()}
        x, y, kept = panel["x"], panel["y"], certain(panels[name])
        axes.errorbar(
            x[kept], y[kept], panel["error"][kept], fmt="o-", color="#1f6fb2", capsize=2, label="measured"
        )
        constant = (y / bound(x)).max()
        axes.plot(x, constant * bound(x), "--", color="#c9a15a", label="slope of the bound")
        if not kept.all():
            lost = 2 * panel["error"][~kept]
            axes.plot(x[~kept], lost, "v", color="#b9cfe4", label="in the noise, below")
        if "Lemma 1" in panel:
            axes.plot(x, panel["Lemma 1"], ":", color="#777777", label="Lemma 1")
        axes.set_yscale("log")
        if name != "b":
            axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel(what)
        axes.legend(fontsize=8)
    figure.savefig(file)


def main() -> None:
    """Measure, print the tables, draw, write the JSON."""
    parser = argparse.ArgumentParser(description="the terms of the convergence bounds, one by one")
    parser.add_argument("--out", type=Path, default=Path("runs/theory"), help="folder of the plot")
    parser.add_argument("--json", type=Path, help="write environment, values and ratios here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    panels = measure()
    for name, panel in panels.items():
        label, what, _ = BOUNDS[name]
        columns = {label: panel["x"], what: panel["y"]}
        columns |= {key: panel[key] for key in ("error", "Lemma 1") if key in panel}
        print(tabulate(columns, headers="keys", tablefmt="github", floatfmt=".4g") + "\n")
    ratios = slopes(panels)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(panels, arguments.out / "bounds.svg")
    draw(panels, arguments.out / "bounds.png")
    print(f"plot: {arguments.out / 'bounds.svg'}")
    if arguments.json:
        environment = describe_environment(SingleProcess(), torch.device("cpu"))
        report = {"environment": environment, "panels": panels, "ratios": ratios}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
