"""Rows of several benchmark files, matched by what they measure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcdat.errors import InputError
from hpcdat.performance.benchmark_file import Row, Value
from hpcdat.report.benchmarks.files import Files
from hpcdat.report.benchmarks.values import describe

SIZE = "bytes"
"""The parameter of a row that says how much is communicated."""


@dataclass(frozen=True)
class Line:
    """What rows with equal parameters have measured.

    Attributes:
        parameters: what was measured.
        rows: by the names of the files that have it.
    """

    parameters: Mapping[str, Value]
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class Series:
    """What is measured over sizes.

    Attributes:
        parameters: what was measured, without the size.
        points: by the names of the files, rows by size in bytes, in increasing order.
    """

    parameters: Mapping[str, Value]
    points: Mapping[str, Mapping[int, Row]]


def match(files: Files) -> list[Line]:
    """Rows with equal parameters; those that differ only in size together, by size, otherwise as they come.

    Raises:
        InputError: a file has two rows with equal parameters.
    """
    lines: dict[str, tuple[Mapping[str, Value], dict[str, Row]]] = {}
    for name, file in files.items():
        for row in file.rows:
            _, rows = lines.setdefault(_key(row.parameters), (row.parameters, {}))
            if name in rows:
                raise InputError(f"{name} has two rows with equal parameters: {describe(row.parameters)}")
            rows[name] = row
    matched = [Line(parameters, rows) for parameters, rows in lines.values()]
    first: dict[str, int] = {}
    for line in matched:
        first.setdefault(_key(_without_size(line.parameters)), len(first))
    return sorted(matched, key=lambda line: (first[_key(_without_size(line.parameters))], _size(line)))


def varying(lines: Sequence[Line]) -> list[str]:
    """Parameters in which lines differ, in their order."""
    names = list(dict.fromkeys(name for line in lines for name in line.parameters))
    return [name for name in names if len({json.dumps(line.parameters.get(name)) for line in lines}) > 1]


def series_of(lines: Sequence[Line]) -> list[Series]:
    """Lines of :func:`match` that have a size, together with those that differ from them in nothing else."""
    series: dict[str, tuple[Mapping[str, Value], dict[str, dict[int, Row]]]] = {}
    for line in lines:
        if _size(line) < 0:
            continue
        others = _without_size(line.parameters)
        _, points = series.setdefault(_key(others), (others, {}))
        for name, row in line.rows.items():
            points.setdefault(name, {})[_size(line)] = row
    return [Series(parameters, points) for parameters, points in series.values()]


def _without_size(parameters: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in parameters.items() if name != SIZE}


def _size(line: Line) -> int:
    """In bytes; -1 if it has none."""
    size = line.parameters.get(SIZE)
    return size if isinstance(size, int) and not isinstance(size, bool) else -1


def _key(parameters: Mapping[str, Value]) -> str:
    return json.dumps(dict(parameters), sort_keys=True)
