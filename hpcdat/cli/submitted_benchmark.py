"""What ``hpcdat submit --benchmark`` puts into the queue."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from hpcdat.errors import InputError
from hpcdat.slurm.benchmark import RESULT, TIME, find_benchmark, render_benchmark, write_benchmark
from hpcdat.slurm.script import Resources
from hpcdat.slurm.site import Site
from hpcdat.slurm.time_limit import seconds


def default_time_limit(site: Site) -> str:
    """The time limit of a benchmark for which none is given: an hour, or less if the profile's is shorter.

    Raises:
        InputError: the profile has limits by partition, but none for this one.
    """
    return min((site.time_limit() or TIME, TIME), key=seconds)


def check_options(options: Mapping[str, object]) -> None:
    """Refuse options that only a job has.

    Args:
        options: their values by name, such as ``--seeds``; true if given.

    Raises:
        InputError: one is given.
    """
    if given := [name for name, value in options.items() if value]:
        raise InputError(f"{', '.join(given)}: not allowed with --benchmark")


def submitted_benchmark(
    name: str,
    folder: Path | None,
    site: Site,
    resources: Resources,
    options: Sequence[str],
    *,
    dry_run: bool,
) -> tuple[Path, str, str]:
    """The batch script of a benchmark, written unless it is a dry run.

    Args:
        name: of the benchmark.
        folder: for the result and the log; None: one named after the benchmark and the time.
        site: the cluster's profile.
        resources: what to request from Slurm.
        options: of the benchmark.
        dry_run: whether to write nothing.

    Returns:
        The script's path and text, and what shows the result when the job is done.

    Raises:
        InputError: the benchmark, its folder or an option cannot be used.
    """
    benchmark = find_benchmark(name)
    folder = folder or Path("benchmark-results", f"{name}-{datetime.now().astimezone():%Y-%m-%d-%H%M%S}")
    script, text = (render_benchmark if dry_run else write_benchmark)(
        benchmark, folder, site, resources, options
    )
    return script, text, f"hpcdat report --benchmark {shlex.quote(str(folder / RESULT))}"
