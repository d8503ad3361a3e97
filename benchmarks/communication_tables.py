"""The tables that communication.py prints."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from communication_exchanges import label_of
from tabulate import tabulate

from hpcdat.emulation.cluster import bytes_per_second
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.performance.steadiness import AGREEMENT, half_width, is_steady

MIB = 2**20
SENT_BY = "sent by "
"""Begins the figures of bytes that one kind of card has sent."""


def title_of(file: BenchmarkFile) -> str:
    """The workers of a measurement, and what connects them."""
    settings = file.settings
    place = f"{settings['nodes']} x {settings['workers_per_node']} workers"
    rate = settings["rate"]
    links = f"{8e-9 * rate:g} Gbit/s" if isinstance(rate, float) else rate
    links = f", links of {links}" if links else ""
    return f"{place} over {settings['engine']} ({settings['transport']}), {settings['device']}{links}"


def swept_tables(file: BenchmarkFile) -> str:
    """A table for each operation, like those of nccl-tests: bandwidths in MB/s, times in microseconds."""
    operations = dict.fromkeys(row.parameters["operation"] for row in file.rows)
    tables = [
        _table([row for row in file.rows if row.parameters["operation"] == name]) for name in operations
    ]
    parts = [f"{name}\n{table}" for name, table in zip(operations, tables, strict=True)]
    settings = file.settings
    legend = (
        f"us: median of {settings['repetitions']} repetitions (warm-up runs in each round: "
        f"{settings['warm_up']}); point to point: half of there and back.\n"
        "CV: standard deviation over mean. +-: half of the median's 95 % confidence interval, from rounds; "
        f"~: another run may differ by more than {AGREEMENT:.0%}.\n"
        "algbw, busbw: MB/s, as in nccl-tests; effective: of the float32 numbers that are replaced. "
        "skew: between the arrivals of the first and the last worker.\n"
        "MB: 10^6 bytes that all workers send, predicted from the messages, and measured at the cards, with "
        "the barriers before and after each repetition."
    )
    return "\n\n".join([title_of(file), *parts, legend])


def _table(rows: Sequence[Row]) -> str:
    kinds = sorted({key for row in rows for key in row.figures if key.startswith(SENT_BY)})
    mixed = len({row.parameters["device"] for row in rows}) > 1
    header = ["bytes", "count", "type", "by"]
    header += ["us", "min", "p99", "CV %", "+- %"]
    header += ["us by events"] if any(row.figures["device_seconds"] is not None for row in rows) else []
    header += ["algbw", "busbw", "eff. busbw", "error", "#wrong"]
    header += ["skew us", "processor us", "MB sent, predicted"]
    header += [kind.removeprefix(SENT_BY) for kind in kinds] or ["at the cards"]
    lines = []
    for row in rows:
        size, figures, width = row.parameters["bytes"], row.figures, half_width(row)
        assert isinstance(size, int)
        label = label_of(row.parameters) + (f", {row.parameters['device']}" if mixed else "")
        line = [f"{size:,}", f"{size // 4:,}", row.parameters["type"], label]
        line += [_micro(row.median), _micro(min(row.seconds)), _micro(row.p99), _percent(row.variation)]
        line += [_percent(width) + ("" if is_steady(row) else " ~")]
        line += [_micro(figures["device_seconds"])] if "us by events" in header else []
        line += [_mega(figures[name]) for name in ("algbw", "busbw", "effective_busbw")]
        line += [_error(figures["error"]), f"{figures['wrong']:.0f}"]
        line += [_micro(figures["skew"]), _micro(figures["processor_seconds"])]
        line += [_mega(figures["predicted_sent"], "", ".3g")]
        line += [_mega(figures.get(kind), form=".3g") for kind in kinds] or ["not counted"]
        lines.append(line)
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def _micro(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e6 * seconds:,.1f}"


def _error(error: float | None) -> str:
    return "not finite" if error is None else f"{error:.2g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}"


def _mega(count: float | None, missing: str = "not counted", form: str = ",.1f") -> str:
    return missing if count is None else f"{count / 1e6:{form}}"


def gradient_table(file: BenchmarkFile) -> str:
    """A table like that of nccl-tests, bandwidths in MB/s; effective: of the float32 numbers it replaces."""
    lines, rate = [], file.settings["rate"]
    for row in [row for row in file.rows if row.parameters["operation"] != "overlap"]:
        figures, size, spent = row.figures, row.parameters["bytes"], row.median
        assert isinstance(size, int)
        processor = figures["processor_seconds"] or 0.0
        busiest = figures["sent_by_busiest_card"]
        wire = busiest / bytes_per_second(rate) if rate and busiest is not None else None
        codec, predicted, sent = (figures[key] for key in ("codec_seconds", "predicted_sent", "sent"))
        lines.append(
            [
                label_of(row.parameters),
                f"{size / MIB:.1f}",
                f"{1e3 * spent:.0f}",
                "" if codec is None else f"{1e3 * codec:.0f}",
                f"{1e3 * processor:.0f}",
                "" if wire is None else f"{1e3 * wire:.0f}",
                "" if wire is None else f"{1e3 * max(wire, processor):.0f}",
                *(_mega(figures[key], "") for key in ("algbw", "busbw", "effective_busbw")),
                _error(figures["error"]),
                f"{figures['wrong']:.0f}",
                "" if predicted is None else f"{predicted / MIB:.1f}",
                "not counted" if sent is None else f"{sent / MIB:.1f}",
            ]
        )
    header = ["protocol", "MiB", "ms", "codec ms", "processor ms", "wire ms", "own cores ms"]
    header += ["algbw", "busbw", "eff. busbw", "error", "#wrong", "MiB sent, predicted", "measured"]
    overlap = ", ".join(
        f"{row.parameters['part']} {1e3 * median(row.seconds):.0f} ms"
        for row in file.rows
        if row.parameters["operation"] == "overlap"
    )
    table = tabulate(lines, header, tablefmt="github", disable_numparse=True)
    return f"{title_of(file)}, {file.settings['count']:,} numbers\n{table}\noverlap: {overlap}\n"
