"""Batch scripts of benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcdat.errors import InputError, shorten
from hpcdat.slurm.script import Resources, log_in, render
from hpcdat.slurm.site import Site
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder

BENCHMARKS = ("attack_step", "autoattack", "communication", "epoch", "smoothing", "start")
"""Scripts in ``benchmarks/`` that measure with the workers that a launcher has started."""
BETWEEN_WORKERS = ("communication", "epoch")
"""Those that need two workers or more; alone they would create emulated nodes."""
TIME = "1:00:00"
"""Time limit of a benchmark, if none is given and the profile has no shorter one."""
RESULT = "result.json"
"""Name of the file with the result, in the folder of a benchmark."""


def find_benchmark(name: str) -> Path:
    """The script of a benchmark, in the checkout that this package is imported from.

    Raises:
        InputError: there is no such benchmark, or the package is not imported from a checkout.
    """
    if name not in BENCHMARKS:
        raise InputError(f"--benchmark {shorten(name)}: expected one of {', '.join(BENCHMARKS)}")
    script = Path(__file__).resolve().parents[2] / "benchmarks" / f"{name}.py"
    if not script.is_file():
        raise InputError(
            f"--benchmark {name}: {script} does not exist; benchmarks are in hpcdat's repository and not in "
            "its wheel: run `make setup` in a clone, and submit with the clone's .venv/bin/hpcdat"
        )
    return script


def render_benchmark(
    benchmark: Path, folder: Path, site: Site, resources: Resources, options: Sequence[str]
) -> tuple[Path, str]:
    """Render the batch script of a benchmark, without writing it.

    Args:
        benchmark: its script in Python, which every node must be able to read.
        folder: for the result and, in ``slurm/``, the batch script and the log.
        site: the cluster's profile.
        resources: what to request from Slurm.
        options: of the benchmark.

    Returns:
        The path at which :func:`write_benchmark` writes the batch script, and its text.

    Raises:
        InputError: there are too few workers, the folder has a result, or an option is for
            :func:`render_benchmark` to set.
    """
    if benchmark.stem in BETWEEN_WORKERS and resources.nodes * resources.workers_per_node < 2:
        raise InputError(
            f"--benchmark {benchmark.stem}: {benchmark.stem} measures between workers and needs two or more: "
            "set --nodes, --gpus-per-node or --workers-per-node"
        )
    folder = folder.resolve()
    if (folder / RESULT).exists():
        raise InputError(f"{folder} has a result of an earlier benchmark; choose another folder with --out")
    for option in options:
        if option.partition("=")[0] == "--json":
            raise InputError(f"--json: not allowed here; the result is written to {folder / RESULT}")
    logs = RunFolder(folder).slurm_folder
    text = render(
        "benchmark.sh.j2",
        site,
        resources,
        title=f"benchmark {benchmark.stem}",
        name=benchmark.stem,
        log=log_in(logs, "%j.log"),
        # After the loss of a node it would measure other nodes.
        directives={"no-requeue": None},
        script=benchmark,
        options=[*options, "--json", str(folder / RESULT)],
    )
    return logs / "benchmark.sh", text


def write_benchmark(
    benchmark: Path, folder: Path, site: Site, resources: Resources, options: Sequence[str]
) -> tuple[Path, str]:
    """Write the batch script of a benchmark to its folder.

    Args:
        benchmark, folder, site, resources, options: as for :func:`render_benchmark`.

    Returns:
        The path of the batch script, and its text.

    Raises:
        InputError: as :func:`render_benchmark`, or the folder cannot be written.
    """
    script, text = render_benchmark(benchmark, folder, site, resources, options)
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        write_text(script, text)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    return script, text
