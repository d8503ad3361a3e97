"""Parameters and figures of benchmarks as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpcdat.performance.benchmark_file import Value

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Figure:
    """How a table shows a figure.

    Attributes:
        header: heading of its column, with the unit.
        scale: factor from the file's unit to the column's.
        format: as for :func:`format`.
    """

    header: str
    scale: float = 1.0
    format: str = ".4g"

    def text(self, value: float | None) -> str:
        """The text of a cell."""
        return NOT_MEASURED if value is None else format(self.scale * value, self.format)


FIGURES = {
    "algbw": Figure("algbw (MB/s)", 1e-6),
    "busbw": Figure("busbw (MB/s)", 1e-6),
    "effective_busbw": Figure("effective busbw (MB/s)", 1e-6),
    "error": Figure("error", format=".2g"),
    "wrong": Figure("wrong", format=",.0f"),
    "skew": Figure("skew (ms)", 1e3),
    "processor_seconds": Figure("processor (ms)", 1e3),
    "codec_seconds": Figure("codec (ms)", 1e3),
    "device_seconds": Figure("by CUDA's events (ms)", 1e3),
    "sent": Figure("sent (MiB)", 2**-20),
    "predicted_sent": Figure("predicted (MiB)", 2**-20),
    "sent_by_busiest_card": Figure("busiest card (MiB)", 2**-20),
    "images_per_second": Figure("images/s"),
    "flops": Figure("GFLOP", 1e-9),
    "share_of_peak": Figure("of the peak (%)", 100.0, ".1f"),
    "memory_bytes": Figure("memory (MiB)", 2**-20),
}
"""Figures whose units are known, by their names in the file."""


def figure(name: str) -> Figure:
    """How a table shows a figure; one that is not known as it is in the file."""
    if name.startswith("sent by "):
        return Figure(f"{name} (MiB)", 2**-20)
    return FIGURES.get(name, Figure(name))


def parameter(value: Value) -> str:
    """A parameter in its own column."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def describe(parameters: Mapping[str, Value]) -> str:
    """Parameters in a sentence or a legend: ``exchange, hpcdat, ring, 8 bits, two-sided``."""
    words = []
    for name, value in parameters.items():
        if value is None or value is False:
            continue
        if value is True:
            words.append(name.replace("_", "-"))
        elif isinstance(value, str):
            words.append(value)
        else:
            words.append(f"{value:,} {name.replace('_', ' ')}")
    return ", ".join(words)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, with four digits."""
    return f"{1e3 * seconds:.4g}"


def percent(share: float | None) -> str:
    """A share as a percentage; of one repetition there is no variation."""
    return "one repetition" if share is None else f"{100 * share:.1f} %"
