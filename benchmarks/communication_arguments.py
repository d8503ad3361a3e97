"""The command line of communication.py."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentTypeError
from pathlib import Path

from arguments import Parser, file_to_write, link_rate, listed, one_of, whole
from communication_operations import OPERATIONS

from hpcdat.config.job_file import read_job
from hpcdat.distributed.launcher import launched
from hpcdat.errors import InputError, shorten

RATES = ["100mbit", "1gbit"]
"""Rates of emulated links, unless others are given."""
OF_SWEEP = {
    "min_bytes": 2**10,
    "max_bytes": 2**24,
    "factor": 4,
    "warm_up": 1,
    "repetitions": 20,
    "operations": list(OPERATIONS),
    "plot": None,
}
"""Options of the sweep, and their values if they are not given."""
OF_GRADIENT = {"count": 12_000_000, "rounds": 3}
"""The same without a sweep."""
OF_JOBS = {"jobs": None, "warm_up": 1, "repetitions": 10}
"""The same with ``--jobs``."""
POWERS = {"": 0, "K": 10, "M": 20, "G": 30}


def size(text: str) -> int:
    """The type of sizes in bytes, as nccl-tests has them: ``1K`` is 1024."""
    found = re.fullmatch(r"(\d{1,15})([KMG]?)", text.strip().upper())
    if not found or not int(found[1]):
        raise ArgumentTypeError(f"{shorten(repr(text))}: expected bytes such as 4096, 64K or 16M (1K: 1024)")
    return int(found[1]) << POWERS[found[2]]


def picture(text: str) -> Path:
    """The type of plots that are written."""
    found = file_to_write(text)
    if found.suffix != ".svg":
        raise ArgumentTypeError(f"{shorten(found)}: expected a name that ends with .svg")
    return found


def a_job(text: str) -> Path:
    """The type of job files; their names become those of rows."""
    path = Path(text)
    try:
        read_job(path)
    except InputError as error:
        raise ArgumentTypeError(str(error)) from None
    return path.resolve()


def read_arguments() -> argparse.Namespace:
    """The command line, with ``sweeping``; exits with code 2 if it is wrong."""
    parser = Parser("the exchange and other collectives over emulated and real links")
    parser.add_argument(
        "--rates",
        type=listed(link_rate),
        metavar="RATE,...",
        help="rates of emulated links (default: 100mbit,1gbit); under a launcher that of a node's card",
    )
    parser.add_argument(
        "--engines",
        type=listed(one_of("auto", "horovod", "torch")),
        metavar="ENGINE,...",
        help="auto, horovod, torch (default: horovod,torch on emulated nodes, auto under a launcher)",
    )
    parser.add_argument("--nodes", type=whole(2), metavar="N", default=6, help="emulated nodes (default: 6)")
    parser.add_json()
    parser.add_argument("--worker-report", type=Path, help=argparse.SUPPRESS)
    gradient = parser.add_argument_group("one gradient")
    gradient.add_argument("--count", type=whole(24), metavar="N", help="numbers in it (default: 12000000)")
    gradient.add_argument("--rounds", type=whole(1), metavar="N", help="repetitions (default: 3)")
    swept = parser.add_argument_group("a sweep over sizes, if --min-bytes or --max-bytes is given")
    swept.add_argument("--min-bytes", type=size, metavar="SIZE", help="smallest, such as 1K (default: 1K)")
    swept.add_argument("--max-bytes", type=size, metavar="SIZE", help="largest, such as 16M (default: 16M)")
    swept.add_argument("--factor", type=whole(2), metavar="N", help="from size to size (default: 4)")
    swept.add_argument(
        "--warm-up", type=whole(0), metavar="N", help="runs before the timed of each round (default: 1)"
    )
    swept.add_argument(
        "--repetitions", type=whole(1), metavar="N", help="timed runs of all rounds (default: 20)"
    )
    swept.add_argument(
        "--operations",
        type=listed(one_of(*OPERATIONS)),
        metavar="NAME,...",
        help=f"{', '.join(OPERATIONS)} (default: all)",
    )
    swept.add_argument("--plot", type=picture, metavar="PATH", help="draw time over size, as SVG")
    of_jobs = parser.add_argument_group("exchanges of jobs, with --warm-up and --repetitions")
    of_jobs.add_argument(
        "--jobs",
        type=listed(a_job),
        metavar="JOB.yaml,...",
        help="jobs whose exchanges are measured (default of --warm-up: 1, of --repetitions: 10)",
    )
    parser.add_device()
    found = parser.parse_args()
    found.sweeping = found.min_bytes is not None or found.max_bytes is not None
    own, others = OF_GRADIENT, "only with --min-bytes"
    if found.sweeping:
        own, others = OF_SWEEP, "not with --min-bytes"
    elif found.jobs:
        own, others = OF_JOBS, "not with --jobs"
    for name in OF_GRADIENT | OF_SWEEP | OF_JOBS:
        if name not in own and getattr(found, name) is not None:
            parser.error(f"--{name.replace('_', '-')}: {others}")
    for name, default in own.items():
        if getattr(found, name) is None:
            setattr(found, name, default)
    _check(found, parser)
    return found


def _check(found: argparse.Namespace, parser: Parser) -> None:
    """End with code 2 if options contradict each other."""
    if found.sweeping and found.min_bytes > found.max_bytes:
        parser.error(f"--min-bytes {found.min_bytes} is more than --max-bytes {found.max_bytes}")
    if found.sweeping and found.plot and len(sizes_of(found)) == 1:
        parser.error("--plot: there is one size only")
    place = launched()
    if place.size == 1 and place.launcher not in ("none", "srun"):
        # A shell of salloc has srun's variables.
        parser.error(
            f"{place.launcher} has started one worker: start two or more, or none for emulated nodes"
        )
    if place.size > 1:
        for name in ("rates", "engines"):
            if len(getattr(found, name) or []) > 1:
                parser.error(f"--{name}: workers that a launcher has started have one; give one")
    elif found.device == "cuda":
        parser.error("--device cuda: emulated nodes compute on the CPU; start one worker a GPU by a launcher")
    if found.device == "cuda" and not found.sweeping and not found.jobs:
        parser.error("--device cuda: only with --min-bytes or --jobs")


def sizes_of(arguments: argparse.Namespace) -> tuple[int, ...]:
    """The sizes of a sweep in bytes."""
    sizes = [arguments.min_bytes]
    while sizes[-1] * arguments.factor <= arguments.max_bytes:
        sizes.append(sizes[-1] * arguments.factor)
    return tuple(sizes)
