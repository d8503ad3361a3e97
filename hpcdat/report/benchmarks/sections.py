"""The tables of a report on benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.report.benchmarks.files import Files, differing, machines
from hpcdat.report.benchmarks.fit import SIZES, fit, limit
from hpcdat.report.benchmarks.lines import Line, Series, match, series_of, varying
from hpcdat.report.benchmarks.slower import Comparison, compare, slower_section
from hpcdat.report.benchmarks.table_4 import table_4_section
from hpcdat.report.benchmarks.values import (
    NOT_MEASURED,
    describe,
    figure,
    milliseconds,
    parameter,
    percent,
)
from hpcdat.report.section import Section

CAPTION = "Median time against size (markers), and the fitted latency and bandwidth (lines)."
"""What the plot of times shows."""
MISSING = "-"
"""Cell of a file that has no such row."""


def benchmark_sections(
    files: Files, slower_by: float | None, plot: Callable[[Files, Sequence[Series]], str] | None
) -> tuple[list[Section], Comparison | None]:
    """The sections of a report.

    Args:
        files: by name; the first one is the baseline.
        slower_by: largest share by which a row may be slower than the baseline's; None: not judged.
        plot: draws time against size; None for a report without plots.

    Returns:
        The sections, and what rows are judged by; None if they are not.

    Raises:
        InputError: a file has two rows with equal parameters or a wrong rate, or rows are to be judged
            and there is nothing to compare them with.
    """
    lines = match(files)
    series = [one for one in series_of(lines) if any(len(points) > 1 for points in one.points.values())]
    comparison = None if slower_by is None else compare(files, lines, slower_by)
    sections = [_files_section(files), _times_section(files, lines)]
    if series:
        sections.append(_fits_section(files, series, plot(files, series) if plot else ""))
    if table := table_4_section(files, series_of(lines)):
        sections.append(table)
    if any(file.ratios for file in files.values()):
        sections.append(_ratios_section(files))
    if comparison is None or slower_by is None:
        return sections, None
    sections.append(slower_section(next(iter(files)), comparison, slower_by))
    return sections, comparison


def _files_section(files: Files) -> Section:
    """Which systems, dates and versions are compared, and in what else they differ."""
    facts = {name: machines(file) for name, file in files.items()}
    header = ["file", *next(iter(facts.values()))]
    rows = [[name, *values.values()] for name, values in facts.items()]
    notes = [f"Differs: {text}." for text in differing(files)]
    notes += [f"{name}: {note}" for name, file in files.items() for note in file.notes]
    benchmark = next(iter(files.values())).benchmark
    return Section("files", f"Benchmark {benchmark}: files", header, rows, len(header), "", notes)


def _times_section(files: Files, lines: Sequence[Line]) -> Section:
    """The rows of one file with all their figures, or the medians of several files beside each other."""
    shown = varying(lines) or list(lines[0].parameters)
    if len(files) == 1:
        header, cells, notes = _one_file(*next(iter(files.items())), lines)
    else:
        header, cells, notes = _several_files(files, lines)
    rows = [
        [*(parameter(line.parameters.get(name)) for name in shown), *own]
        for line, own in zip(lines, cells, strict=True)
    ]
    same = describe({name: value for name, value in lines[0].parameters.items() if name not in shown})
    counts = sorted({len(row.seconds) for line in lines for row in line.rows.values()})
    notes = [
        *([f"All rows: {same}."] if same else []),
        f"Times are of the slowest worker, medians of {'/'.join(map(str, counts))} repetitions.",
        *notes,
        *_wrong(lines),
    ]
    header = [*(name.replace("_", "-") for name in shown), *header]
    return Section("times", "Times", header, rows, len(shown), "", notes)


def _wrong(lines: Sequence[Line]) -> list[str]:
    """The rows whose results were wrong, as a note."""
    rows = [
        f"{describe(line.parameters)} of {name} ({count:,.0f})"
        for line in lines
        for name, row in line.rows.items()
        if (count := row.figures.get("wrong"))
    ]
    return [f"WRONG RESULTS, with the number of wrong values: {'; '.join(rows)}."] if rows else []


def _one_file(
    name: str, file: BenchmarkFile, lines: Sequence[Line]
) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, cells of each line, and notes."""
    rows = [line.rows[name] for line in lines]
    limits = [limit(row, file) for row in rows]
    figures = {key: figure(key) for key in dict.fromkeys(key for row in rows for key in row.figures)}
    header = ["median (ms)", "p99 (ms)", "variation"]
    header += [*(each.header for each in figures.values()), *(["of the card"] if any(limits) else [])]
    notes = [
        "p99: 99 % of the repetitions took no longer. Variation: standard deviation over mean. MB/s: 10^6 "
        "bytes per second; MiB: 2^20 bytes."
    ]
    if any(limits):
        notes.append("Of the card: busbw over the rate of a node's card.")
    cells = []
    for row, least in zip(rows, limits, strict=True):
        cell = [milliseconds(row.median), milliseconds(row.p99), percent(row.variation)]
        cell += [each.text(row.figures[key]) if key in row.figures else "" for key, each in figures.items()]
        share = [f"{100 * least / row.median:.1f} %" if least else ""]
        cells.append([*cell, *(share if any(limits) else [])])
    return header, cells, notes


def _several_files(files: Files, lines: Sequence[Line]) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, cells of each line, and notes."""
    baseline, *others = files
    header = [f"{baseline} (ms)"]
    for name in others:
        header += [f"{name} (ms)", f"{name} / {baseline}"]
    cells = []
    for line in lines:
        before = line.rows.get(baseline)
        cell = [milliseconds(before.median) if before else MISSING]
        for name in others:
            after = line.rows.get(name)
            cell.append(milliseconds(after.median) if after else MISSING)
            cell.append(f"{after.median / before.median:.3f}" if after and before and before.median else "")
        cells.append(cell)
    notes = []
    for name in files:
        missing = [line for line in lines if name not in line.rows]
        if missing:
            notes.append(f"{len(missing)} of {len(lines)} rows are not in {name} ({MISSING}).")
    return header, cells, notes


def _fits_section(files: Files, series: Sequence[Series], plot: str) -> Section:
    """Fitted latency and bandwidth of each series, and what a card allows."""
    shown = varying([Line(one.parameters, {}) for one in series]) or list(series[0].parameters)
    rows = []
    for one in series:
        for name, points in one.points.items():
            cells = [*(parameter(one.parameters.get(key)) for key in shown), name]
            rows.append([*cells, *_fitted(points, files[name])])
    header = [*(name.replace("_", "-") for name in shown), "file", "latency (ms)", "bandwidth (MB/s)"]
    header += ["limit of the card (MB/s)", "deviation", "sizes"]
    notes = [
        "Medians are fitted by latency + bytes / bandwidth, by least squares of the relative differences. "
        "Deviation: the largest of these differences; where it is large, such a line does not describe the "
        f"times. Too few: a fit needs {SIZES} sizes. Not seen: times do not grow with the size.",
        "Bandwidth: bytes of the float32 buffer or message, 10^6 per second, however few are sent for it. "
        "Limit of the card: the bandwidth at which the largest size would take the whole rate of a node's "
        "card; empty without a rate or a second node.",
    ]
    return Section("fits", "Latency and bandwidth", header, rows, len(shown) + 1, plot, notes, CAPTION)


def _fitted(points: Mapping[int, Row], file: BenchmarkFile) -> list[str]:
    """The cells of a fit."""
    largest = max(points)
    least = limit(points[largest], file)
    bound, line = f"{1e-6 * largest / least:.4g}" if least else "", fit(points)
    if line is None:
        return ["too few", "too few", bound, "", str(len(points))]
    bandwidth = f"{1e-6 * line.bandwidth:.4g}" if line.bandwidth else "not seen"
    return [milliseconds(line.latency), bandwidth, bound, percent(line.deviation), str(len(points))]


def _ratios_section(files: Files) -> Section:
    """The ratios of each file."""
    names = dict.fromkeys(name for file in files.values() for name in file.ratios)
    rows = []
    for name in names:
        cells = []
        for file in files.values():
            unknown = NOT_MEASURED if name in file.ratios else MISSING
            ratio = file.ratios.get(name)
            cells.append(unknown if ratio is None else f"{ratio:.4g}")
        rows.append([name, *cells])
    benchmark = next(iter(files.values())).benchmark
    notes = [f"What they are ratios of: `python benchmarks/{benchmark}.py --help`."]
    return Section("ratios", "Ratios", ["ratio", *files], rows, 1, "", notes)
