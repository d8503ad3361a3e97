"""Speed and error of the quantizer: encode and decode, at every number of bits.

``python benchmarks/codec.py [--device auto|cpu|cuda] [--json PATH] [--count N] [--rounds N]``: 25.6 million
normal numbers (ResNet-50's size) are encoded and decoded, eagerly, compiled and, on a GPU, by Triton's
kernels. This is compared with formulas (A5) and (A6) written plainly in eager torch, and with a memory copy
as the limit. All parts run in every round, in rotating order, after a warm-up; medians are compared. Under a
launcher all workers do the same at the same time, and the slowest one counts.

Ratios, of Triton's kernels where these are timed, else of compiled code, else of eager code:

- ``error_8bit``: relative l2 error of one draw at 8 bits, max norm, blocks of 512.
- ``speedup_over_eager``: the plain formula's time over ours, encode + decode at 8 bits; the formula draws
  from torch's binomial distribution, as the paper's public code does.
- ``speedup_over_eager_uniform``: the same where it compares uniform numbers instead.
- ``correlated_over_independent``, ``rotated_over_unrotated``: time of encode + decode at 8 bits with
  correlated rounding (six workers) or a Hadamard rotation over the time without.
- ``codec_of_copy_bandwidth``: bytes that encode + decode must move over their time, over the same of a copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from arguments import Parser, errors_in_one_line, own_device, whole
from tabulate import tabulate
from timing import in_turns, rows_of, settings_of
from torch import Tensor

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.exchange.codecs import Quantized, can_compile, kernels_on_gpu
from hpcdat.exchange.counter_rng import correlated_key, split_key
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.performance.benchmark_file import BenchmarkFile, Row

BITS = (1, 2, 4, 8, 16)
OPTIONS: dict[str, dict[str, Any]] = {
    "correlated": {"rounding": "correlated"},
    "rotated": {"rotation": "hadamard"},
}
"""Settings of the quantizer that are measured at 8 bits."""
S = 127
"""Number of levels s at 8 bits."""


def plain_encode(g: Tensor, draw: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(A5), (A6) as written: the norm, and bytes of twice the level of |g| plus a sign bit.

    Args:
        g: the gradient.
        draw: draws ones with given probabilities, otherwise zeros.
    """
    norm = g.norm()
    place = g.abs() / norm * S
    level = place.floor()
    level = level + draw(place - level)
    return norm, (2 * level + (g.sign() + 1) / 2).to(torch.uint8)


def plain_decode(norm: Tensor, code: Tensor) -> Tensor:
    """(A5): the inverse of :func:`plain_encode`."""
    sign = 2 * (code % 2).float() - 1
    return norm * sign * (code // 2).float() / S


def by_binomial(p: Tensor) -> Tensor:
    """As the paper's public code draws: from torch's binomial distribution."""
    return torch.distributions.Binomial(1, p).sample()


def by_comparison(p: Tensor) -> Tensor:
    """The faster way: by comparison with uniform numbers."""
    return (torch.rand_like(p) < p).float()


def kinds_on(device: torch.device) -> list[str]:
    """The kinds of code for a device, the one that training uses for large models last."""
    kinds = ["eager"] + (["compiled"] if can_compile() else [])
    return kinds + (["Triton"] if device.type == "cuda" and kernels_on_gpu(Quantizer(8)) else [])


def parts_of(x: Tensor) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """The functions to time, by name, and the relative l2 error of each codec."""
    key, count = split_key(1, x.device), x.shape[1]
    target = torch.empty_like(x)
    coded = plain_encode(x, by_comparison)
    parts: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(x),
        "plain formula: encode": lambda: plain_encode(x, by_binomial),
        "plain formula, uniform numbers: encode": lambda: plain_encode(x, by_comparison),
        "plain formula: decode": lambda: plain_decode(*coded),
    }
    errors = {}
    quantizers = {f"{bits} bits": Quantizer(bits) for bits in BITS}
    quantizers |= {f"8 bits, {name}": Quantizer(8, **settings) for name, settings in OPTIONS.items()}
    correlated = correlated_key(1, 2, 1, 6, x.device)
    for (label, quantizer), kind in itertools.product(quantizers.items(), kinds_on(x.device)):
        codec = Quantized(quantizer, compiled=kind == "compiled", kernels=kind == "Triton")
        own = correlated if quantizer.rounding == "correlated" else key
        message = codec.encode(x, own)
        name = f"{label}, {kind}"
        errors[name] = ((codec.decode(message, count) - x).norm() / x.norm()).item()
        parts[f"{name}: encode"] = lambda codec=codec, own=own: codec.encode(x, own)
        parts[f"{name}: decode"] = lambda codec=codec, message=message: codec.decode(message, count)
    return parts, errors


def measure(
    count: int, rounds: int, device: torch.device, workers: Communicator | None = None
) -> dict[str, Any]:
    """Seconds of every part, of the slowest worker, errors and ratios: the report."""
    together = workers or SingleProcess()
    x = torch.randn(1, count, generator=torch.Generator().manual_seed(0)).to(device)
    parts, errors = parts_of(x)
    times = in_turns(parts, rounds, device, together)
    medians = {name: median(values) for name, values in times.items()}
    kind = kinds_on(device)[-1]
    best = f"8 bits, {kind}"
    ours, correlated, rotated = (
        medians[f"{name}, {kind}: encode"] + medians[f"{name}, {kind}: decode"]
        for name in ("8 bits", "8 bits, correlated", "8 bits, rotated")
    )
    decode = medians["plain formula: decode"]
    plain, quicker = (
        medians[f"{name}: encode"] + decode for name in ("plain formula", "plain formula, uniform numbers")
    )
    # Encoding and decoding each move four bytes and one byte per number.
    moved = 2 * count * 5 / ours
    ratios = {
        "error_8bit": errors[best],
        "speedup_over_eager": plain / ours,
        "speedup_over_eager_uniform": quicker / ours,
        "correlated_over_independent": correlated / ours,
        "rotated_over_unrotated": rotated / ours,
        "codec_of_copy_bandwidth": moved / (8 * count / medians["copy"]),
    }
    return {
        "environment": describe_environment(together, device),
        "settings": {"count": count, "rounds": rounds, "block": 512, "norm": "max"},
        "seconds": times,
        "errors": errors,
        "ratios": ratios,
    }


def rows_of_report(report: dict[str, Any], device: torch.device) -> list[Row]:
    """The rows of the benchmark file; those of encoding have the error of the codec."""
    errors = report["errors"]
    rows = rows_of(report["seconds"], numbers=report["settings"]["count"], device=device.type)
    return [
        row.model_copy(update={"figures": {"error": errors[name]}})
        if (name := str(row.parameters["part"]).removesuffix(": encode")) in errors
        else row
        for row in rows
    ]


@errors_in_one_line
def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = Parser("speed and error of the quantizer")
    parser.add_argument(
        "--count", type=whole(1), default=25_600_000, help="numbers in the vector (default: %(default)s)"
    )
    parser.add_device()
    parser.add_rounds(5)
    parser.add_json()
    arguments = parser.parse_args()
    workers = init_communicator(600)
    device = own_device(arguments.device, workers)
    report = measure(arguments.count, arguments.rounds, device, workers)
    settings = settings_of(workers, device, arguments.rounds, block=512, norm="max")
    workers.close()
    if not workers.is_rank0:
        return
    rows = rows_of_report(report, device)
    lines = [
        [row.parameters["part"]]
        + [f"{1e3 * value:.1f}" for value in (row.median, min(row.seconds), max(row.seconds))]
        + [f"{row.figures['error']:.4g}" if row.figures else ""]
        for row in rows
    ]
    header = [f"{arguments.count:,} numbers", "ms, median", "min", "max", "error"]
    print(tabulate(lines, header, tablefmt="github", disable_numparse=True))
    print()
    for name, ratio in report["ratios"].items():
        print(f"{name}: {ratio:.4g}")
    if arguments.json:
        written = BenchmarkFile.of("codec", report["environment"], settings, rows, report["ratios"])
        written.write(arguments.json)


if __name__ == "__main__":
    main()
