"""The time of adversarial training steps: images per second, share of the device's peak, and memory.

``python benchmarks/attack_step.py [--networks NAME[@SIZE],...] [--batch-sizes N,N] [--precisions P,P]
[--steps K,K] [--device auto|cpu|cuda] [--rounds N] [--json PATH]`` times a training step for every
combination: a PGD-K attack (K = 0: none) at eps 8/255, loss, gradient and an update by LAMB. In each round
every combination is built anew, warmed up by a step, and timed, in an order that rotates. Under mpirun,
srun, horovodrun or torchrun all workers compute at the same time, without exchanging gradients; the slowest
one counts. One worker computes on one GPU; workers on CPUs share the cores.

- images/s: of all workers together.
- GFLOP: floating-point operations of a worker's step in convolutions and matrix products, two for a product
  and a sum.
- of peak: FLOP/s over those of the fastest of several matrix products and convolutions in the same precision,
  measured before. On a GPU, float32 stands for TF32, as in torch's convolutions.
- memory: on a GPU the most that torch has allocated for model, images and two steps; on a CPU the growth of
  resident memory while a process of its own does the same.

bfloat16 comes with ``channels_last``. A size after ``@`` replaces the height and width of a network's images.

Ratios, of steps of preact-resnet18 with 64 images unless others are named, which take turns in every round,
so that a change of the machine's load affects all of them; left out with ``--no-ratios``:

- ``pgd10_fp32_efficiency``: ideal over measured time, where ideal is 10 (forward + input gradient)
  + (forward + backward) in plain torch, timed in one piece. 1: attack and update take no time beyond the
  arithmetic of the model; more: the attack saves some of that by folding batch norm.
- ``pgd10_bf16_over_fp32``: time with ``precision: bfloat16`` and ``channels_last: true`` over that with
  the defaults; null where the device has no bfloat16 arithmetic.
- ``over_foolbox``: our time over that of the same step with foolbox's LinfPGD as the attack; null where
  foolbox is not installed.
- ``preact18_pgd10_over_plain`` and ``resnet50_pgd4_over_plain`` (224 pixels, 8 images, PGD-4): our time over
  that of the same step whose attack is written in a few lines of torch, without gradients of the weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product

import torch
from arguments import Parser, errors_in_one_line, listed, one_of, own_device, whole
from attack_comparison import EPS, MISSING, STEP_SIZE, compare, ratios_of
from attack_sweep import shown, sweep
from peak import Peak, measure_peak
from tabulate import tabulate
from timing import settings_of
from training_steps import (
    CLASSES,
    LAMB,
    Combination,
    Network,
    Pgd,
    has_bfloat16,
)

from hpcdat.distributed.environment import describe_environment, device_name
from hpcdat.distributed.initialization import init_communicator
from hpcdat.errors import InputError
from hpcdat.models.pixel_model import Precision
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.performance.steadiness import FEWEST


def row_of(peak: Peak, precision: Precision, device: torch.device) -> Row:
    """The row of the fastest matrix product or convolution."""
    nothing = dict.fromkeys(("network", "image_size", "batch_size", "steps"))
    parameters = {"part": peak.what, **nothing, "precision": precision, "device": device.type}
    return Row(parameters=parameters, seconds=peak.seconds, figures={"flops": peak.flops})


def table_of(rows: Sequence[Row]) -> str:
    """The table of rows."""
    lines = []
    for row in rows:
        given, found = row.parameters, row.figures
        lines.append(
            [
                given["part"],
                f"{given['network']}@{given['image_size']}" if given["network"] else "",
                given["batch_size"],
                given["precision"],
                given["steps"],
                f"{1e3 * row.median:.4g}",
                f"{1e3 * min(row.seconds):.4g} - {1e3 * max(row.seconds):.4g}",
                shown(found.get("images_per_second"), ".1f"),
                shown(found.get("flops"), ".4g", 1e9),
                shown(found.get("share_of_peak"), ".3f"),
                shown(found.get("memory_bytes"), ".1f", 2**20),
            ]
        )
    header = ["", "network", "images", "precision", "PGD steps", "ms", "range", "images/s"]
    header += ["GFLOP", "of peak", "MiB"]
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = Parser("time of adversarial training steps")
    parser.add_argument(
        "--networks",
        type=listed(network),
        default="preact-resnet18",
        metavar="NAME[@SIZE],...",
        help="networks, with the size of their images (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-sizes",
        type=listed(whole(1)),
        default="64",
        metavar="N,N",
        help="images of a worker (default: %(default)s)",
    )
    parser.add_argument(
        "--precisions",
        type=listed(one_of("float32", "bfloat16")),
        metavar="P,P",
        help="float32, bfloat16 (default: float32, and bfloat16 where the device has its arithmetic)",
    )
    parser.add_argument(
        "--steps",
        type=listed(whole(0)),
        default="0,1,10",
        metavar="K,K",
        help="steps of the attack; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--ratios", action=argparse.BooleanOptionalAction, default=True, help="also measure the ratios"
    )
    parser.add_device()
    parser.add_rounds(None, by_default="6 on a CPU, 20 on a GPU")
    parser.add_json()
    return parser.parse_args()


def network(text: str) -> Network:
    """The type of networks with the size of their images."""
    try:
        return Network.of(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@errors_in_one_line
def main() -> None:
    """Measure, print the tables, write the JSON."""
    arguments = parse()
    for network in arguments.networks:
        network.check()
    workers = init_communicator(600)
    device = own_device(arguments.device, workers)
    rounds = arguments.rounds or (20 if device.type == "cuda" else FEWEST)
    emulated = not has_bfloat16(device)
    precisions = arguments.precisions or ["float32"] + ([] if emulated else ["bfloat16"])
    peaks = {precision: measure_peak(precision, device, workers) for precision in precisions}
    combinations = [
        Combination(network, batch, precision, Pgd(EPS, STEP_SIZE, steps))
        for network, batch, precision, steps in product(
            arguments.networks, arguments.batch_sizes, precisions, arguments.steps
        )
    ]
    if workers.is_rank0:
        print(
            f"workers: {workers.size}, each on {device_name(device)} with {torch.get_num_threads()} threads"
        )
        for precision, peak in peaks.items():
            print(f"peak, {precision}: {peak.rate / 1e9:.4g} GFLOP/s a worker, {peak.what}", flush=True)
    rows, notes = sweep(combinations, peaks, rounds, device, workers)
    if emulated and "bfloat16" in precisions:
        notes.append("this device only emulates bfloat16 arithmetic")
    compared = compare(rounds, device, workers) if arguments.ratios else []
    ratios = ratios_of(compared) if compared else {}
    notes += [f"{name}: {MISSING[name]}" for name, ratio in ratios.items() if ratio is None]
    environment = describe_environment(workers, device)
    of_steps = {"eps": EPS, "step_size": STEP_SIZE, "classes": CLASSES, "optimizer": LAMB.name}
    settings = settings_of(workers, device, rounds, threads=torch.get_num_threads(), **of_steps)
    workers.close()
    if not workers.is_rank0:
        return
    of_peaks = [row_of(peak, precision, device) for precision, peak in peaks.items()]
    print(f"\n{table_of([*rows, *compared])}\n")
    for name, ratio in ratios.items():
        print(f"{name}: {'not measured' if ratio is None else format(ratio, '.3f')}")
    for note in notes:
        print(note)
    if arguments.json:
        every = [*of_peaks, *rows, *compared]
        BenchmarkFile.of("attack_step", environment, settings, every, ratios, notes).write(arguments.json)


if __name__ == "__main__":
    main()
