"""The steps that the ratios of attack_step.py compare, which take turns."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from timing import in_turns
from training_steps import (
    LAMB,
    Combination,
    Network,
    Pgd,
    arithmetic_alone,
    has_bfloat16,
    training_step,
)

from hpcdat.distributed.communicator import Communicator
from hpcdat.performance.benchmark_file import Row

EPS, STEP_SIZE = 8 / 255, 2 / 255
COMPARED = Combination(Network("preact-resnet18", 32), 64, "float32", Pgd(EPS, STEP_SIZE, 10))
"""The step that most ratios are of."""
LARGE = Combination(Network("resnet50", 224), 8, "float32", Pgd(EPS, STEP_SIZE, 4))
"""The step of a network all of whose batch norm folds into convolutions."""
STEP, PLAIN, ALONE, BFLOAT16, FOOLBOX = (
    "training step",
    "training step, attack as in the papers",
    "arithmetic alone",
    "training step, bfloat16",
    "training step, foolbox's attack",
)
"""Parts that are timed."""
MISSING = {
    "pgd10_bf16_over_fp32": "this device would only emulate bfloat16 arithmetic",
    "over_foolbox": "foolbox is not installed",
}
"""Why a ratio is null."""


def compare(rounds: int, device: torch.device, workers: Communicator) -> list[Row]:
    """A row for each part that the ratios are of."""
    parts: dict[tuple[Combination, str], Callable[[], object]] = {}
    for compared in (COMPARED, LARGE):
        network, attack = compared.network, compared.attack
        x, y = network.images(compared.batch_size, device)
        model = network.build().to(device)
        parts[compared, STEP] = training_step(model, attack.folded(model, x), x, y, LAMB)
        parts[compared, PLAIN] = training_step(model, attack.plain, x, y, LAMB)
        if compared == LARGE:
            continue
        parts[compared, ALONE] = partial(arithmetic_alone, model, x, y, attack.steps)
        if importlib.util.find_spec("foolbox"):
            parts[compared, FOOLBOX] = training_step(model, attack.by_foolbox, x, y, LAMB)
        if has_bfloat16(device):
            reduced = network.build("bfloat16").to(device)
            parts[compared, BFLOAT16] = training_step(reduced, attack.folded(reduced, x), x, y, LAMB)
    named = {f"{compared.network.name}, {part}": work for (compared, part), work in parts.items()}
    times = in_turns(named, rounds, device, workers)
    rows = []
    for (compared, part), seconds in zip(parts, times.values(), strict=True):
        parameters = compared.parameters(f"{part}, in turns", device)
        parameters["precision"] = "bfloat16" if part == BFLOAT16 else "float32"
        figures = {"images_per_second": workers.size * compared.batch_size / median(seconds)}
        rows.append(Row(parameters=parameters, seconds=seconds, figures=figures))
    return rows


def ratios_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """The ratios of the rows of :func:`compare`."""
    medians = {
        (row.parameters["network"], str(row.parameters["part"]).removesuffix(", in turns")): row.median
        for row in rows
    }
    small, large = COMPARED.network.name, LARGE.network.name
    step, reduced, foolbox = (medians.get((small, part)) for part in (STEP, BFLOAT16, FOOLBOX))
    assert step is not None
    return {
        "pgd10_fp32_efficiency": medians[small, ALONE] / step,
        "pgd10_bf16_over_fp32": reduced and reduced / step,
        "over_foolbox": foolbox and step / foolbox,
        "preact18_pgd10_over_plain": step / medians[small, PLAIN],
        "resnet50_pgd4_over_plain": medians[large, STEP] / medians[large, PLAIN],
    }
