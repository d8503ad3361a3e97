"""What a job will cost on so many nodes: C, T, bytes and speed-up, before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tabulate import tabulate
from torch import nn

from hpcdat.config.job import Job
from hpcdat.config.sections import Exchange
from hpcdat.data import find_images
from hpcdat.data.images import Images
from hpcdat.data.sampler import steps_of_epoch
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.device import choose_device
from hpcdat.errors import InputError
from hpcdat.exchange.gradient_exchange import gradients_of, make_buckets
from hpcdat.exchange.resolve import make_plan, pays_to_compile
from hpcdat.exchange.traffic import Traffic, traffic
from hpcdat.performance.autotune import Correction, choose_for, predicted
from hpcdat.performance.calibration import Calibration, assume_links, measure_links
from hpcdat.performance.microbenchmarks import Imagined, Rate, coding_rate
from hpcdat.performance.step_timing import StepTiming, time_step
from hpcdat.performance.trial_exchange import measure_correction
from hpcdat.training.roles import assign_roles, first_workers

CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "folder": 1000}
"""Classes of a data source whose images are not here to be counted."""
BACKWARD = 2 / 3
"""Share of the backward pass in the time of a local gradient: what exchanges can overlap with."""


@dataclass(frozen=True)
class Forecast:
    """The predicted cost of a job.

    Attributes:
        nodes, per_node: p and q.
        steps: iterations of an epoch.
        exchange: settings of the exchange that it is predicted for.
        seconds: of one exchange.
        communication, total: C and T, seconds an epoch.
        speed_up: T of one worker with the same images over T.
        traffic: bytes of an iteration; of an exchange through nodes, those that cross the network.
    """

    nodes: int
    per_node: int
    steps: int
    exchange: Exchange
    seconds: float
    communication: float
    total: float
    speed_up: float
    traffic: Traffic


def read_nodes(text: str) -> list[int]:
    """Numbers of nodes from a text such as ``1,6,100``.

    Raises:
        InputError: the text is no list of numbers.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--nodes {text}: expected numbers of nodes, as in --nodes 6 or --nodes 1,6,100")
    return [int(part) for part in parts]


def predict_job(
    job: Job,
    nodes: Sequence[int],
    per_node: int,
    images: int | None,
    calibration: Calibration | None,
    save: Path | None,
    workers: Communicator,
) -> str:
    """The output of ``hpcdat plan``.

    Args:
        job: resolved.
        nodes: numbers p to predict for.
        per_node: q.
        images: of an epoch; None: count those of the job.
        calibration: the links; None: measure those between the workers.
        save: file to write the measured links to.
        workers: all call this together, and measure.

    Raises:
        InputError: the images are not there and their number is not given, or a file cannot be written.
    """
    device = workers.on_all_ranks("choose a device", lambda: choose_device(job, workers))
    if images is None:
        found = workers.on_all_ranks("find the images", lambda: _find(job))
        images, classes = len(found) - job.early_stopping.held_out, len(found.classes)
    else:
        classes = CLASSES[job.data.source]
    measured = calibration is None and workers.size > 1
    if measured:
        calibration = measure_links(workers, device)
        if save:
            workers.on_rank0("write the calibration", partial(calibration.write, save))
    model, timing, compute = workers.on_all_ranks("time a step", lambda: time_step(job, classes, device))
    compiled = pays_to_compile(sum(p.numel() for _, p in gradients_of(model)))
    rate = coding_rate(workers, device, compiled=compiled)
    correction = trials(calibration, model, rate, workers, compute) if measured and calibration else untried
    rows, links = [], calibration or assume_links(1.0)
    for p in nodes:
        known = forecast(job, images, model, timing, links, p, per_node, rate, correction)
        bucket = f", {known.exchange.bucket_mb:g} MiB together" if p * per_node > 1 else ""
        rows.append(
            [
                f"{p} x {per_node}",
                known.steps,
                "" if p * per_node == 1 else known.exchange.in_words() + bucket,
                f"{known.traffic.total / 2**20:.4g}",
                f"{1e3 * known.seconds:.4g}",
                f"{known.communication:.4g}",
                f"{known.total:.4g}",
                f"{known.speed_up:.2f}",
            ]
        )
    header = ["p x q", "steps", "exchange", "MB / iteration", "ms / exchange", "C (s)", "T (s)", "speed-up"]
    table = tabulate(rows, header, tablefmt="github", disable_numparse=True)
    return "\n".join(
        [
            table,
            "",
            f"C, T: predicted seconds an epoch of {images:,} images, {job.batch_size} a worker in a step,",
            "without reading them, waiting for slower workers, and evaluation. Inside a node messages take",
            "no time but their agreement. Speed-up: of T, over one worker.",
            f"Computation: measured on {timing.measured_on}; an image takes "
            f"{1e3 * timing.attack:.4g} ms of attack and {1e3 * timing.gradient:.4g} ms of gradient, "
            f"with {classes} classes.",
            f"Links: {calibration.measured_on if calibration else 'none needed'}.",
        ]
    )


def _find(job: Job) -> Images:
    try:
        return find_images(job.data)[0]
    except InputError as error:
        raise InputError(f"{error}; --images N says how many there are, without them") from None


def trials(
    calibration: Calibration,
    model: nn.Module,
    rate: Rate,
    workers: Communicator,
    compute: Callable[[], object],
) -> Correction:
    """Factors of measured over predicted time of whole exchanges between these workers.

    Each exchange is tried once, when its factor is first asked for.

    Args:
        calibration: of the links between the workers.
        model: its gradients are exchanged, on its device.
        rate: of the codecs.
        workers: two or more; all call this together.
        compute: a worker's computation before each exchange.
    """
    known: dict[str, float] = {}
    named = gradients_of(model)

    def correction(exchange: Exchange) -> float:
        key = exchange.model_dump_json()
        if key not in known:
            known[key] = measure_correction(exchange, rate, named, calibration.network, workers, compute)
        return known[key]

    return correction


def untried(exchange: Exchange) -> float:
    """The factor where no exchange can be tried, since the links are elsewhere."""
    return 1.0


def forecast(
    job: Job,
    images: int,
    model: nn.Module,
    timing: StepTiming,
    calibration: Calibration,
    nodes: int,
    per_node: int,
    rate: Rate,
    correction: Correction,
) -> Forecast:
    """Predict a job on p x q workers.

    Not in it: reading images, waiting for slower workers, evaluation, and what workers that share noisy
    copies send each other while attacking.

    Args:
        job: resolved; with ``exchange.protocol: auto`` the exchange is chosen here.
        images: to train on, with labels of their own.
        model: its network.
        timing: of a worker's computation.
        calibration: of the links.
        nodes, per_node: p and q.
        rate: of the codecs, as :func:`~hpcdat.performance.microbenchmarks.coding_rate` gives it.
        correction: factor of the exchange's time, as a trial gives it.
    """
    workers = nodes * per_node
    named = gradients_of(model)
    compiled = pays_to_compile(sum(p.numel() for _, p in named))
    roles = assign_roles(job, workers)
    batches = len(first_workers(roles))
    steps = steps_of_epoch(images, job.labelled_batch, batches, job.data.last_batch)
    if job.data.last_batch == "drop":
        images = steps * job.labelled_batch * batches
    ratio = job.batch_size / job.labelled_batch
    exchange = job.exchange
    if exchange.protocol == "auto" and workers > 1:
        network = calibration.network
        chosen = choose_for(exchange, named, network, nodes, per_node, rate, correction, compiled=compiled)
        exchange = chosen.chosen.exchange
    # Inside a node float32 costs next to nothing beside the network's time.
    across = exchange.protocol == "hierarchical"
    crossing = (nodes, 1) if across else (nodes, per_node)
    flat = exchange.model_copy(update={"protocol": exchange.across}) if across else exchange
    senders = crossing[0] * crossing[1]
    spent, sent, buckets = 0.0, Traffic(0, 0, 0), []
    if senders > 1:
        plan = make_plan(flat, Imagined(senders), compiled=compiled)
        coding = rate(flat, senders)
        spent = predicted(flat, plan, named, calibration.network, *crossing, coding).seconds
        spent *= correction(flat)
        buckets = make_buckets(named, flat, coding=not plan.is_exact)
        sent = traffic((c for b in buckets for c in b.collectives(plan)), senders)
    share = images / steps / batches * ratio
    hidden = BACKWARD * timing.gradient * share if exchange.overlap else 0.0
    if job.delay and job.concurrent.place == "beside":
        hidden += timing.attack * share
    # Of the last bucket nothing is hidden.
    waited = max(spent - hidden, spent / max(len(buckets), 1))
    total = steps * (timing.step(share, set(roles)) + waited)
    per_image = job.copies // job.passes * (timing.attack + timing.gradient)
    alone = images * ratio * per_image + math.ceil(images / job.labelled_batch) * timing.update
    return Forecast(nodes, per_node, steps, exchange, spent, steps * spent, total, alone / total, sent)
