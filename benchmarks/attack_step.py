"""The time of a PGD-10 training step, compared with its bare arithmetic, bfloat16 and foolbox.

``python benchmarks/attack_step.py [--json PATH] [--rounds N]``: preact-resnet18, 64 images of 32x32,
eps 8/255, one update by LAMB; on the GPU if there is one. All parts are timed in every round, one after the
other in rotating order, and their medians are compared, so that a change of the machine's load affects all
of them.

Ratios:

- ``pgd10_fp32_efficiency``: ideal over measured time, where ideal is 10 (forward + input gradient)
  + (forward + backward) in plain torch, timed in one piece. 1: attack and update take no time beyond the
  arithmetic of the model.
- ``pgd10_bf16_over_fp32``: time with ``precision: bfloat16`` and ``channels_last: true`` over that with
  the defaults; null where the device has no bfloat16 arithmetic.
- ``over_foolbox``: our time over that of the same step with foolbox's LinfPGD as the attack.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from tabulate import tabulate
from timing import in_turns
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hpcdat.attacks.pgd import PGD
from hpcdat.config.sections import Optimizer
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model
from hpcdat.models.losses import Labelled, clean_loss, local_cost
from hpcdat.optim import build_optimizer

BATCH, SIZE, CLASSES = 64, 32, 10
"""Images in a batch, their height and width, and the number of classes."""

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pgd:
    """Several implementations of the same attack, from model, images and labels to perturbed images.

    Attributes:
        eps, step_size: [0, 1] units, linf.
        steps: number of steps after a random start.
    """

    eps: float
    step_size: float
    steps: int

    def ours(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The oracle (A1) as the trainer calls it."""
        attack = PGD(eps=self.eps, step_size=self.step_size, steps=self.steps)
        return attack(model, partial(clean_loss, y=y), x, torch.Generator(x.device).manual_seed(0))

    def plain(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """As written in the papers, in eager torch."""
        model.eval()
        delta = (2 * torch.rand_like(x) - 1) * self.eps
        for _ in range(self.steps):
            pixels = (x + delta).clamp(0, 1).requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(model(pixels), y, reduction="sum"), pixels)
            moved = pixels.detach() + self.step_size * gradient.sign()
            delta = (moved - x).clamp(-self.eps, self.eps)
        return (x + delta).clamp(0, 1)

    def by_foolbox(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The attack of foolbox, without its evaluation of success.

        Raises:
            ImportError: foolbox is not installed.
        """
        import foolbox

        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
        attack = foolbox.attacks.LinfPGD(abs_stepsize=self.step_size, steps=self.steps, random_start=True)
        return attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=self.eps)


PGD_10 = Pgd(eps=8 / 255, step_size=2 / 255, steps=10)
"""The attack that is timed."""
LAMB = Optimizer(name="lamb", lr=1e-3)
"""The update that is timed."""


def training_step(
    model: nn.Module, attack: Attack, x: Tensor, y: Tensor, settings: Optimizer
) -> Callable[[], None]:
    """A function that does attack, cost, gradient and update."""
    optimizer = build_optimizer(model, settings)

    def step() -> None:
        model.train()
        x_adv = attack(model, x, y)
        model.train()
        optimizer.zero_grad(set_to_none=True)
        cost = local_cost(model, None, Labelled(x_adv, y), weights=(0.0, 1.0))
        (cost.total / len(x)).backward()
        optimizer.step()

    return step


def arithmetic_alone(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """The minimum of a training step: 10 (forward + input gradient) + (forward + backward)."""
    model.eval()
    for _ in range(PGD_10.steps):
        pixels = x.detach().requires_grad_()
        torch.autograd.grad(cross_entropy(model(pixels), y, reduction="sum"), pixels)
    model.train()
    model.zero_grad(set_to_none=True)
    cross_entropy(model(x), y).backward()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    processor = Path("/proc/cpuinfo")
    return processor.exists() and bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", processor.read_text()))


def measure(rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every part in every round."""
    build = partial(build_model, "preact-resnet18", channels=3, num_classes=CLASSES, seed=0)
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3}
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, SIZE, SIZE, generator=generator).to(device)
    y = torch.randint(CLASSES, (BATCH,), generator=generator).to(device)
    model = build(**statistics).to(device)
    parts = {
        "arithmetic alone": partial(arithmetic_alone, model, x, y),
        "PGD-10 step": training_step(model, PGD_10.ours, x, y, LAMB),
        "PGD-10 step, foolbox": training_step(model, PGD_10.by_foolbox, x, y, LAMB),
    }
    if has_bfloat16(device):
        reduced = build(**statistics, precision="bfloat16", channels_last=True).to(device)
        parts["PGD-10 step, bfloat16"] = training_step(reduced, PGD_10.ours, x, y, LAMB)
    return in_turns(parts, rounds, device)


def compare(medians: dict[str, float]) -> tuple[dict[str, float | None], dict[str, str]]:
    """The ratios, and a reason for each that is null."""
    step = medians["PGD-10 step"]
    reduced = medians.get("PGD-10 step, bfloat16")
    ratios = {
        "pgd10_fp32_efficiency": medians["arithmetic alone"] / step,
        "pgd10_bf16_over_fp32": None if reduced is None else reduced / step,
        "over_foolbox": step / medians["PGD-10 step, foolbox"],
    }
    missing = "this device would only emulate bfloat16 arithmetic"
    return ratios, {name: missing for name, ratio in ratios.items() if ratio is None}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="time of a PGD-10 training step")
    parser.add_argument("--json", type=Path, help="write environment, seconds and ratios here")
    parser.add_argument(
        "--rounds", type=int, help="repetitions after a warm-up (default: 3 on a CPU, 20 on a GPU)"
    )
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds = arguments.rounds or (20 if device.type == "cuda" else 3)
    times = measure(rounds, device)
    medians = {name: median(values) for name, values in times.items()}
    ratios, reasons = compare(medians)
    rows = [[name, f"{medians[name]:.4g}", f"{min(t):.4g}", f"{max(t):.4g}"] for name, t in times.items()]
    print(tabulate(rows, ["", "median (s)", "min (s)", "max (s)"], tablefmt="github", disable_numparse=True))
    print()
    for name, ratio in ratios.items():
        print(f"{name}: {reasons[name] if ratio is None else format(ratio, '.3f')}")
    if arguments.json:
        report = {
            "environment": describe_environment(SingleProcess(), device),
            "settings": {"batch": BATCH, "size": SIZE, **asdict(PGD_10), "rounds": rounds},
            "seconds": times,
            "medians": medians,
            "ratios": ratios,
            "reasons": reasons,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
