"""Benchmark files: reading several of them, and what they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcdat.emulation.cluster import bytes_per_second
from hpcdat.errors import InputError, first_few, shorten
from hpcdat.performance.benchmark_file import BenchmarkFile
from hpcdat.report.runs import short_names
from hpcdat.slurm.benchmark import RESULT
from hpcdat.storage.run_folder import RunFolder

Files = Mapping[str, BenchmarkFile]
"""Files by the names that tables give them; the first one is the one that others are compared with."""

NOT_STATED = "not stated"


def read_benchmarks(paths: Sequence[Path]) -> dict[str, BenchmarkFile]:
    """Read files of one benchmark.

    Args:
        paths: files, or folders of ``hpcdat submit --benchmark``; one or more.

    Returns:
        The files by name, in the given order: their paths without the common prefix.

    Raises:
        InputError: one cannot be read, is not a benchmark file, has no rows or a wrong rate, or is of another
            benchmark.
    """
    # A path given twice is one file.
    places = list(dict.fromkeys(path.parent if path.name == RESULT else path for path in paths))
    names = short_names(places)
    read = {names[place]: _read(place, names[place]) for place in places}
    (first, baseline), *others = read.items()
    for name, file in others:
        if file.benchmark != baseline.benchmark:
            raise InputError(
                f"{first} is of the benchmark {shorten(baseline.benchmark)}, {name} of "
                f"{shorten(file.benchmark)}: give files of one benchmark"
            )
    return read


def machines(file: BenchmarkFile) -> dict[str, str]:
    """What a file was measured on and with, by the headings of the table of files."""
    environment, settings = file.environment, file.settings
    packages = environment.get("packages") or {}
    commit = str(environment.get("git_commit") or "")
    version = str(packages.get("hpcdat", NOT_STATED))
    workers, rate = environment.get("workers") or [], card_rate(settings.get("rate"))
    nodes, per_node = settings.get("nodes", environment.get("nodes")), settings.get("workers_per_node")
    return {
        "date": file.date,
        "hosts": _distinct(workers, "host"),
        "devices": _distinct(workers, "device"),
        "p x q": f"{nodes} x {per_node}" if nodes and per_node else NOT_STATED,
        "engine": _text(settings.get("engine", environment.get("engine"))),
        "transport": _text(settings.get("transport", environment.get("transport"))),
        "card": f"{8e-9 * rate:.3g} Gbit/s" if rate else NOT_STATED,
        "hpcdat": f"{version} ({commit[:9]}{'-dirty' * commit.endswith('-dirty')})" if commit else version,
        "torch": str(packages.get("torch", NOT_STATED)),
    }


def differing(files: Files) -> list[str]:
    """Environment and settings in which files differ, as ``engine: horovod / torch``, in the files' order."""
    facts = [_facts(file) for file in files.values()]
    keys = dict.fromkeys(key for each in facts for key in each)
    texts = {key: [each.get(key, NOT_STATED) for each in facts] for key in keys}
    return [f"{key}: {' / '.join(values)}" for key, values in texts.items() if len(set(values)) > 1]


def card_rate(rate: object) -> float | None:
    """Bytes per second of a network card, from the ``rate`` of settings or of a row; None for none.

    Raises:
        InputError: it is not a rate.
    """
    if isinstance(rate, str):
        return bytes_per_second(rate)
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
        raise InputError(f"{shorten(repr(rate))}: expected bytes per second, or a value like 1gbit")
    return float(rate)


def _read(place: Path, name: str) -> BenchmarkFile:
    """Read a file, or that of a folder, and check its rows and rates."""
    if place.is_dir() and not (place / RESULT).is_file():
        logs = RunFolder(place).slurm_folder
        why = f": its benchmark has not ended, or failed; see the log in {logs}" if logs.is_dir() else ""
        raise InputError(f"{place} has no {RESULT}{why}")
    file = BenchmarkFile.read(place / RESULT if place.is_dir() else place)
    if not file.rows:
        raise InputError(f"{name} has no rows: nothing was measured")
    try:
        for rate in (file.settings.get("rate"), *(row.parameters.get("rate") for row in file.rows)):
            card_rate(rate)
    except InputError as error:
        raise InputError(f"{name}: rate of the cards: {error}") from None
    return file


def _facts(file: BenchmarkFile) -> dict[str, str]:
    """Environment and settings as text; settings replace what the environment has under the same name."""
    environment = {key: value for key, value in file.environment.items() if key not in ("command", "workers")}
    workers = file.environment.get("workers") or []
    of_workers = {f"{key}s": _distinct(workers, key) for key in ("host", "device")}
    of_workers |= {f"{key} per worker": _distinct(workers, key) for key in ("threads", "cpus")}
    return _flat(environment) | of_workers | _flat(file.settings)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def _distinct(workers: Sequence[Mapping[str, Any]], key: str) -> str:
    """The values that workers have, each once."""
    values = list(dict.fromkeys(str(worker[key]) for worker in workers if key in worker))
    return first_few(values, 2) or NOT_STATED


def _text(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
