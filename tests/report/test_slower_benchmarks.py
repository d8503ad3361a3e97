"""The verdict of a nightly job: which rows of a benchmark have become slower."""

import pytest

from hpcdat.errors import InputError
from hpcdat.report.benchmarks.lines import match
from hpcdat.report.benchmarks.slower import Pair
from tests.conftest import run_here
from tests.report.benchmark_rows import file_of, row, sections_of


@pytest.mark.parametrize(
    ("before", "after", "slower"),
    [
        ((1.0, 1.0, 1.0), (1.11, 1.11, 1.11), True),
        ((1.0, 1.0, 1.0), (1.09, 1.09, 1.09), False),
        ((1.0, 1.0, 1.0), (1.0, 1.5, 1.5), False),  # one repetition was not disturbed
        ((1.0, 1.0, 1.0), (0.5, 0.5, 9.0), False),
        ((1.0, 2.0, 2.0), (1.2, 2.0, 2.0), False),  # the median is the same
        ((1.5, 1.5, 0.1), (1.8, 1.8), True),  # the third repetition of one file has no counterpart
        ((1.0, 2.0), (2.0, 2.5), True),
        ((0.0, 0.0), (0.0, 0.0), False),
    ],
)
def test_a_row_is_slower_if_median_and_minimum_are(before, after, slower):
    rows = {"a": row(*before), "b": row(*after)}
    (line,) = match({name: file_of(one) for name, one in rows.items()})
    assert Pair(line, "b", *rows.values()).is_slower(0.1) is slower


def test_slower_rows_are_listed_with_their_noise():
    files = {
        "a": file_of(row(*[1.0] * 20), row(*[1.0] * 20, by="MPI")),
        "b": file_of(row(*[1.2] * 19, 1.5), row(1.0, *[2.0] * 19, by="MPI")),
        "c": file_of(row(*[0.5] * 20)),
    }
    found, comparison = sections_of(files, 0.1)
    section = found["slower"]
    assert len(comparison.slower(0.1)) == 1 and section.title == "Slower by more than 10 %"
    name = "all-reduce, hpcdat, 32 bits, 1,024 bytes"
    assert section.rows == [[name, "b", "1000", "1200", "1.200", "1.200", "0.0 %", "5.5 %"]]
    assert section.notes[0] == "1 of 3 compared rows are slower than in a."
    noise = f"since only the median is above the limit: {name.replace('hpcdat', 'MPI')} of b."
    assert section.notes[2].endswith(noise)


def test_rows_that_are_not_steady_in_both_files_are_not_compared():
    steady, other = [1.0] * 6, [1.0, 2.0] * 10
    files = {
        "a": file_of(row(*steady), row(*steady, by="MPI"), row(*other, bits=8), row(*[1.0] * 5, bits=4)),
        "b": file_of(
            row(*steady), row(*[2.0] * 3, *[4.0] * 3, by="MPI"), row(*steady, bits=8), row(2.0, bits=4)
        ),
    }
    found, comparison = sections_of(files, 0.1)
    notes = found["slower"].notes
    assert not comparison.slower(0.1) and not found["slower"].rows
    assert notes[:2] == [
        "0 of 1 compared rows are slower than in a.",
        "Left out, since they are not steady in both files: 3.",
    ]
    names = [f"all-reduce, {kind}, 1,024 bytes of b" for kind in ("MPI, 32 bits", "hpcdat, 4 bits")]
    assert notes[3] == f"Above the limit, but left out: {'; '.join(names)}."
    comparison.check()
    _, nothing = sections_of(files | {"c": file_of(row(*other))}, 0.1)
    with pytest.raises(InputError, match="no row of c is steady both there and in the first file: nothing"):
        nothing.check()


@pytest.mark.parametrize(("others", "code"), [("A B", 0), ("A C", 1), ("C A", 0), ("A B C", 1)])
def test_a_nightly_job_fails_if_a_row_is_slower(files, others, code):
    paths = [files / f"{name}.json" for name in others.split()]
    done = run_here("report", "--benchmark", *paths, "--fail-if-slower", "10%")
    assert done.returncode == code, done.stderr
    assert f"{6 if code else 0} of {6 * (len(paths) - 1)} compared rows are slower than in" in done.stdout


RECORDED = {
    # Over Horovod a small message waits for one or two of its cycles, in these runs for many repetitions.
    "ring of 8-bit lanes": (
        (2.19, 2.19, 2.24, 2.26, 2.2, 2.3, 2.06, 2.23, 2.26, 2.35, 2.41, 2.17, 2.25, 2.19, 2.21, 2.22, 2.35),
        (4.39, 4.55, 4.57, 4.34, 4.41, 4.43, 4.41, 4.46, 4.4, 4.31, 4.37, 4.5, 4.35, 4.39, 4.33, 4.59, 4.47),
    ),
    "broadcast": (
        (2.15, 2.12, 2.12, 2.11, 2.32, 2.1, 2.13, 1.88, 1.13, 1.16, 1.1, 0.96, 1.15, 1.15, 0.95, 1.13, 1.13),
        (2.19, 2.13, 2.21, 2.46, 2.44, 2.41, 2.47, 2.15, 2.19, 2.15, 2.17, 2.15, 2.17, 2.14, 2.12, 2.1, 2.17),
    ),
}
"""Milliseconds of two runs on one quiet machine, two workers, repetitions that followed one another."""


@pytest.mark.parametrize(
    ("per_round", "code", "slower"),
    [(17, 0, "0 of 1"), (5, 0, "0 of 1"), (1, 1, "1 of 2")],
)
def test_two_runs_of_one_quiet_machine(tmp_path, per_round, code, slower):
    """As samples of their own, repetitions would call a row steady that another run does not agree with."""
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for run, path in enumerate(paths):
        rows = [
            row(*(1e-3 * each for each in runs[run]), protocol=name).model_copy(
                update={"per_round": per_round}
            )
            for name, runs in RECORDED.items()
        ]
        file_of(*rows, row(*[1.0] * 6)).write(path)
    done = run_here("report", "--benchmark", *paths, "--fail-if-slower", "10%")
    assert done.returncode == code, done.stderr
    assert f"{slower} compared rows are slower than in first.json" in done.stdout
    assert f"not steady in both files: {3 - int(slower.split()[-1])}." in done.stdout


def test_a_nightly_job_without_a_row_to_compare_fails_and_has_its_report(files):
    for name in ("D", "E"):
        file_of(row(1.0, 1.0, 1.0)).write(files / f"{name}.json")
    paths = [files / f"{name}.json" for name in "DE"]
    done = run_here("report", "--benchmark", *paths, "--fail-if-slower", "10%", "--out", files / "out")
    assert done.returncode == 2 and (files / "out" / "report.html").exists()
    assert done.stderr.count("\n") == 1 and "no row of E.json is steady both there and" in done.stderr
