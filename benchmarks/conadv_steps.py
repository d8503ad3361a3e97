"""The steps and parts that ``conadv.py`` times, on one worker."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import seconds
from torch import Tensor, nn

from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.distributed import waiting
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model_for
from hpcdat.models.losses import Labelled, clean_loss, local_cost
from hpcdat.models.split_batch_norm import SplitBatchNorm
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1

JOB = Path(__file__).resolve().parents[1] / "jobs" / "miniature" / "dat-fgsm-ring.yaml"
COMMON_SETTINGS = ["optimizer.name=lars", "optimizer.lr=1", "data.channels=3", "model.mean=[0.5,0.5,0.5]"]
COMMON_SETTINGS += ["model.std=[0.25,0.25,0.25]", "reproduces=[]", "data.loader=device"]
COMMON_SETTINGS += ["beside=[]", "exchange.protocol=ring", "exchange.overlap=true"]
ATTACK_WORKER, SEPARATE_HALVES = ["concurrent.place=workers"], ["concurrent.halves=apart"]
ONE_WORKER = {
    "vanilla": ["method=plain"],
    "DisAdv": ["method=disadv"],
    "ConAdv": ["method=conadv"],
}
"""Steps of a single worker, by name, with their settings; likewise the two below."""
TWO_WORKERS = {
    "vanilla, a batch each": ["method=plain"],
    "DisAdv, a batch each": ["method=disadv"],
    "ConAdv, a batch each": ["method=conadv"],
    "DisAdv, separate halves": ["method=disadv", *SEPARATE_HALVES],
    "ConAdv, update and attack worker": ["method=conadv", *ATTACK_WORKER],
}
THREE_WORKERS = {
    "vanilla, three batches": ["method=plain"],
    "ConAdv, separate halves and attack": ["method=conadv", *ATTACK_WORKER, *SEPARATE_HALVES],
}
TAKING_TURNS = "taking turns: "
"""Prefix of the names of steps timed with workers taking turns on one core."""
CLASSES = 10
"""Number of classes of the random images."""


def algorithm_of(job: Job, workers: Communicator, device: torch.device) -> Algorithm1:
    """Algorithm 1 of a job before its first iteration, for images of CLASSES classes."""
    model = build_model_for(job, CLASSES).to(device).train()
    return Algorithm1(job, model, job.exchange, workers, device)


def job_of(arguments: argparse.Namespace, settings: Sequence[str]) -> Job:
    """The job of a step.

    Raises:
        InputError: a setting is wrong.
    """
    model = [f"model.name={arguments.model}", f"model.width={arguments.width}"]
    sizes = [f"batch_size={arguments.batch}", f"data.image_size={arguments.size}"]
    return read_job(JOB, [*COMMON_SETTINGS, *model, *sizes, *arguments.set, *settings])


def check_jobs(arguments: argparse.Namespace) -> None:
    """Read the jobs of all steps before workers start.

    Raises:
        InputError: a setting is wrong.
    """
    for settings in (ONE_WORKER | TWO_WORKERS | THREE_WORKERS).values():
        job_of(arguments, settings)


class Bench:
    """The steps and parts that are timed, on images in memory."""

    def __init__(self, arguments: argparse.Namespace, workers: Communicator, device: torch.device) -> None:
        self.arguments, self.workers, self.device = arguments, workers, device
        size, batch = arguments.size, arguments.batch
        generator = torch.Generator(device).manual_seed(workers.rank)
        self.x = torch.rand(batch, 3, size, size, generator=generator, device=device)
        self.y = torch.randint(CLASSES, (batch,), generator=generator, device=device)
        self.work: dict[str, Callable[[], object]] = {}
        self.divisor: dict[str, int] = {}
        self.of_first: set[str] = set()

    def algorithm(self, settings: Sequence[str], workers: Communicator) -> Algorithm1:
        """Algorithm 1 of a job, before its first iteration."""
        return algorithm_of(job_of(self.arguments, settings), workers, self.device)

    def add_steps(self, name: str, settings: Sequence[str], workers: Communicator) -> None:
        """Time iterations of a job."""
        algorithm = self.algorithm(settings, workers)
        images = {number: Labelled(self.x, self.y) for number in algorithm.role.reads}
        delay, count = algorithm.adversary.delay, self.arguments.steps

        def batch(step: int) -> Batch:
            return Batch(0, step, self.arguments.batch * algorithm.batches, images)

        def steps() -> None:
            # Examples in flight at the end are used in the next round.
            for step in range(count):
                algorithm.step(batch(step), batch(step + delay) if delay else None)

        algorithm.adversary.begin_epoch([batch(step) for step in range(delay)])
        self.work[name], self.divisor[name] = steps, count

    def add_parts(self, how: str) -> None:
        """Time the parts of a ConAdv step separately; ``how`` is a prefix of their names."""
        algorithm = self.algorithm(ONE_WORKER["ConAdv"], SingleProcess())
        images = Labelled(self.x, self.y)

        def gradient(*parts: Labelled | None) -> None:
            algorithm.optimizer.zero_grad(set_to_none=True)
            local_cost(algorithm.compiled_model, *parts, weights=(0.5, 0.5)).total.backward()

        parts = {
            "attack": partial(algorithm.attack, Batch(0, 0, len(self.x), {0: images}), 0),
            "clean half": partial(gradient, images, None),
            "adversarial half": partial(gradient, None, images),
            "both halves": partial(gradient, images, images),
            "update": algorithm.optimizer.step,
        }
        self.work |= {f"{how}part: {name}": work for name, work in parts.items()}

    def add_shared_forward(self) -> None:
        """Time ConAdv's step with one forward pass over both halves and the next batch."""
        algorithm = self.algorithm(ONE_WORKER["ConAdv"], SingleProcess())
        layers = [m for m in algorithm.model.modules() if isinstance(m, SplitBatchNorm)]
        for layer in layers:
            layer.forward = partial(_in_three, layer)
        parameters, n = list(algorithm.model.parameters()), len(self.x)

        def step() -> None:
            ahead = self.x.clone().requires_grad_()
            logits = algorithm.model(torch.cat([self.x, self.x, ahead]))
            cost = sum(clean_loss(part, self.y).sum() for part in (logits[:n], logits[n : 2 * n])) / (2 * n)
            (slope,) = torch.autograd.grad(
                clean_loss(logits[2 * n :], self.y).sum(), ahead, retain_graph=True
            )
            (self.x + 0.1 * slope.sign()).clamp(0, 1)
            for p, g in zip(parameters, torch.autograd.grad(cost, parameters), strict=True):
                p.grad = g
            algorithm.optimizer.step()

        self.work["ConAdv, one forward pass"] = step

    def measure(self) -> dict[str, list[float]]:
        """Seconds of each step on the slowest worker, in every round but the first.

        For workers that take turns: processor seconds of the worker that needs most.
        """
        times: dict[str, list[float]] = {name: [] for name in self.work}
        for number in range(self.arguments.rounds + 1):
            for name, work in self.work.items():
                self.workers.all_gather_object(None, "ready")
                works = self.workers.is_rank0 or name not in self.of_first
                before = time.process_time()
                duration = seconds(work, self.device) if works else 0.0
                if self.arguments.take_turns:
                    duration = time.process_time() - before
                slowest = max(self.workers.all_gather_object(duration / self.divisor.get(name, 1), "seconds"))
                if number:
                    times[name].append(slowest)
        return times


def _in_three(layer: SplitBatchNorm, x: Tensor) -> Tensor:
    """Normalise clean and adversarial images with their branches, attacked ones with batch statistics."""
    clean, adversarial, attacked = x.chunk(3)
    auxiliary = layer.auxiliary
    normalised = nn.functional.batch_norm(
        attacked, None, None, auxiliary.weight, auxiliary.bias, training=True
    )
    return torch.cat([layer.main(clean), auxiliary(adversarial), normalised])


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """A worker's whole part; the report, the same on all workers."""
    workers = SingleProcess() if arguments.workers == 1 else init_communicator(600)
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        device = torch.device("cuda", workers.local_rank)
        torch.cuda.set_device(device)
    if arguments.take_turns:
        # Polling a collective takes processor time, in waits that occur only because workers take turns.
        waiting.LONGEST_PAUSE = 10e-3
    bench = Bench(arguments, workers, device)
    how = TAKING_TURNS if arguments.take_turns else ""
    if workers.size < 3:
        if not how:
            for name, settings in ONE_WORKER.items():
                bench.add_steps(name, settings, SingleProcess())
            bench.add_shared_forward()
        bench.add_parts(how)
        # Workers that take turns all run the parts; otherwise only the first one does.
        bench.of_first = set() if how else set(bench.work)
    for name, settings in {1: {}, 2: TWO_WORKERS, 3: THREE_WORKERS}[workers.size].items():
        bench.add_steps(how + name, settings, workers)
    times = bench.measure()
    report = {"environment": describe_environment(workers, device), "seconds": times}
    workers.close()
    return report
