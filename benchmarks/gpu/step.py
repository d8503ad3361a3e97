"""Images per second of training steps: the trainer's, the same in plain torch, and with foolbox's attack.

Measured with pre-activation ResNet-18 (PGD-10, 512 images of 32x32); the section ``resnet50`` does the same
with ResNet-50. Steps of all kinds are timed in every round, in an order that rotates; speeds are those of the
medians.

Ratios, of the images per second of the trainer, compiled and in bfloat16, over those of another step:

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
from peak import measure_peak
from timing import in_turns
from training_steps import Attack, Pgd, training_step

from gpu.section import Call, Keep, Measured, Table, free_memory, number, with_model
from hpcdat.config.job import Job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models.compiled import fastest_convolutions
from hpcdat.models.float32 import without_tf32
from hpcdat.models.losses import Labelled
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.flops import flops_of

OURS, EAGER = "trainer, bfloat16, compiled", "trainer, bfloat16"
PLAIN, FOOLBOX = "plain, float32", "foolbox's attack, float32"
RANDOM_IMAGES = ["model.mean=[0.5,0.5,0.5]", "model.std=[0.25,0.25,0.25]", "data.channels=3"]
RANDOM_IMAGES += ["data.augmentation=none", "data.loader=device"]
"""Settings of jobs whose images are random and on the device."""


def measure(call: Call, before: Measured, keep: Keep) -> None:
    """Time the steps of pre-activation ResNet-18."""
    settings = ["model.name=preact-resnet18", "method=at", "attack.name=pgd", "attack.steps=10"]
    settings += ["attack.step_size=2/255", "batch_size=512"]
    if call.tiny:
        settings += ["model.width=0.1", "attack.steps=2", "batch_size=4"]
    measure_steps(call.job("cifar10-speedrun.yaml", *RANDOM_IMAGES, *settings), call, keep)


def ratios(measured: Measured) -> dict[str, float | str]:
    """The trainer's speed over the plain one and over foolbox's."""
    speeds, missing = measured["images_per_second"], measured["missing"]
    others = {"pgd10_over_eager_fp32": PLAIN, "pgd10_over_foolbox": FOOLBOX}
    return {
        name: speeds[OURS] / speeds[other] if other in speeds else missing.get(other, "not measured")
        for name, other in others.items()
    }


def tables(measured: Measured) -> dict[str, Table]:
    """Images per second of the steps of all kinds."""
    steps, batch, size = measured["attack"]["steps"], measured["batch"], measured["size"]
    rows = [[who, number(speed, 1)] for who, speed in measured["images_per_second"].items()]
    rows += [[who, reason] for who, reason in measured["missing"].items()]
    title = f"A PGD-{steps} step, {measured['network']}, {batch} images of {size} pixels"
    return {title: (["by", "images / s"], rows)}


def measure_steps(job: Job, call: Call, keep: Keep) -> None:
    """Time the steps of all kinds of a job, and the device's peak in bfloat16.

    Args:
        job: whose precision, layout and compilation are replaced.
        call: the arguments.
        keep: called once all are measured.
    """
    peak = measure_peak("bfloat16", call.device, SingleProcess(), (128,) if call.tiny else None)
    seconds, missing, flops = _time_steps(job, call)
    keep(
        {
            "network": job.model.name,
            "batch": job.batch_size,
            "size": job.data.image_size,
            "attack": job.attack.model_dump(include={"eps", "step_size", "steps"}),
            "optimizer": job.optimizer.name,
            "seconds": seconds,
            "images_per_second": {part: job.batch_size / median(times) for part, times in seconds.items()},
            "missing": missing,
            "flops": flops,
            "peak": {"work": peak.work, "flops_per_second": peak.rate},
            "share_of_bfloat16_peak": {
                part: flops / median(times) / peak.rate for part, times in seconds.items()
            },
        }
    )
    free_memory(call.device)


def _time_steps(job: Job, call: Call) -> tuple[dict[str, list[float]], dict[str, str], int]:
    """Seconds of a step in every round by its kind, why some kinds are missing, and the FLOP of a step."""
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
        EAGER: ours(**reduced, compiled=False),
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
    # Torch's counter does not see what compiled code computes.
    flops = flops_of(parts[EAGER])
    return in_turns(parts, call.rounds, device), missing, flops
