"""The ratios of communication.py, and one file of what several engines and rates gave."""

from __future__ import annotations

from collections.abc import Sequence

from communication_exchanges import label_of

from hpcdat.emulation.cluster import bytes_per_second
from hpcdat.performance.benchmark_file import BenchmarkFile

RINGS = ("float32, ring", "float32, sharded server")
QUANTISED = {
    "int8_one_sided_over_fp32": "int8 one-sided, ring of 8-bit lanes",
    "int8_two_sided_over_fp32": "int8 two-sided, sharded server",
    "int4_two_sided_over_fp32": "int4 two-sided, sharded server",
}
"""Ratios and the exchanges that they are of."""
TORCH = "float32, torch.distributed"


def medians_of(file: BenchmarkFile) -> dict[str, float]:
    """Seconds of every exchange and all-reduce, by its label."""
    return {label_of(row.parameters): row.median for row in file.rows if "part" not in row.parameters}


def float32_of(medians: dict[str, float]) -> float:
    """Seconds of our float32."""
    return min(medians[name] for name in RINGS)


def ratios_of(file: BenchmarkFile) -> dict[str, float]:
    """The ratios of one rate and engine."""
    medians, settings = medians_of(file), file.settings
    ours, size, rate = float32_of(medians), settings["workers"], settings["rate"]
    found = {ratio: medians[name] / ours for ratio, name in QUANTISED.items()}
    overlap = {str(row.parameters["part"]): row.median for row in file.rows if "part" in row.parameters}
    found["overlap_over_max"] = overlap["step"] / max(overlap["computation"], overlap["communication"])
    if rate:
        limit = 2 * (size - 1) / size * 4 * settings["count"] / bytes_per_second(rate)
        found["fp32_of_limit"] = limit / ours
        if TORCH in medians:
            found["torch_distributed_of_limit"] = limit / medians[TORCH]
    off = []
    for row in file.rows:
        sent, predicted = row.figures.get("sent"), row.figures.get("predicted_sent")
        off += [sent / predicted] if sent and predicted else []
    if off:
        found["bytes_measured_over_predicted"] = max(off, key=lambda ratio: abs(ratio - 1))
    return found


def best_of(files: Sequence[BenchmarkFile]) -> dict[str, float]:
    """Ratios of the engine where each quantised exchange is faster, for measurements at one rate."""
    medians = [medians_of(file) for file in files]
    best = {name: min(medians, key=lambda found: found[label]) for name, label in QUANTISED.items()}
    return {name: found[QUANTISED[name]] / float32_of(found) for name, found in best.items()}


def ratios_of_all(files: Sequence[Sequence[BenchmarkFile]]) -> dict[str, float]:
    """The ratios of all measurements, with suffixes; by rate, then by engine."""
    found: dict[str, float] = {}
    for number, of_rate in enumerate(files):
        suffix = f"_{of_rate[0].settings['rate']}" if number else ""
        for second, file in enumerate(of_rate):
            engine = f"_{file.settings['engine']}" if second else ""
            found |= {name + suffix + engine: ratio for name, ratio in ratios_of(file).items()}
        if len(of_rate) > 1:
            found |= {f"{name}{suffix}_best": ratio for name, ratio in best_of(of_rate).items()}
    return found


def merge(files: Sequence[BenchmarkFile], ratios: dict[str, float]) -> BenchmarkFile:
    """One file of several measurements.

    Engines and rates that differ become parameters of the rows; settings have all engines and transports, and
    no rate if there are several.
    """
    first = files[0]
    values = {key: list(dict.fromkeys(file.settings[key] for file in files)) for key in first.settings}
    chosen = [key for key in ("engine", "rate") if len(values[key]) > 1]
    settings = {
        key: found[0] if len(found) == 1 else None if key == "rate" else " / ".join(map(str, found))
        for key, found in values.items()
    }
    rows, notes = [], []
    for file in files:
        more = {key: file.settings[key] for key in chosen}
        rows += [row.model_copy(update={"parameters": row.parameters | more}) for row in file.rows]
        prefix = "".join(f"{value}: " for value in more.values())
        notes += [prefix + note for note in file.notes]
    return first.model_copy(update={"settings": settings, "rows": rows, "ratios": ratios, "notes": notes})
