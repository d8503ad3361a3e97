"""Images per second of training steps: the trainer's, the same in plain torch, and with foolbox's attack.

Measured with pre-activation ResNet-18 (PGD-10, 512 images of 32x32) and ResNet-50 (PGD-4, 85 images of
224x224). Steps of all kinds are timed in every round, in an order that rotates; speeds are those of the
medians.

Ratios, of the images per second of the trainer, compiled and in bfloat16, over those of another step of
pre-activation ResNet-18:

- ``pgd10_over_eager_fp32``: the plain one in eager float32, with torch's own settings: TF32 in convolutions.
- ``pgd10_over_foolbox``: the same, with foolbox's attack.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import conadv_steps
import torch
from timing import in_turns
from training_steps import Attack, Pgd, training_step

from gpu.section import Call, Keep, Measured, Table, free_memory, number, with_model, without_tf32
from hpcdat.config.job import Job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models.compiled import fastest_convolutions
from hpcdat.models.losses import Labelled
from hpcdat.training.concurrent_attack import Batch

OURS, PLAIN, FOOLBOX = "trainer, bfloat16, compiled", "plain, float32", "foolbox's attack, float32"


def measure(call: Call, before: Measured, keep: Keep) -> None:
    """Time the steps of both networks."""
    measured: Measured = {}
    for name, job in _jobs(call).items():
        seconds, missing = _time_steps(job, call)
        measured[name] = {
            "batch": job.batch_size,
            "size": job.data.image_size,
            "attack": job.attack.model_dump(include={"eps", "step_size", "steps"}),
            "optimizer": job.optimizer.name,
            "seconds": seconds,
            "images_per_second": {part: job.batch_size / median(times) for part, times in seconds.items()},
            "missing": missing,
        }
        keep(measured)
        free_memory(call.device)


def ratios(measured: Measured) -> dict[str, float | str]:
    """The trainer's speed over the plain one and over foolbox's."""
    speeds = measured["preact-resnet18"]["images_per_second"]
    missing = measured["preact-resnet18"]["missing"]
    others = {"pgd10_over_eager_fp32": PLAIN, "pgd10_over_foolbox": FOOLBOX}
    return {
        name: speeds[OURS] / speeds[other] if other in speeds else missing.get(other, "not measured")
        for name, other in others.items()
    }


def tables(measured: Measured) -> dict[str, Table]:
    """Images per second, a table for each network."""
    found: dict[str, Table] = {}
    for name, part in measured.items():
        steps, batch, size = part["attack"]["steps"], part["batch"], part["size"]
        rows = [[who, number(speed, 1)] for who, speed in part["images_per_second"].items()]
        rows += [[who, reason] for who, reason in part["missing"].items()]
        found[f"A PGD-{steps} step, {name}, {batch} images of {size} pixels"] = ["by", "images / s"], rows
    return found


def _jobs(call: Call) -> dict[str, Job]:
    """The job of each network."""
    channels = ["model.mean=[0.5,0.5,0.5]", "model.std=[0.25,0.25,0.25]", "data.channels=3"]
    always = [*channels, "data.augmentation=none", "data.loader=device"]
    preact = ["model.name=preact-resnet18", "attack.steps=10", "attack.step_size=2/255"]
    preact += ["batch_size=4", "model.width=0.1"] if call.tiny else ["batch_size=512"]
    resnet = ["model.name=resnet50", "exchange.protocol=ring", "data.image_size=224", "batch_size=85"]
    resnet += ["batch_size=2", "data.image_size=32"] if call.tiny else []
    return {
        "preact-resnet18": call.job("cifar10-speedrun.yaml", *always, *preact),
        "resnet50": call.job("imagenet-dat-pgd.yaml", *always, *resnet),
    }


def _time_steps(job: Job, call: Call) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of a step in every round by its kind, and why some kinds are missing."""
    generator = torch.Generator().manual_seed(0)
    size, device = job.data.image_size, call.device
    x = torch.rand(job.batch_size, 3, size, size, generator=generator).to(device)
    y = torch.randint(conadv_steps.CLASSES, (len(x),), generator=generator).to(device)
    attack = Pgd(job.attack.eps, job.attack.step_size, job.attack.steps)

    def ours(**model: Any) -> Callable[[], None]:
        given = with_model(job, **model)
        algorithm = conadv_steps.algorithm_of(given, SingleProcess(), device)
        batch = Batch(0, 0, len(x), {0: Labelled(x, y)})

        def work() -> None:
            with fastest_convolutions(given.model.compiled):
                algorithm.step(batch, None)

        return work

    def theirs(attack: Attack, **model: Any) -> Callable[[], None]:
        network = conadv_steps.algorithm_of(with_model(job, **model), SingleProcess(), device).model
        return training_step(network, attack, x, y, job.optimizer)

    def exactly(work: Callable[[], None]) -> None:
        with without_tf32():
            work()

    reduced = {"precision": "bfloat16", "channels_last": True}
    usual = {"precision": "float32", "channels_last": False, "compiled": False}
    parts: dict[str, Callable[[], None]] = {
        OURS: ours(**reduced, compiled=True),
        "trainer, bfloat16": ours(**reduced, compiled=False),
        "trainer, float32": ours(**usual),
        PLAIN: theirs(attack.plain, **usual),
        "plain, float32 without TF32": partial(exactly, theirs(attack.plain, **usual)),
        FOOLBOX: theirs(attack.by_foolbox, **usual),
        "foolbox's attack, bfloat16": theirs(attack.by_foolbox, **reduced, compiled=False),
    }
    missing = {}
    try:
        import foolbox  # noqa: F401
    except ImportError:
        for name in [name for name in parts if "foolbox" in name]:
            del parts[name]
            missing[name] = "not measured (foolbox is not installed)"
    return in_turns(parts, call.rounds, device), missing
