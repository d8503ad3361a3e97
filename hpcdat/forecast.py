"""What a job will cost on so many nodes: C, T, bytes and speed-up, before it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median

import torch
from pydantic import BaseModel, ConfigDict, Field
from tabulate import tabulate
from torch import nn

from hpcdat.attacks.pgd import PGD
from hpcdat.cluster.box import links_here
from hpcdat.cluster.workers import Workers
from hpcdat.data import find_images
from hpcdat.data.images import Images
from hpcdat.environment import device_name
from hpcdat.errors import InputError
from hpcdat.exchange.accounting import Collective, Traffic, traffic
from hpcdat.exchange.choice import KINDS, Correction, choose_for, predicted
from hpcdat.exchange.cost import Link, Network
from hpcdat.exchange.engine import IN_FLIGHT
from hpcdat.exchange.gradients import gradients_of, make_buckets
from hpcdat.exchange.plan import make_plan, pays_to_compile
from hpcdat.exchange.probe import Imagined, Rate, coding_rate, measure_network
from hpcdat.exchange.trial import measure_correction
from hpcdat.files import write_text
from hpcdat.job import Exchange, Job
from hpcdat.models import build_model_for
from hpcdat.objectives import Labelled, clean_loss, local_cost
from hpcdat.optim import build_optimizer
from hpcdat.run import choose_device
from hpcdat.training.roles import Role, assign_roles, first_workers

REPEATS = 3
FEW = 16
"""Images that a processor's time is taken with; a GPU is given the whole batch."""
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "folder": 1000}
"""Of images that are not here to be looked at."""
BACKWARD = 2 / 3
"""Of the time of a forward and backward pass: the backward pass, in which exchanges can hide."""
MESSAGE_SECONDS = 2e-4
"""Of one empty message over a link that was not measured."""


class Calibration(BaseModel):
    """What a forecast is calibrated on; kept in a file, it serves for any job and number of nodes.

    Attributes:
        network: links, as they were measured or assumed.
        measured_on: where and when, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Network
    measured_on: str = Field(min_length=1)

    def write(self, path: Path) -> None:
        """Keep it.

        Raises:
            InputError: it cannot be written.
        """
        try:
            write_text(path, self.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """One that was kept.

        Raises:
            InputError: it cannot be read.
        """
        try:
            read = cls.model_validate_json(path.read_text())
            if missing := set(KINDS) - set(read.network.links):
                raise ValueError(f"links of {', '.join(sorted(missing))} are missing")
            return read
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no calibration: {error}") from None


def measure(workers: Workers, device: torch.device) -> Calibration:
    """Of the links between two or more workers; all call this together."""
    network = measure_network(workers, KINDS, device)
    links = links_here()
    where = (
        f"emulated {links}" if links else "one machine, memory for links" if workers.nodes == 1 else "links"
    )
    among = f"{network.nodes} x {network.per_node} workers over {workers.transport}"
    return Calibration(
        network=network, measured_on=f"measured {date.today()}: {where}, {among}, {device_name(device)}"
    )


def assume(rate: float) -> Calibration:
    """Links of a rate in bytes a second each way, of which nothing was measured."""
    links = {}
    for kind in KINDS:
        latency = Collective(kind, 0).rounds(2) * MESSAGE_SECONDS / IN_FLIGHT
        links[kind] = Link(points=[(0.0, latency), (rate, latency + 1.0)])
    words = f"nothing: links of {8e-6 * rate:g} Mbit/s and {1e3 * MESSAGE_SECONDS:g} ms a message are assumed"
    return Calibration(network=Network(nodes=2, links=links), measured_on=words)


@dataclass(frozen=True)
class Computing:
    """Seconds of a worker's computation, measured without exchanges.

    Attributes:
        attack: of the inner maximisation, an image.
        gradient: of the local gradient, an image.
        update: of the optimiser's step.
        measured_on: where, in words.
    """

    attack: float
    gradient: float
    update: float
    measured_on: str

    def step(self, batch: float, roles: Iterable[Role]) -> float:
        """Of a training step with so many images in a batch, by the worker that has most to do."""

        def images(role: Role) -> float:
            halves = len(role.clean) + len(role.adversarial)
            return len(role.attacked) * self.attack + halves / 2 * self.gradient

        return max(map(images, roles)) * batch + self.update


@dataclass(frozen=True)
class Forecast:
    """What a job is to cost.

    Attributes:
        nodes, per_node: p and q.
        steps: iterations of an epoch.
        exchange: that it is predicted for.
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
    """Numbers of nodes: ``1,6,100``.

    Raises:
        InputError: they are none.
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
    workers: Workers,
) -> str:
    """Everything that ``hpcdat plan`` tells.

    Args:
        job: resolved.
        nodes: every p to predict for.
        per_node: q.
        images: of an epoch; None: those that the job names are counted.
        calibration: of the links; None: they are measured between the workers.
        save: file to keep what was measured in.
        workers: who measure; all call this together.

    Raises:
        InputError: the images are not there and their number is not given, or a file cannot be written.
    """
    device = workers.together("choose a device", lambda: choose_device(job, workers))
    if images is None:
        found = workers.together("find the images", lambda: _find(job))
        images, classes = len(found) - job.early_stopping.held_out, len(found.classes)
    else:
        classes = CLASSES[job.data.source]
    measured = calibration is None and workers.size > 1
    if measured:
        calibration = measure(workers, device)
        keep = partial(calibration.write, save) if save and workers.is_first else bool
        workers.together("keep the calibration", keep)
    model, computing, compute = workers.together(
        "time a step", lambda: measure_computing_of(job, classes, device)
    )
    compiled = pays_to_compile(sum(p.numel() for _, p in gradients_of(model)))
    rate = coding_rate(workers, device, compiled=compiled)
    correction = trials(calibration, model, rate, workers, compute) if measured else untried
    rows, links = [], calibration or assume(1.0)
    for p in nodes:
        known = forecast(job, images, model, computing, links, p, per_node, rate, correction)
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
            f"Computation: measured on {computing.measured_on}; an image takes "
            f"{1e3 * computing.attack:.4g} ms of attack and {1e3 * computing.gradient:.4g} ms of gradient, "
            f"with {classes} classes.",
            f"Links: {calibration.measured_on if calibration else 'none needed'}.",
        ]
    )


def _find(job: Job) -> Images:
    try:
        return find_images(job.data)[0]
    except InputError as error:
        raise InputError(f"{error}; --images N says how many there are, without them") from None


def measure_computing_of(
    job: Job, classes: int, device: torch.device
) -> tuple[nn.Module, Computing, Callable[[], None]]:
    """Time the attack, the gradient and the update of the job's own network on random images.

    Args:
        job: resolved.
        classes: of its images.
        device: where to.

    Returns:
        The network, for its shapes; the seconds: medians; and a step of the attack with gradient and update,
        to be computed once more.
    """
    model = build_model_for(job, classes).to(device)
    batch = job.batch_size if device.type == "cuda" else min(job.batch_size, FEW)
    optimizer = build_optimizer(model, job.optimizer)
    generator = torch.Generator(device).manual_seed(0)
    size = job.data.image_size
    x = torch.rand(batch, job.data.channels, size, size, device=device, generator=generator)
    y = torch.randint(classes, (batch,), device=device, generator=generator)
    settings = job.attack

    # One step of the attack stands for all: they are alike.
    one_step = replace(PGD.from_settings(settings), steps=1)

    def attack() -> torch.Tensor:
        return one_step(model, partial(clean_loss, y=y), x, generator)

    def gradient() -> None:
        optimizer.zero_grad(set_to_none=True)
        images, objective = Labelled(x, y), job.objective
        local_cost(
            model,
            images,
            images,
            weights=job.weights_of_cost,
            phi=objective.regulariser,
            label_smoothing=objective.label_smoothing,
        ).total.backward()

    attacked = 0.0 if job.oracle == "none" else settings.steps * _seconds(attack, device)
    computing = Computing(
        attack=attacked / batch,
        gradient=_seconds(gradient, device) / batch,
        update=_seconds(optimizer.step, device),
        measured_on=f"{device_name(device)}, {batch} images a step",
    )

    def compute() -> None:
        if attacked:
            attack()
        gradient()
        optimizer.step()

    return model, computing, compute


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median, after one that warms up."""
    times = []
    for _ in range(1 + REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def trials(
    calibration: Calibration,
    model: nn.Module,
    rate: Rate,
    workers: Workers,
    compute: Callable[[], object],
) -> Correction:
    """Factors by which whole exchanges between these workers take longer than is predicted, once for each.

    Args:
        calibration: of the links between the workers.
        model: whose gradients are tried, where it lies.
        rate: of the codecs.
        workers: who try it; two or more.
        compute: what they do before.
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
    """The factor where nothing can be tried: the links are elsewhere."""
    return 1.0


def forecast(
    job: Job,
    images: int,
    model: nn.Module,
    computing: Computing,
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
        images: of an epoch, with labels of their own.
        model: its network.
        computing: of a worker.
        calibration: of the links.
        nodes, per_node: p and q.
        rate: of the codecs, as :func:`~hpcdat.exchange.probe.coding_rate` gives it.
        correction: factor of the exchange's time, as a trial gives it.
    """
    workers = nodes * per_node
    named = gradients_of(model)
    compiled = pays_to_compile(sum(p.numel() for _, p in named))
    roles = assign_roles(job, workers)
    batches = len(first_workers(roles))
    steps = math.ceil(images / (job.labelled_batch * batches))
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
    share = job.passes * images / steps / batches * job.batch_size / job.labelled_batch
    hidden = BACKWARD * computing.gradient * share if exchange.overlap else 0.0
    if job.delay and job.concurrent.place == "beside":
        hidden += computing.attack * share
    # Of the last bucket nothing is hidden.
    waited = max(spent - hidden, spent / max(len(buckets), 1))
    total = steps * (computing.step(share, set(roles)) + waited)
    per_image = job.copies * (computing.attack + computing.gradient)
    alone = images * per_image + math.ceil(images / job.batch_size) * computing.update
    return Forecast(nodes, per_node, steps, exchange, spent, steps * spent, total, alone / total, sent)
