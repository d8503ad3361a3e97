"""The curves of a run: from lines of its metrics to names, with units, that all trackers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcdat.storage.run_folder import Result
from hpcdat.tracking.tracker import Point

PERCENT = 100.0
WATT_HOURS = 1 / 3600
PETA = 1e-15

CURVES: dict[str, dict[str, tuple[str, float]]] = {
    "epoch": {
        "cost": ("train/cost", 1),
        "lr": ("train/learning_rate", 1),
        "training_accuracy": ("train/accuracy_percent", PERCENT),
        "images": ("train/images", 1),
        "skipped_images": ("train/skipped_images", 1),
        "skipped_steps": ("train/skipped_steps", 1),
        "flops": ("train/PFLOP", PETA),
        "total_seconds": ("time/epoch_seconds", 1),
        "communication_seconds": ("time/communication_seconds", 1),
        "waited_seconds": ("time/waiting_for_workers_seconds", 1),
        "data_seconds": ("time/waiting_for_images_seconds", 1),
        "data_share": ("time/waiting_for_images_percent", PERCENT),
        "images_per_second": ("time/images_per_second", 1),
        "megabytes": ("exchange/MiB_per_step", 1),
        "gpu_memory_gib": ("gpu/memory_GiB", 1),
        "gpu_utilisation": ("gpu/utilisation_percent", PERCENT),
        "gpu_watts": ("gpu/power_W", 1),
        "gpu_joules": ("energy/gpus_Wh", WATT_HOURS),
        "package_joules": ("energy/processors_Wh", WATT_HOURS),
        "dram_joules": ("energy/memory_Wh", WATT_HOURS),
    },
    "evaluation": {"ta": ("test/TA_percent", PERCENT), "ra": ("test/RA_percent", PERCENT)},
    "held-out evaluation": {
        "ta": ("validation/TA_percent", PERCENT),
        "ra": ("validation/RA_percent", PERCENT),
    },
    "averaged-evaluation": {
        "ta": ("test/averaged_TA_percent", PERCENT),
        "ra": ("test/averaged_RA_percent", PERCENT),
    },
    "overfitting": {"ra": ("guard/RA_percent", PERCENT)},
}
"""Name and factor of the curve of each value in a line of the metrics, by the line's event."""


def point_of(line: Mapping[str, Any]) -> Point | None:
    """The point of a line of the metrics; None if it has none."""
    event = "held-out evaluation" if line.get("held_out") else line["event"]
    values = {
        name: factor * line[key]
        for key, (name, factor) in CURVES.get(event, {}).items()
        if line.get(key) is not None
    }
    return Point(line["epoch"], values) if values else None


def results_of(result: Result) -> dict[str, float]:
    """The result of a run as a tracker shows it; without what was not measured."""
    # Only the standard version is called AA.
    attacked = "AA" if result.aa_version is None else "AutoAttack_of_few_classes"
    results = {
        "final/TA_percent": PERCENT * result.ta,
        "final/RA_percent": PERCENT * result.ra,
        f"final/{attacked}_percent": None if result.aa is None else PERCENT * result.aa,
        "final/fast_bound_percent": None if result.fast_bound is None else PERCENT * result.fast_bound,
        "final/epoch_seconds": result.total,
        "final/communication_seconds": result.communication,
        "final/images_per_second": result.images_per_second,
        "final/gpus_Wh": result.gpu_wh,
        "final/processors_Wh": result.package_wh,
        "final/memory_Wh": result.dram_wh,
        "final/PFLOP": None if result.flops is None else PETA * result.flops,
    }
    return {name: value for name, value in results.items() if value is not None}
