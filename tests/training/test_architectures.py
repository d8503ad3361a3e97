"""Architectures of many kinds: what a step of DAT-FGSM computes does not depend on how it is divided.

`python -m tests.training.test_architectures` prints the table of docs/start/own-network.md.
"""

import sys
import time
from importlib.metadata import version
from typing import NamedTuple

import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models.compiled import Compiled
from tests.conftest import DEMO
from tests.distributed.programs.training import in_float64
from tests.training.network_steps import (
    algorithm_of,
    assert_no_trace,
    images,
    on_two_and_one,
    one_at_a_time,
    step_on,
)

pytestmark = pytest.mark.usefixtures("one_at_a_time")
DIVIDED = 1e-9
"""Tolerance between two workers and one, absolute and relative, in float64."""
COMPILED = 1e-8
"""Tolerance between compiled and eager logits and gradients with respect to the images, in float64."""


class Architecture(NamedTuple):
    """A network of the matrix.

    Attributes:
        name: of the setting ``model.name``.
        settings: others that it needs.
        kind: the layers that bear on how a step may be divided.
    """

    name: str
    settings: tuple[str, ...]
    kind: str

    @property
    def sees_single_images(self):
        """Whether the images of a batch do not see each other, and nothing is drawn."""
        return "batch norm" not in self.kind and "drop" not in self.kind and "stochastic" not in self.kind


OF_32 = "data.image_size=32"
ARCHITECTURES = {
    "ResNet-18": Architecture("torchvision:resnet18", (OF_32,), "batch norm"),
    "ResNet-50": Architecture("torchvision:resnet50", (OF_32,), "batch norm"),
    "WideResNet-28-10 (width 0.2)": Architecture(
        "wide-resnet28-10", (OF_32, "model.width=0.2"), "batch norm, pre-activation"
    ),
    "DenseNet-121": Architecture("torchvision:densenet121", (OF_32,), "batch norm, concatenation"),
    "MobileNetV3-Small": Architecture(
        "torchvision:mobilenet_v3_small", (OF_32,), "batch norm, dropout, squeeze and excitation"
    ),
    "EfficientNet-B0": Architecture(
        "torchvision:efficientnet_b0", (OF_32,), "batch norm, dropout, stochastic depth"
    ),
    "ConvNeXt-T": Architecture("torchvision:convnext_tiny", (OF_32,), "layer norm, stochastic depth"),
    "ViT-Ti": Architecture(
        "timm:vit_tiny_patch16_224", (OF_32, "model.options={img_size: 32}"), "layer norm, attention"
    ),
    "DeiT-Ti": Architecture(
        "timm:deit_tiny_patch16_224", (OF_32, "model.options={img_size: 32}"), "layer norm, attention"
    ),
    "Swin-T": Architecture(
        "torchvision:swin_t", (OF_32,), "layer norm, windowed attention, stochastic depth"
    ),
    "MLP-Mixer-S/16": Architecture(
        "timm:mixer_s16_224", (OF_32, "model.options={img_size: 32}"), "layer norm"
    ),
    "a user's own": Architecture("tests.own_networks:Attention", (), "layer norm, attention, dropout"),
    "ResNet-18, frozen backbone": Architecture(
        "tests.own_networks:frozen_resnet18", (OF_32,), "batch norm, only the head is trained"
    ),
}
CHEAP = ("MobileNetV3-Small", "ViT-Ti", "a user's own")
"""Those of the ordinary tests."""
GENERATED = ("MobileNetV3-Small", "a user's own")
"""Those for which code is generated."""
every = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in CHEAP else pytest.mark.full) for name in ARCHITECTURES],
)


def job_of(name, *settings):
    network = ARCHITECTURES[name]
    always = ["method=dat-fgsm", "attack.steps=1", "optimizer.lr=0.1", f"model.name={network.name}"]
    return read_job(DEMO, [*always, *network.settings, *settings])


def difference(ones, others):
    """The largest difference between tensors, each relative to its largest number, if that is above 1."""
    pairs = [(a, b) for a, b in zip(ones, others, strict=True) if a.is_floating_point() and a.numel()]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs)


def between_workers(name):
    """How far two workers are from one that stands for two, after a step in float64."""
    with in_float64():
        two, one = on_two_and_one(job_of(name), steps=1)
    assert all(torch.equal(value, two[1][key]) for key, value in two[0].items())
    return difference(two[0].values(), one.values())


def from_whole_batch(name):
    """How far two workers are from one with the whole batch, where images do not see each other."""
    with in_float64():
        # Starting points differ with the batch that an image is in.
        job = job_of(name, "attack.random_start=false")
        two, _ = on_two_and_one(job, steps=1)
        return difference(two[0].values(), step_on(job, SingleProcess(), steps=1).values())


def between_compiled_and_eager(name, backend):
    """How far compiled code is from the network, in evaluation mode: logits and gradient of the images."""
    torch.compiler.reset()
    with in_float64():
        model = algorithm_of(job_of(name), SingleProcess()).model.eval().requires_grad_(False)
        answers = []
        for called in (model, Compiled(model, 4, backend)):
            x = images(job_of(name), 0, 4).x.requires_grad_()
            logits = called(x)
            answers.append([logits.detach(), *torch.autograd.grad(logits.square().sum(), x)])
    return difference(*answers)


@every
def test_two_workers_are_one_that_stands_for_two(name):
    assert between_workers(name) <= DIVIDED


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "ViT-Ti" else pytest.mark.full)
        for name, network in ARCHITECTURES.items()
        if network.sees_single_images
    ],
)
def test_without_batch_norm_and_dropout_two_workers_are_one_with_the_whole_batch(name):
    assert from_whole_batch(name) <= DIVIDED


@every
def test_an_attack_leaves_no_trace(name):
    assert_no_trace(algorithm_of(job_of(name), SingleProcess()))


@pytest.mark.full
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compiled_code_is_the_network(name):
    """Captured whole, without a break; only the front end of torch.compile is used (aot_eager)."""
    assert between_compiled_and_eager(name, "aot_eager") <= COMPILED


@pytest.mark.full
@pytest.mark.parametrize("name", GENERATED)
def test_code_that_was_generated_is_the_network(name):
    """Without ViT-Ti: torch 2.11's inductor takes its attention in float64 for one in float32, and fails."""
    assert between_compiled_and_eager(name, "inductor") <= COMPILED


def row_of(name):
    """A row of the table: the largest differences."""
    network = ARCHITECTURES[name]
    whole = f"{from_whole_batch(name):.0e}" if network.sees_single_images else "-"
    divided = f"{between_workers(name):.0e}"
    assert_no_trace(algorithm_of(job_of(name), SingleProcess()))
    compiled = [f"{between_compiled_and_eager(name, 'aot_eager'):.0e}"]
    compiled += [f"{between_compiled_and_eager(name, 'inductor'):.0e}"] if name in GENERATED else ["-"]
    return (
        f"| {name} | `{network.name}` | {network.kind} | {divided} | {whole} | yes | {' | '.join(compiled)} |"
    )


def print_table():
    patch = pytest.MonkeyPatch()
    one_at_a_time.__wrapped__(patch)
    print(", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "timm")))
    for name in ARCHITECTURES:
        began = time.monotonic()
        try:
            print(row_of(name), flush=True)
        except Exception as error:
            print(f"| {name} | {type(error).__name__}: {error}", flush=True)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print_table()
