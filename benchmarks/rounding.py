"""The error of a sum of M workers' codes: independent or correlated rounding, with a rotation or without.

``python benchmarks/rounding.py [--json PATH] [--cifar ROOT] [--seeds N]``: gradients of M workers go through
the package's quantizer and its random numbers, and the decoded sum is compared with the exact one:

    vNMSE = ||decoded sum - sum||^2 / ||sum||^2

This for 2, 4 and 8 bits, 2, 6 and 36 workers, on normal numbers and on gradients recorded in the training of
a network on the digits and, with ``--cifar``, of a ResNet-18 on CIFAR-10 (``recorded_gradients.py``). Each
seed draws or trains its own gradients; means and standard errors are over the seeds.

The rotation is that of ``hpcdat/exchange/rotation.py``, in blocks of 512.

Norms: ``max, own`` is the job's default between servers, ``max, common`` that of a ring, where the workers
agree on the largest norm of each block; ``l2, own`` is the paper's, one norm for each tensor.

Ratios:

- ``KIND_over_independent_BITS_bits_M_workers_GRADIENTS``: vNMSE of correlated rounding (``correlated``), of
  the rotation with independent rounding (``rotated``) and of both (``rotated_correlated``) over that of
  independent rounding, with ``max, own``.
- ``KIND_over_independent_largest``, ``_least``: over all gradients, norms, bits and M.
- ``KIND_bias``: ||mean error of N draws||^2 over mean ||error||^2 / N: 1 where there is no bias, and N where
  there is nothing else.
- ``KIND_bits``: bits on the wire over those of independent rounding, the largest of all.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch
from arguments import Parser, errors_in_one_line, whole
from recorded_gradients import NORMAL, Gradients, normal, of_cifar, of_digits
from tabulate import tabulate
from torch import Tensor

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.loopback import loopback
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.exchange.codecs import Quantized
from hpcdat.exchange.protocols import Draw, lanes_for
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.exchange.rotation import rotate, rotate_back
from hpcdat.storage.atomic_files import write_text

BITS, WORKERS, BLOCK, DRAWS = (2, 4, 8), (2, 6, 36), 512, 400
CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "independent": {},
    "correlated": {"rounding": "correlated"},
    "rotated": {"rotation": "hadamard"},
    "rotated_correlated": {"rounding": "correlated", "rotation": "hadamard"},
}
"""Settings of the quantizer."""


@dataclass(frozen=True)
class Norms:
    """Which coordinates and workers share a norm.

    Attributes:
        norm, block: of the quantizer.
        common: whether the workers agree on the largest, as in a ring.
    """

    norm: Any
    block: int | None
    common: bool = False


NORMS = {
    "max, own": Norms("max", BLOCK),
    "max, common": Norms("max", BLOCK, common=True),
    "l2, own": Norms("l2", None),
}


def decoded_sum(x: Tensor, codec: Quantized, draw: Draw, norms: Norms) -> Tensor:
    """The sum that M workers decode who have the rows of (M, n)."""
    ranks: Sequence[Communicator] = loopback(len(x))
    correlated = codec.quantizer.rounding == "correlated"
    keys = [draw.correlated_key(r) if correlated else draw.key("worker", r.rank) for r in ranks]
    if norms.common:
        rows, lanes = codec.rotated(x), lanes_for(codec.quantizer, len(x))
        largest = codec.norms(rows).amax(0)
        words = sum(codec.to_lanes(row, largest, key, lanes) for row, key in zip(rows, keys, strict=True))
        assert isinstance(words, Tensor)
        return codec.from_lanes(words, largest, lanes, x.shape[1], len(x))
    messages = [codec.encode(row[None], key) for row, key in zip(x, keys, strict=True)]
    return codec.decode_sum(torch.cat(messages), x.shape[1])


def sum_by(kind: str, x: Tensor, bits: int, norms: Norms, draw: Draw) -> tuple[Tensor, float]:
    """The decoded sum of the rows of (M, n), and bits on the wire per coordinate."""
    quantizer = Quantizer(bits, norms.norm, norms.block, **KINDS[kind])
    codec, count = Quantized(quantizer), x.shape[1]
    if "rotation" in KINDS[kind] and norms.block is None:
        # The package refuses this combination.
        total = rotate_back(decoded_sum(rotate(x, BLOCK), codec, draw, norms), BLOCK)
    else:
        total = decoded_sum(x, codec, draw, norms)
    return total, 8 * codec.message_bytes(count) / count


def error_of(kind: str, gradients: Gradients, bits: int, norms: Norms, seed: int) -> tuple[float, float]:
    """The vNMSE of all tensors together, and bits on the wire per coordinate."""
    vectors = gradients if norms.block is None else [torch.cat(gradients, 1)]
    square = size = wire = 0.0
    for number, x in enumerate(vectors):
        total, per_number = sum_by(kind, x, bits, norms, Draw(seed, 0, 0, number, CPU))
        exact = x.double().sum(0)
        square += (total - exact).square().sum().item()
        size += exact.square().sum().item()
        wire += per_number * x.shape[1]
    return square / size, wire / sum(x.shape[1] for x in vectors)


def measure(source: str, gradients_for: Callable[[int, int], Gradients], seeds: int) -> list[dict[str, Any]]:
    """A row for each kind of norm, number of bits and of workers, with values by kind and seed."""
    rows = []
    recorded = [gradients_for(max(WORKERS), seed) for seed in range(seeds)]
    for (name, norms), bits, workers in itertools.product(NORMS.items(), BITS, WORKERS):
        row: dict[str, Any] = {"gradients": source, "norms": name, "bits": bits, "workers": workers}
        for kind in KINDS:
            found = [
                error_of(kind, [x[:workers] for x in gradients], bits, norms, seed)
                for seed, gradients in enumerate(recorded)
            ]
            row[kind] = {"vnmse": [error for error, _ in found], "wire_bits": found[0][1]}
        rows.append(row)
    return rows


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The vNMSE of independent rounding, and the others' over it."""
    header = ["gradients", "norms", "bits", "M", "vNMSE, independent"]
    header += [f"{kind.replace('_', ', ')}: ratio" for kind in list(KINDS)[1:]]
    table = [
        [row["gradients"], row["norms"], row["bits"], row["workers"], _shown(row["independent"]["vnmse"])]
        + [_shown(over_independent(row, kind)) for kind in list(KINDS)[1:]]
        for row in rows
    ]
    return tabulate(table, header, tablefmt="github", disable_numparse=True)


def bias_of(kind: str) -> float:
    """||mean error||^2 over mean ||error||^2 / N of N draws, of 6 workers with 4 bits.

    Without bias 1 with a standard deviation of sqrt(2 / numbers) = 0.011.
    """
    x = normal(0.5, 6, 0)[0][:, : 32 * BLOCK]
    exact, total, square = x.double().sum(0), torch.zeros(x.shape[1], dtype=torch.float64), 0.0
    for step in range(DRAWS):
        error = sum_by(kind, x, 4, NORMS["max, own"], Draw(1, 0, step, 0, CPU))[0] - exact
        total += error
        square += error.square().sum().item()
    return total.square().sum().item() / square


def over_independent(row: dict[str, Any], kind: str) -> list[float]:
    """The vNMSE over that of independent rounding, by seed: of the same gradients."""
    return [a / b for a, b in zip(row[kind]["vnmse"], row["independent"]["vnmse"], strict=True)]


def ratios_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the table is read for."""
    ratios = {}
    for kind in list(KINDS)[1:]:
        for row in rows:
            if row["norms"] == "max, own":
                place = f"{row['bits']}_bits_{row['workers']}_workers_{row['gradients']}"
                ratios[f"{kind}_over_independent_{place}"] = mean(over_independent(row, kind))
        every = [mean(over_independent(row, kind)) for row in rows]
        ratios |= {
            f"{kind}_over_independent_largest": max(every),
            f"{kind}_over_independent_least": min(every),
            f"{kind}_bits": max(row[kind]["wire_bits"] / row["independent"]["wire_bits"] for row in rows),
        }
    return ratios | {f"{kind}_bias": bias_of(kind) for kind in KINDS}


def _shown(values: Sequence[float]) -> str:
    error = f" ± {stdev(values) / len(values) ** 0.5:.2g}" if len(values) > 1 else ""
    return f"{mean(values):.3g}{error}"


@errors_in_one_line
def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = Parser("the error of a sum of M workers' codes", alone="its workers are computed in one process")
    parser.add_json()
    parser.add_cifar()
    parser.add_argument(
        "--seeds", type=whole(1), default=3, help="gradients and draws (default: %(default)s)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sources: dict[str, Callable[[int, int], Gradients]] = {
        name: partial(normal, share) for name, share in NORMAL.items()
    }
    sources["digits"] = of_digits
    if arguments.cifar:
        sources["CIFAR-10"] = partial(of_cifar, arguments.cifar)
    rows = []
    for name, gradients_for in sources.items():
        found = measure(name, gradients_for, arguments.seeds)
        print(f"{table_of(found)}\n", flush=True)
        rows += found
    ratios = ratios_of(rows)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.4g}")
    if arguments.json:
        report = {
            "environment": describe_environment(SingleProcess(), CPU),
            "settings": {"seeds": arguments.seeds, "block": BLOCK, "draws": DRAWS},
            "rows": rows,
            "ratios": ratios,
        }
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
