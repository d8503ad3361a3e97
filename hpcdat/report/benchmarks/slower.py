"""Rows that have become slower: the verdict of a nightly job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcdat.errors import InputError
from hpcdat.performance.benchmark_file import Row
from hpcdat.performance.steadiness import AGREEMENT, CONFIDENCE, FEWEST, is_steady
from hpcdat.report.benchmarks.files import Files
from hpcdat.report.benchmarks.lines import Line
from hpcdat.report.benchmarks.values import describe, milliseconds, percent
from hpcdat.report.section import Section

RULE = (
    "Compared are the rows that are steady in both files: by a confidence interval of the median "
    f"({CONFIDENCE:.0%}), another run should agree within the limit, {AGREEMENT:.0%} at most. A row is "
    "slower if both its median and its minimum are above those of the baseline by more than the limit. What "
    "else runs on the machines only adds time: it changes the median if it disturbs half of the repetitions, "
    "the minimum only if it disturbs all of them. Minima are those of the first repetitions, as many as both "
    "files have: more repetitions have lower minima."
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

    def is_steady(self, within: float) -> bool:
        """Whether another run of either should agree with it within a share of it."""
        return bool(is_steady(self.before, within) and is_steady(self.after, within))

    def median_is_slower(self, limit: float) -> bool:
        """Whether the median has grown by more than a share of it."""
        return _grown(*self.medians, limit)

    def is_slower(self, limit: float) -> bool:
        """Whether median and minimum have grown by more than a share of them."""
        return self.median_is_slower(limit) and _grown(*self.minima, limit)


@dataclass(frozen=True)
class Comparison:
    """Rows of the baseline beside those of other files.

    Attributes:
        compared: those that are steady in both files.
        left_out: the others, which differ between runs or have too few repetitions to tell.
    """

    compared: Sequence[Pair]
    left_out: Sequence[Pair]

    def slower(self, limit: float) -> list[Pair]:
        """The compared rows that are slower by more than a share of the baseline's time."""
        return [pair for pair in self.compared if pair.is_slower(limit)]

    def check(self) -> None:
        """Check that rows of every file could be compared.

        Raises:
            InputError: no row of a file is steady in both it and the baseline.
        """
        judged = {pair.file for pair in self.compared}
        for name in dict.fromkeys(pair.file for pair in self.left_out):
            if name not in judged:
                raise InputError(
                    f"no row of {name} is steady both there and in the first file: nothing is compared; "
                    f"measure on machines that do nothing else, with {FEWEST} repetitions or more"
                )


def compare(files: Files, lines: Sequence[Line], limit: float) -> Comparison:
    """Each row of the first file with the same row of each other file.

    Args:
        files: the baseline first.
        lines: of their rows.
        limit: share of a time by which a row may be slower.

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
    within = min(limit, AGREEMENT)
    steady = [pair for pair in found if pair.is_steady(within)]
    return Comparison(steady, [pair for pair in found if not pair.is_steady(within)])


def slower_section(baseline: str, comparison: Comparison, limit: float) -> Section:
    """The rows that are slower, and how far that can be noise.

    Args:
        baseline: name of the first file.
        comparison: rows of the other files with the baseline's.
        limit: 0.1 for 10 %.
    """
    compared, left_out = comparison.compared, comparison.left_out
    rows = [_cells(pair) for pair in comparison.slower(limit)]
    noisy = [pair for pair in compared if pair.median_is_slower(limit) and not pair.is_slower(limit)]
    notes = [f"{len(rows)} of {len(compared)} compared rows are slower than in {baseline}."]
    if left_out:
        notes.append(f"Left out, since they are not steady in both files: {len(left_out)}.")
    notes.append(RULE)
    if noisy:
        notes.append(f"Counted as noise, since only the median is above the limit: {_names(noisy)}.")
    if suspects := [pair for pair in left_out if pair.is_slower(limit)]:
        notes.append(f"Above the limit, but left out: {_names(suspects)}.")
    header = ["row", "file", "before (ms)", "after (ms)", "ratio of medians", "of minima"]
    header += ["variation before", "after"]
    return Section("slower", f"Slower by more than {100 * limit:g} %", header, rows, 2, "", notes)


def _names(chosen: Sequence[Pair]) -> str:
    return "; ".join(f"{describe(pair.line.parameters)} of {pair.file}" for pair in chosen)


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
