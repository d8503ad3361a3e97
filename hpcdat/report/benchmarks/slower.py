"""Rows that have become slower: the verdict of a nightly job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcdat.errors import InputError
from hpcdat.performance.benchmark_file import Row
from hpcdat.report.benchmarks.files import Files
from hpcdat.report.benchmarks.lines import Line
from hpcdat.report.benchmarks.values import describe, milliseconds, percent
from hpcdat.report.pages import Section

RULE = (
    "A row is slower if both its median and its minimum are above those of the baseline by more than the "
    "limit. What else runs on the machines only adds time: it changes the median if it disturbs half of the "
    "repetitions, the minimum only if it disturbs all of them. Minima are those of the first repetitions, as "
    "many as both files have, since more repetitions have lower minima."
)
"""How rows are judged, for the notes below their table."""


@dataclass(frozen=True)
class Pair:
    """A row of the baseline and the same of another file.

    Attributes:
        line: what was measured.
        file: name of the other file.
        before, after: the rows.
    """

    line: Line
    file: str
    before: Row
    after: Row

    @property
    def medians(self) -> tuple[float, float]:
        """Seconds before and after."""
        return self.before.median, self.after.median

    @property
    def minima(self) -> tuple[float, float]:
        """Seconds of the fastest of as many repetitions before and after."""
        count = min(len(self.before.seconds), len(self.after.seconds))
        return min(self.before.seconds[:count]), min(self.after.seconds[:count])

    def median_is_slower(self, limit: float) -> bool:
        """Whether the median has grown by more than a share of it."""
        return _grown(*self.medians, limit)

    def is_slower(self, limit: float) -> bool:
        """Whether median and minimum have grown by more than a share of them."""
        return self.median_is_slower(limit) and _grown(*self.minima, limit)


def pairs(files: Files, lines: Sequence[Line]) -> list[Pair]:
    """Each row of the first file with the same row of each other file.

    Raises:
        InputError: there is no other file, or one that has no row in common with the first.
    """
    baseline, *others = files
    if not others:
        raise InputError("--fail-if-slower compares with the first of two or more files; only one is given")
    found = [
        Pair(line, name, line.rows[baseline], line.rows[name])
        for name in others
        for line in lines
        if {baseline, name} <= line.rows.keys()
    ]
    for name in others:
        if not any(pair.file == name for pair in found):
            raise InputError(f"{baseline} and {name} have no row with equal parameters: nothing is compared")
    return found


def slower_section(baseline: str, compared: Sequence[Pair], limit: float) -> Section:
    """The rows that are slower, and how far that can be noise.

    Args:
        baseline: name of the first file.
        compared: rows of the other files with the baseline's.
        limit: 0.1 for 10 %.
    """
    rows = [_cells(pair) for pair in compared if pair.is_slower(limit)]
    noisy = [
        f"{describe(pair.line.parameters)} of {pair.file}"
        for pair in compared
        if pair.median_is_slower(limit) and not pair.is_slower(limit)
    ]
    notes = [f"{len(rows)} of {len(compared)} compared rows are slower than in {baseline}.", RULE]
    if noisy:
        notes.append(f"Counted as noise, since only the median is above the limit: {'; '.join(noisy)}.")
    header = ["row", "file", "before (ms)", "after (ms)", "ratio of medians", "of minima"]
    header += ["variation before", "after"]
    return Section("slower", f"Slower by more than {100 * limit:g} %", header, rows, 2, "", notes)


def _cells(pair: Pair) -> list[str]:
    before, after = pair.medians
    return [
        describe(pair.line.parameters),
        pair.file,
        milliseconds(before),
        milliseconds(after),
        _ratio(before, after),
        _ratio(*pair.minima),
        percent(pair.before.variation),
        percent(pair.after.variation),
    ]


def _grown(before: float, after: float, limit: float) -> bool:
    return after > (1 + limit) * before


def _ratio(before: float, after: float) -> str:
    return f"{after / before:.3f}" if before else "infinite"
