"""Adversarial training steps on random images, and their parts, for the benchmarks that time them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hpcdat.attacks.folding import Folding, fold
from hpcdat.attacks.pgd import PGD
from hpcdat.config.sections import Optimizer
from hpcdat.errors import InputError
from hpcdat.models import MODELS, build_model
from hpcdat.models.losses import Labelled, clean_loss, local_cost
from hpcdat.models.network_check import check_network
from hpcdat.models.networks import find_network
from hpcdat.models.pixel_model import Precision
from hpcdat.optim import build_optimizer
from hpcdat.performance.benchmark_file import Value

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From model, images and labels to perturbed images."""
CHANNELS, CLASSES = 3, 10
MEAN, STD = [0.5] * CHANNELS, [0.25] * CHANNELS
LAMB = Optimizer(name="lamb", lr=1e-3)
IMAGE_SIZES = {"digits-cnn": 8, "preact-resnet18": 32, "wide-resnet28-10": 32}
"""Height and width of the images that networks are for; 224 for all others."""


@dataclass(frozen=True)
class Pgd:
    """Several implementations of the same attack.

    Attributes:
        eps, step_size: [0, 1] units, linf.
        steps: number of steps after a random start; 0: no attack, only for :meth:`ours`.
    """

    eps: float
    step_size: float
    steps: int

    def ours(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The oracle (A1), on the network as it is."""
        if self.steps == 0:
            return x
        attack = PGD(eps=self.eps, step_size=self.step_size, steps=self.steps)
        return attack(model, partial(clean_loss, y=y), x, torch.Generator(x.device).manual_seed(0))

    def folded(self, model: nn.Module, x: Tensor) -> Attack:
        """The oracle (A1) as the trainer calls it: on a network whose batch norm is folded.

        Args:
            model: that is attacked.
            x: some images.
        """
        folding = fold(model, x) if self.steps else Folding()
        return lambda model, x, y: self.ours(folding.current(model), x, y)

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


@dataclass(frozen=True)
class Network:
    """A network and the images that it is given.

    Attributes:
        name: as ``model.name`` of a job.
        image_size: height and width.
    """

    name: str
    image_size: int

    @classmethod
    def of(cls, text: str) -> Network:
        """Read ``NAME`` or ``NAME@SIZE``.

        Raises:
            InputError: there is no such network, or the size is not a number.
        """
        name, at, size = text.partition("@")
        if at and not re.fullmatch(r"[1-9]\d{0,4}", size):
            raise InputError(f"{text}: expected an image size after @, as in resnet50@224")
        if ":" in name:
            find_network(name, ())
        elif name not in MODELS:
            raise InputError(f"there is no network {name}; the package has {', '.join(MODELS)}")
        return cls(name, int(size) if at else IMAGE_SIZES.get(name, 224))

    def build(self, precision: Precision = "float32") -> nn.Module:
        """The model; in bfloat16 with ``channels_last``, as its convolutions are faster with it."""
        reduced = precision == "bfloat16"
        return build_model(
            self.name,
            channels=CHANNELS,
            num_classes=CLASSES,
            mean=MEAN,
            std=STD,
            seed=0,
            precision=precision,
            channels_last=reduced,
        )

    def check(self) -> None:
        """Pass two images through it.

        Raises:
            InputError: it cannot be built, or does not take images of this size.
        """
        size = (CHANNELS, self.image_size, self.image_size)
        check_network(self.name, self.build(), size, CLASSES)

    def images(self, count: int, device: torch.device) -> Labelled:
        """Random images and labels."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(count, CHANNELS, self.image_size, self.image_size, generator=generator)
        y = torch.randint(CLASSES, (count,), generator=generator)
        return Labelled(x.to(device), y.to(device))


@dataclass(frozen=True)
class Combination:
    """A training step of a sweep.

    Attributes:
        network: with the size of the images.
        batch_size: images of a worker.
        precision: see :meth:`Network.build`.
        attack: with its steps.
    """

    network: Network
    batch_size: int
    precision: Precision
    attack: Pgd

    def __str__(self) -> str:
        place = f"{self.network.name}@{self.network.image_size}, {self.batch_size} images"
        return f"{place}, {self.precision}, {self.attack.steps} steps"

    def step(self, device: torch.device) -> Callable[[], None]:
        """The step, with a model and an optimiser of its own."""
        model = self.network.build(self.precision).to(device)
        images = self.network.images(self.batch_size, device)
        return training_step(model, self.attack.folded(model, images.x), *images, LAMB)

    def parameters(self, part: str, device: torch.device) -> dict[str, Value]:
        """Those of a row of a benchmark file."""
        return {
            "part": part,
            "network": self.network.name,
            "image_size": self.network.image_size,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "steps": self.attack.steps,
            "device": device.type,
        }


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


def arithmetic_alone(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """The minimum of a training step: steps (forward + input gradient) + (forward + backward)."""
    model.eval()
    for _ in range(steps):
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
