"""Throughput of concurrent adversarial learning, with one core per worker.

``python benchmarks/conadv.py [--json PATH]`` starts two workers (with three or more cores also three) with
mpirun, each bound to a core, and times iterations of the trainer on images in memory: vanilla training,
DisAdv and ConAdv in every placement, and their parts, one after the other in every round. Steps of a single
worker are timed while the other cores are idle. On GPUs (``--device``) it does the same with one GPU per
worker; with one GPU: one worker, ConAdv in streams, and a variant that shares one forward pass between the
update and the attack.

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
from pathlib import Path
from statistics import median
from typing import Any

import torch
from arguments import Parser, errors_in_one_line, positive, whole
from conadv_steps import TAKING_TURNS, check_jobs, work
from tabulate import tabulate
from timing import rows_of

from hpcdat.distributed.launcher import launched
from hpcdat.distributed.local_mpirun import mpirun_command
from hpcdat.errors import InputError, WorkerError
from hpcdat.performance.benchmark_file import BenchmarkFile

ROUNDS_PER_START = 2
"""Rounds of workers that take turns, before they are started again."""


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
    how = next((how for how in ("", TAKING_TURNS) if how + three in step), None)
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


def describe(ratios: dict[str, float], *, take_turns: bool) -> list[str]:
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
        turns = ", taking turns" if take_turns else ""
        notes.append(
            f"three workers a batch{turns}, over DisAdv in halves: "
            f"{ratios['split_over_disadv_in_halves']:.3f}, "
            f"the limit {ratios['split_limit']:.3f} (the paper's figure 4b: about 2)"
        )
    return notes


def launch(
    size: int, arguments: argparse.Namespace, rounds: int, *, take_turns: bool = False
) -> dict[str, Any]:
    """Start workers, each with its own core or GPU, or taking turns on one core; return worker 0's report."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "report.json"
        passed = ("device", "model", "width", "size", "batch", "steps")
        given = [f"--rounds={rounds}", *(f"--{key}={getattr(arguments, key)}" for key in passed)]
        given += ["--set", *arguments.set] if arguments.set else []
        program = [sys.executable, __file__, "--worker-report", str(answer), "--workers", str(size), *given]
        command = mpirun_command(size, program)
        if take_turns:
            horovodrun = Path(sys.executable).parent / "horovodrun"
            if not horovodrun.exists():
                raise InputError(f"{horovodrun} does not exist: make setup builds Horovod")
            command = [str(horovodrun), "--gloo", "-np", str(size), "-H", f"localhost:{size}", *program]
            command.append("--take-turns")
        # Horovod polls every millisecond, which takes processor time in the waits that occur only because
        # workers take turns.
        longer_cycle = {"HOROVOD_CYCLE_TIME": "10"} if take_turns else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **longer_cycle}
        code = subprocess.run(command, env=environment).returncode
        if code:
            raise WorkerError(f"a worker ended with code {code}")
        return json.loads(answer.read_text())


def on_one_worker(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report of a single worker in this process."""
    return work(argparse.Namespace(**{**vars(arguments), "workers": 1, "take_turns": False}))


def taking_turns(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of two and of three workers that take turns on one core.

    They are started several times in alternation, so that both are timed within the same minute.
    """
    times: dict[str, list[float]] = {}
    left = arguments.rounds
    while left:
        rounds = min(left, ROUNDS_PER_START)
        for size in (2, 3):
            report = launch(size, arguments, rounds, take_turns=True)
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
    notes = describe(ratios, take_turns=TAKING_TURNS + "vanilla, a batch each" in times)
    keys = ("model", "width", "size", "batch", "steps", "set")
    settings = {key: getattr(arguments, key) for key in keys}
    return {"settings": settings, "medians": medians, "ratios": ratios, "notes": notes}


@errors_in_one_line
def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = Parser("throughput of ConAdv, DisAdv and vanilla training")
    parser.add_device()
    parser.add_argument("--model", default="preact-resnet18", help="network (default: %(default)s)")
    parser.add_argument(
        "--width", type=positive, default=0.5, help="factor of its channels, where it takes one"
    )
    parser.add_argument("--size", type=whole(1), default=32, help="height and width of an image")
    parser.add_argument("--batch", type=whole(1), default=64, help="images of a batch")
    parser.add_rounds(6)
    parser.add_argument("--steps", type=whole(1), default=3, help="iterations timed together")
    parser.add_settings("all jobs")
    parser.add_json()
    parser.add_argument("--worker-report", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--take-turns", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.worker_report:
        rank = launched().rank
        if arguments.device == "cpu":
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[0 if arguments.take_turns else rank % len(cores)]})
        report = work(arguments)
        if rank == 0:
            arguments.worker_report.write_text(json.dumps(report))
        return
    on_cpu = arguments.device == "cpu"
    places = len(os.sched_getaffinity(0)) if on_cpu else torch.cuda.device_count()
    if launched().size > 1:
        parser.refuse_launcher("it starts workers itself")
    if on_cpu and places < 2:
        raise InputError(f"two workers need two cores, and this process may use {places}")
    check_jobs(arguments)
    if places == 1:
        report = on_one_worker(arguments)
    else:
        report = launch(2, arguments, arguments.rounds)
        if places > 2:
            report["seconds"] |= launch(3, arguments, arguments.rounds)["seconds"]
        elif on_cpu:
            report["seconds"] |= taking_turns(arguments)
    report |= concluded(report, arguments)
    ratios, notes = report["ratios"], report["notes"]
    rows = rows_of(report["seconds"], device=arguments.device)
    lines = [
        [row.parameters["part"]]
        + [f"{1e3 * each:.1f}" for each in (row.median, min(row.seconds), max(row.seconds))]
        for row in rows
    ]
    print(tabulate(lines, ["a step of", "ms", "min", "max"], tablefmt="github", disable_numparse=True))
    print("\n" + "\n".join(notes) + "\n")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")
    if arguments.json:
        settings = report["settings"] | {"repetitions": arguments.rounds, "warm_up": 1}
        written = BenchmarkFile.of("conadv", report["environment"], settings, rows, ratios, notes)
        written.write(arguments.json)


if __name__ == "__main__":
    main()
