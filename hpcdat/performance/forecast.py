"""Forecast of a job on p x q workers before it runs: C, T, bytes and speed-up."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tabulate import tabulate
from torch import nn

from hpcdat.config.job import Job
from hpcdat.config.sections import Exchange
from hpcdat.data import find_images
from hpcdat.data.sampler import steps_of_epoch
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import InputError
from hpcdat.exchange.gradient_exchange import gradients_of
from hpcdat.exchange.resolve import pays_to_compile
from hpcdat.exchange.traffic import Traffic
from hpcdat.performance.autotune import Correction, choose_for, predicted
from hpcdat.performance.calibration import Calibration, assume_links, measure_links
from hpcdat.performance.cost_model import slowdown_by_slowest
from hpcdat.performance.microbenchmarks import Rate, coding_rate
from hpcdat.performance.network_bytes import count_classes, crossing_of
from hpcdat.performance.samples import SECONDS_TO_AGREE
from hpcdat.performance.step_timing import StepTiming, time_share
from hpcdat.performance.trial_exchange import measure_correction
from hpcdat.performance.trial_step import TrialStep
from hpcdat.training.roles import assign_roles
from hpcdat.training.validation import hold_out

BACKWARD_FRACTION = 2 / 3
"""Fraction of a local gradient's time that is the backward pass, with which exchanges overlap."""


@dataclass(frozen=True)
class Forecast:
    """The predicted cost of a job.

    Attributes:
        nodes, per_node: p and q.
        steps: iterations per epoch.
        exchange: settings of the exchange; never ``auto`` with several workers.
        seconds: of one exchange.
        communication, total: C and T, seconds per epoch.
        speed_up: T of one worker alone on a node, with the same images, divided by T.
        traffic: bytes per iteration between nodes (``hierarchical``) or workers (other protocols).
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


def predict_job(
    job: Job,
    nodes: Sequence[int],
    per_node: int,
    images: int | None,
    calibration: Calibration | None,
    save: Path | None,
    workers: Communicator,
    stop: StopRequest | None,
) -> str:
    """The output of ``hpcdat plan``.

    Args:
        job: resolved.
        nodes: the values of p.
        per_node: q.
        images: training images; None: count those of the job.
        calibration: the links; None: measure those between the workers.
        save: file for the measured links.
        workers: all workers of this process group; they call this together.
        stop: request to stop.

    Raises:
        InputError: the images cannot be found and their number is not given, or a file cannot be written.
        WorkerError: the machine is too noisy to time a step.
        Stopped: a stop was requested.
    """
    count, classes = workers.on_all_ranks("count the images", lambda: images_of_epoch(job, images))
    if workers.is_rank0:
        print(f"timing a step, about {SECONDS_TO_AGREE:.0f} s at most", file=sys.stderr, flush=True)
    alone, device = time_share(job, classes, workers, 1, stop)
    timing = alone
    if per_node > 1 and device.type == "cpu":
        timing, device = time_share(job, classes, workers, per_node, stop)
    measured = calibration is None and workers.size > 1
    if measured:
        calibration = measure_links(workers, device)
        if save:
            workers.on_rank0("write the calibration", partial(calibration.write, save))
    trial = workers.on_all_ranks(
        "prepare a step", lambda: TrialStep(job, classes, device, timing.images, attack_steps=1)
    )
    compiled = pays_to_compile(sum(p.numel() for _, p in gradients_of(trial.model)))
    rate = coding_rate(workers, device, compiled=compiled)
    correction: Correction = no_correction
    if measured and calibration:
        correction = trial_corrections(calibration, trial.model, rate, workers, trial.compute)
    links = calibration or assume_links("1gbit")
    forecasts = [
        forecast(job, count, trial.model, timing, links, p, per_node, rate, correction, alone) for p in nodes
    ]
    used = f"Links: {calibration.measured_on if calibration else 'none needed'}."
    return "\n".join([_table(forecasts), "", *_notes(job, count, classes, timing, links.jitter), used])


def images_of_epoch(job: Job, given: int | None) -> tuple[int, int]:
    """Labelled images of an epoch, without those that are held out, and number of classes.

    Args:
        job: resolved.
        given: number of training images, where they are not on this machine; None: count the job's.

    Raises:
        InputError: the images cannot be found, or fewer are given than the job takes or holds out.
    """
    if given is None:
        try:
            split = hold_out(*find_images(job.data, folders=job.module_path or ()), job)
        except InputError as error:
            raise InputError(f"{error}; --images N gives their number without reading them") from None
        return len(split.train), len(split.train.classes)
    taken, held_out = job.data.train_images or given, job.early_stopping.held_out
    if taken > given:
        raise InputError(f"--images {given}: data.train_images takes {taken} of them")
    if held_out >= taken:
        raise InputError(
            f"early_stopping.held_out: {held_out} leaves none of the {taken} training images; give more "
            "--images, or hold out fewer"
        )
    return taken - held_out, count_classes(job.data, job.module_path or ())


def _table(forecasts: Sequence[Forecast]) -> str:
    rows = []
    for known in forecasts:
        alone = known.nodes * known.per_node == 1
        rows.append(
            [
                f"{known.nodes} x {known.per_node}",
                known.steps,
                "" if alone else f"{known.exchange.describe()}, buckets of {known.exchange.bucket_mb:g} MiB",
                f"{known.traffic.total / 2**20:.4g}",
                f"{1e3 * known.seconds:.4g}",
                f"{known.communication:.4g}",
                f"{known.total:.4g}",
                f"{known.speed_up:.2f}",
            ]
        )
    header = ["p x q", "steps", "exchange", "MiB / iteration", "ms / exchange", "C (s)", "T (s)", "speed-up"]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def _notes(job: Job, images: int, classes: int, timing: StepTiming, jitter: float) -> list[str]:
    waiting = "" if jitter else "waiting for slower workers, "
    return [
        f"C, T: predicted seconds per epoch of {images:,} images, {job.batch_size} per worker and step;",
        f"not included: reading images, {waiting}evaluation, and transfers inside a",
        "node. Speed-up: T of one worker alone on a node over T.",
        *([f"Steps wait for the slowest worker, with a jitter of {100 * jitter:g} %."] if jitter else []),
        f"Computation: measured on {timing.measured_on}; per image "
        f"{1e3 * timing.attack:.4g} ms for the attack and {1e3 * timing.gradient:.4g} ms for the "
        f"gradient, with {classes} classes.",
        f"Timing: {timing.spread}.",
    ]


def trial_corrections(
    calibration: Calibration,
    model: nn.Module,
    rate: Rate,
    workers: Communicator,
    compute: Callable[[], object],
) -> Correction:
    """Measured over predicted time of whole exchanges between these workers, as a function of the settings.

    Each exchange is measured once, at the first call with its settings.

    Args:
        calibration: of the links between the workers.
        model: on the device; exchanges of its gradients are measured.
        rate: of the codecs, from :func:`~hpcdat.performance.microbenchmarks.coding_rate`.
        workers: two or more; all call the function together.
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


def no_correction(exchange: Exchange) -> float:
    """The correction, 1, where no exchange can be measured because the links are not available here."""
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
    alone: StepTiming,
) -> Forecast:
    """Predict a job on p x q workers.

    Not included: reading images, evaluation, and the communication of workers that share noisy copies during
    the attack; waiting for slower workers only as far as the calibration has a jitter.

    Args:
        job: resolved; with ``exchange.protocol: auto`` the exchange is chosen here.
        images: labelled images per epoch.
        model: of the job.
        timing: of a worker's computation, next to the others of its node.
        calibration: of the links, and the jitter.
        nodes, per_node: p and q.
        rate: of the codecs, from :func:`~hpcdat.performance.microbenchmarks.coding_rate`.
        correction: measured over predicted time of an exchange.
        alone: of the computation of a worker that has a node to itself, for the speed-up.
    """
    workers = nodes * per_node
    named = gradients_of(model)
    compiled = pays_to_compile(sum(p.numel() for _, p in named))
    roles = assign_roles(job, workers)
    batches = roles.batches
    steps = steps_of_epoch(images, job.labelled_batch, batches, job.data.last_batch)
    if job.data.last_batch == "drop":
        images = steps * job.labelled_batch * batches
    ratio = job.batch_size / job.labelled_batch
    exchange = job.exchange
    if exchange.protocol == "auto" and workers > 1:
        network = calibration.network
        choice = choose_for(exchange, named, network, nodes, per_node, rate, correction, compiled=compiled)
        exchange = choice.chosen.exchange
    # The exchange inside a node is negligible compared with the network.
    crossing = crossing_of(exchange, named, nodes, per_node, compiled=compiled)
    seconds, sent, buckets = 0.0, Traffic(0, 0, 0), 0
    if crossing:
        coding = rate(crossing.exchange, crossing.nodes * crossing.per_node)
        shape = crossing.nodes, crossing.per_node
        prediction = predicted(crossing.exchange, crossing.plan, named, calibration.network, *shape, coding)
        seconds = prediction.seconds * correction(crossing.exchange)
        sent, buckets = crossing.traffic, len(crossing.buckets)
    share = images / steps / batches * ratio
    slowdown = slowdown_by_slowest(calibration.jitter, workers)
    hidden = BACKWARD_FRACTION * timing.gradient * share if exchange.overlap else 0.0
    if job.delay and job.concurrent.place == "beside":
        hidden += timing.attack * share
    # The last bucket's exchange overlaps with nothing.
    waited = max(seconds - slowdown * hidden, seconds / max(buckets, 1))
    total = steps * (slowdown * timing.step(share, set(roles)) + waited)
    per_image = job.copies // job.passes * (alone.attack + alone.gradient)
    one_worker = images * ratio * per_image + math.ceil(images / job.labelled_batch) * alone.update
    speed_up = one_worker / total
    return Forecast(nodes, per_node, steps, exchange, seconds, steps * seconds, total, speed_up, sent)
