"""Throughput of concurrent adversarial learning, with one core per worker.

``python benchmarks/conadv.py [--json PATH]`` starts two workers (with three or more cores also three) with
mpirun, each bound to a core, and times iterations of the trainer on images in memory: vanilla training,
DisAdv and ConAdv in every placement, and their parts, one after the other in every round. Steps of a single
worker are timed while the other cores are idle. ``--device cuda`` does the same with one GPU per worker; with
one GPU: one worker, ConAdv in streams, and a variant that shares one forward pass between the update and the
attack.

Without a third core, three workers cannot run concurrently. They then take turns on one core (over Gloo,
which sleeps while it waits), as do the two workers that they are compared with, and the parts. The time of a
step is then the processor time of the worker that needs most: the time with a core each, except for waiting.

Ratios of throughput; each is the median over the rounds:

- ``pair_of_limit``: an update and an attack worker over DisAdv on one worker, divided by the limit
  (attack + update) / max(attack, update).
- ``split_of_limit``: clean half, adversarial half and attack on a worker each, over DisAdv with its halves on
  a worker each, divided by the limit (attack + half) / (longest of the three).
- ``split_over_vanilla``: the same three workers over vanilla training of three, each with a batch of its own.
- ``beside_over_disadv``: ConAdv over DisAdv, both on one worker.
- ``shared_forward_over_beside``: the variant over ConAdv, both on one worker.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate
from timing import seconds
from torch import Tensor, nn

from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.distributed import waiting
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.launcher import launched
from hpcdat.distributed.local_mpirun import mpirun_command
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
BY_TURNS = "by turns: "
"""Prefix of the names of steps timed with workers taking turns on one core."""
ROUNDS_PER_START = 2
"""Rounds of workers that take turns, before they are started again."""
CLASSES = 10
"""Number of classes of the random images."""


def algorithm_of(job: Job, workers: Communicator, device: torch.device) -> Algorithm1:
    """Algorithm 1 of a job before its first iteration, for images of CLASSES classes."""
    model = build_model_for(job, CLASSES).to(device).train()
    return Algorithm1(job, model, job.exchange, workers, device)


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
        given = self.arguments
        model = [f"model.name={given.model}", f"model.width={given.width}"]
        sizes = [f"batch_size={given.batch}", f"data.image_size={given.size}"]
        job = read_job(JOB, [*COMMON_SETTINGS, *model, *sizes, *given.set, *settings])
        return algorithm_of(job, workers, self.device)

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
                if self.arguments.by_turns:
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
    if arguments.by_turns:
        # Polling a collective takes processor time, in waits that occur only because workers take turns.
        waiting.LONGEST_PAUSE = 10e-3
    bench = Bench(arguments, workers, device)
    how = BY_TURNS if arguments.by_turns else ""
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


def compare(step: dict[str, float]) -> dict[str, float]:
    """The ratios that can be computed from the seconds of one round."""
    ratios = {
        "beside_over_disadv": step["DisAdv"] / step["ConAdv"],
        "shared_forward_over_beside": step["ConAdv"] / step["ConAdv, one forward pass"],
    }
    pair = step.get("ConAdv, update and attack worker")
    if pair is None:
        return ratios
    attack, both, update = (step[f"part: {part}"] for part in ("attack", "both halves", "update"))
    limit = (attack + both + update) / max(attack, both + update)
    ratios |= {"pair_over_disadv": step["DisAdv"] / pair, "pair_limit": limit}
    ratios["pair_of_limit"] = ratios["pair_over_disadv"] / limit
    ratios["a_batch_each_over_disadv"] = step["DisAdv, a batch each"] / step["ConAdv, a batch each"]
    ratios["beside_another_worker"] = step["vanilla, a batch each"] / step["vanilla"]
    three = "ConAdv, separate halves and attack"
    how = next((how for how in ("", BY_TURNS) if how + three in step), None)
    if how is None:
        return ratios
    attack, clean, adversarial = (
        step[f"{how}part: {part}"] for part in ("attack", "clean half", "adversarial half")
    )
    limit = (attack + adversarial) / max(attack, clean, adversarial)
    split, halves, vanilla = (
        step[how + name] for name in (three, "DisAdv, separate halves", "vanilla, three batches")
    )
    ratios |= {"split_over_disadv_in_halves": halves / split, "split_limit": limit}
    ratios["split_of_limit"] = ratios["split_over_disadv_in_halves"] / limit
    ratios["split_over_vanilla"] = vanilla / split
    return ratios


def describe(ratios: dict[str, float], *, by_turns: bool) -> list[str]:
    """Lines that explain the ratios of two and three workers."""
    if "pair_limit" not in ratios:
        return []
    notes = [
        f"a pair over DisAdv on one worker: {ratios['pair_over_disadv']:.3f}, its limit "
        f"{ratios['pair_limit']:.3f} (the paper's figure 4a: about 1.5)",
        f"two workers, a batch each: ConAdv over DisAdv {ratios['a_batch_each_over_disadv']:.3f}; a vanilla "
        f"step while the other worker runs takes {ratios['beside_another_worker']:.3f} of one without it",
    ]
    if "split_limit" in ratios:
        turns = ", by turns" if by_turns else ""
        notes.append(
            f"three workers a batch{turns}, over DisAdv in halves: "
            f"{ratios['split_over_disadv_in_halves']:.3f}, "
            f"the limit {ratios['split_limit']:.3f} (the paper's figure 4b: about 2)"
        )
    return notes


def launch(
    size: int, arguments: argparse.Namespace, rounds: int, *, by_turns: bool = False
) -> dict[str, Any]:
    """Start workers, each with its own core or GPU, or taking turns on one core; return worker 0's report."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "report.json"
        passed = ("device", "model", "width", "size", "batch", "steps")
        given = [f"--rounds={rounds}", *(f"--{key}={getattr(arguments, key)}" for key in passed)]
        given += ["--set", *arguments.set] if arguments.set else []
        program = [sys.executable, __file__, "--worker-report", str(answer), "--workers", str(size), *given]
        command = mpirun_command(size, program)
        if by_turns:
            horovodrun = str(Path(sys.executable).parent / "horovodrun")
            command = [horovodrun, "--gloo", "-np", str(size), "-H", f"localhost:{size}", *program]
            command.append("--by-turns")
        # Horovod polls every millisecond, which takes processor time in the waits that occur only because
        # workers take turns.
        longer_cycle = {"HOROVOD_CYCLE_TIME": "10"} if by_turns else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **longer_cycle}
        code = subprocess.run(command, env=environment).returncode
        if code:
            raise SystemExit(f"a worker ended with code {code}")
        return json.loads(answer.read_text())


def on_one_worker(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report of a single worker in this process."""
    return work(argparse.Namespace(**{**vars(arguments), "workers": 1, "by_turns": False}))


def taking_turns(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of two and of three workers that take turns on one core.

    They are started several times in alternation, so that both are timed within the same minute.
    """
    times: dict[str, list[float]] = {}
    left = arguments.rounds
    while left:
        rounds = min(left, ROUNDS_PER_START)
        for size in (2, 3):
            report = launch(size, arguments, rounds, by_turns=True)
            for name, each in report["seconds"].items():
                times.setdefault(name, []).extend(each)
        left -= rounds
    return times


def concluded(report: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings, medians, ratios and their explanation, for a report.

    A ratio is the median over the rounds, since the machine may be slower in some rounds than in others.
    """
    times = report["seconds"]
    medians = {name: median(rounds) for name, rounds in times.items()}
    number = min(map(len, times.values()))
    compared = [compare({name: rounds[r] for name, rounds in times.items()}) for r in range(number)]
    ratios = {name: median(ratios[name] for ratios in compared) for name in compared[0]}
    notes = describe(ratios, by_turns=BY_TURNS + "vanilla, a batch each" in times)
    keys = ("model", "width", "size", "batch", "steps", "set")
    settings = {key: getattr(arguments, key) for key in keys}
    return {"settings": settings, "medians": medians, "ratios": ratios, "notes": notes}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="throughput of ConAdv, DisAdv and vanilla training")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", default="preact-resnet18", help="network (default: %(default)s)")
    parser.add_argument("--width", type=float, default=0.5, help="factor of its channels, where it takes one")
    parser.add_argument("--size", type=int, default=32, help="height and width of an image")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch")
    parser.add_argument("--rounds", type=int, default=6, help="repetitions after a warm-up")
    parser.add_argument("--steps", type=int, default=3, help="iterations timed together")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all jobs")
    parser.add_argument("--json", type=Path, help="write environment, seconds and ratios here")
    parser.add_argument("--worker-report", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--by-turns", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker_report:
        rank = launched().rank
        if arguments.device == "cpu":
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[0 if arguments.by_turns else rank % len(cores)]})
        report = work(arguments)
        if rank == 0:
            arguments.worker_report.write_text(json.dumps(report))
        return
    on_cpu = arguments.device == "cpu"
    places = len(os.sched_getaffinity(0)) if on_cpu else torch.cuda.device_count()
    if places < (2 if on_cpu else 1):
        raise SystemExit("two workers need two cores" if on_cpu else "this machine has no GPU")
    if places == 1:
        report = on_one_worker(arguments)
    else:
        report = launch(2, arguments, arguments.rounds)
        if places > 2:
            report["seconds"] |= launch(3, arguments, arguments.rounds)["seconds"]
        elif on_cpu:
            report["seconds"] |= taking_turns(arguments)
    report |= concluded(report, arguments)
    medians, ratios, notes = report["medians"], report["ratios"], report["notes"]
    rows = [
        [name, f"{1e3 * medians[name]:.1f}", f"{1e3 * min(t):.1f}", f"{1e3 * max(t):.1f}"]
        for name, t in report["seconds"].items()
    ]
    print(tabulate(rows, ["a step of", "ms", "min", "max"], tablefmt="github", disable_numparse=True))
    print("\n" + "\n".join(notes) + "\n")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
