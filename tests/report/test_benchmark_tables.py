"""Benchmarks beside each other: rows, fits, C beside the paper's, and the verdict of a nightly job."""

import csv
import io
import shutil

import pytest
import torch
import torchvision

from hpcdat.errors import InputError
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.report.benchmarks.files import card_rate, differing, machines, read_benchmarks
from hpcdat.report.benchmarks.fit import fit, limit
from hpcdat.report.benchmarks.lines import match, series_of
from hpcdat.report.benchmarks.plot import plot_times
from hpcdat.report.benchmarks.sections import benchmark_sections
from hpcdat.report.benchmarks.slower import Pair
from hpcdat.report.benchmarks.table_4 import BATCH, GRADIENT, IMAGES, ITERATIONS, table_4_section
from hpcdat.report.papers.dat import WORK
from tests.conftest import run_here

ENVIRONMENT = {
    "packages": {"hpcdat": "0.1.0", "torch": "2.14.1"},
    "git_commit": "0123456789abcdef-dirty",
    "engine": "horovod",
    "command": ["communication.py"],
    "workers": [{"host": f"n{rank}", "device": "EPYC", "threads": 1, "cpus": 2} for rank in range(4)],
}
SETTINGS = {"workers": 4, "nodes": 4, "workers_per_node": 1, "engine": "horovod", "transport": "MPI"}


def row(*seconds, size=1024, figures=None, **parameters):
    known = {"operation": "all-reduce", "by": "hpcdat", "protocol": None, "bits": 32, "two_sided": False}
    return Row(parameters=known | parameters | {"bytes": size}, seconds=seconds, figures=figures or {})


def file_of(*rows, benchmark="communication", environment=None, ratios=None, notes=(), **settings):
    described = ENVIRONMENT | (environment or {})
    return BenchmarkFile.of(benchmark, described, SETTINGS | settings, rows, ratios, notes)


def exchange(protocol, bits=8, *, two_sided=False, **more):
    return {"operation": "exchange", "protocol": protocol, "bits": bits, "two_sided": two_sided} | more


def sections_of(files, slower_by=None):
    found, slower = benchmark_sections(files, slower_by, None)
    return {section.name: section for section in found}, slower


def column(section, heading):
    place = list(section.header).index(heading)
    return [cells[place] for cells in section.rows]


def test_rows_are_matched_by_all_parameters():
    files = {
        "a": file_of(row(0.2, size=64), row(0.1, size=8), row(3.0, bits=8), row(4.0, by="MPI")),
        "b": file_of(row(0.4, size=64), row(0.5, size=8), row(3.0, bits=True), row(9.0, by="MPI", new=1)),
    }
    section = sections_of(files)[0]["times"]
    assert column(section, "bytes") == ["8", "64", "1,024", "1,024", "1,024", "1,024"], "sizes stand together"
    assert column(section, "a (ms)") == ["100", "200", "3000", "4000", "-", "-"]
    assert column(section, "b (ms)") == ["500", "400", "-", "-", "3000", "9000"]
    assert column(section, "b / a") == ["5.000", "2.000", "", "", "", ""]
    assert section.notes[-2:] == ["2 of 6 rows are not in a (-).", "2 of 6 rows are not in b (-)."]


def test_two_rows_of_one_thing_are_refused():
    with pytest.raises(InputError, match="a has two rows with equal parameters: all-reduce, hpcdat"):
        match({"a": file_of(row(0.1), row(0.2))})


def test_one_file_has_its_figures_and_says_what_was_not_measured():
    figures = {"busbw": 5e7, "sent": None, "sent by eth0": 2**20, "latency of mine": 3.0}
    files = {"a": file_of(row(0.2, 0.1, 0.4, figures=figures), row(0.3, bits=8), rate="1gbit")}
    section = sections_of(files)[0]["times"]
    assert column(section, "bits") == ["32", "8"] and "operation" not in section.header
    assert "All rows: all-reduce, hpcdat, 1,024 bytes." in section.notes
    assert column(section, "median (ms)") == ["200", "300"] and column(section, "p99 (ms)") == ["400", "300"]
    assert column(section, "variation") == ["65.5 %", "one repetition"]
    assert column(section, "busbw (MB/s)") == ["50", ""] and column(section, "of the card") == ["40.0 %", ""]
    assert column(section, "sent (MiB)") == ["not measured", ""]
    assert column(section, "sent by eth0 (MiB)") == ["1", ""]
    assert column(section, "latency of mine") == ["3", ""]


def test_wrong_results_are_in_the_notes():
    files = {"a": file_of(row(0.2, figures={"wrong": 0.0})), "b": file_of(row(0.2, figures={"wrong": 7.0}))}
    notes = sections_of(files)[0]["times"].notes
    assert [note for note in notes if note.startswith("WRONG RESULTS")] == [
        "WRONG RESULTS, with the number of wrong values: all-reduce, hpcdat, 32 bits, 1,024 bytes of b (7)."
    ]


def test_what_files_were_measured_on_and_where_they_differ():
    packages = {"packages": {"hpcdat": "0.1.0", "torch": "2.13.0"}, "engine": "torch"}
    files = {
        "a": file_of(row(0.1), rate=1e9, notes=["not quiet"]),
        "b": file_of(row(0.1), engine="torch", environment=packages),
    }
    assert machines(files["a"])["hosts"] == "n0, n1 and 2 more"
    assert machines(files["a"])["hpcdat"] == "0.1.0 (012345678-dirty)"
    assert machines(files["b"])["p x q"] == "4 x 1" and machines(files["b"])["devices"] == "EPYC"
    assert differing(files) == [
        "packages.torch: 2.14.1 / 2.13.0",
        "engine: horovod / torch",
        "rate: 1e+09 / not stated",
    ]
    section = sections_of(files)[0]["files"]
    assert "Differs: engine: horovod / torch." in section.notes and "a: not quiet" in section.notes


def test_ratios_that_were_not_measured_are_not_zero():
    files = {"a": file_of(row(0.1), ratios={"x": 0.5, "y": None}), "b": file_of(row(0.1), ratios={"x": 0.25})}
    section = sections_of(files)[0]["ratios"]
    assert section.rows == [["x", "0.5", "0.25"], ["y", "not measured", "-"]]
    assert "ratios" not in sections_of({"a": file_of(row(0.1))})[0]


def test_latency_and_bandwidth_are_fitted():
    points = {size: row(2e-4 + size / 1e8) for size in (4, 1024, 2**20, 2**28)}
    line = fit(points)
    assert line.latency == pytest.approx(2e-4) and line.bandwidth == pytest.approx(1e8)
    assert line.deviation < 1e-6 and line.seconds(0) == line.latency
    points[2**20] = row(2 * (2e-4 + 2**20 / 1e8))
    assert 0.1 < fit(points).deviation < 1
    falling = fit({size: row(1 / size) for size in (1, 2, 4)})
    assert falling.bandwidth is None and falling.latency > 0 and not falling.shows_bandwidth
    rising = fit({size: row(float(size**2)) for size in (1, 2, 4)})
    assert rising.latency == 0 and rising.bandwidth > 0, "no latency is below 0"
    assert fit({1: row(1.0), 2: row(2.0)}) is None, "a line through two points fits them whatever they are"


def test_the_limit_of_the_card():
    measured = row(0.5, figures={"busbw": 5e7})
    assert limit(measured, file_of(measured, rate=1e8)) == pytest.approx(0.25)
    assert limit(measured, file_of(measured)) is None
    assert limit(measured, file_of(measured, rate=1e8, nodes=1)) is None, "it uses no card"
    assert limit(row(0.5, figures={"busbw": None}), file_of(measured, rate=1e8)) is None
    own = row(0.5, figures={"busbw": 5e7}, rate="1gbit")
    assert limit(own, file_of(own, rate=None)) == pytest.approx(0.2), "a file of several rates"
    assert [card_rate(rate) for rate in ("1gbit", 2e9, None)] == [1.25e8, 2e9, None]
    for rate in ("fast", True, -1, [1]):
        with pytest.raises(InputError, match="expected"):
            card_rate(rate)


def test_the_fits_section_has_the_bandwidth_that_a_card_allows():
    seconds = {size: 1e-3 + size / 1e8 for size in (1, 2**10, 2**30)}
    rows = [row(spent, size=size, figures={"busbw": 1.5 * size / spent}) for size, spent in seconds.items()]
    files = {"a": file_of(*rows, rate="10gbit"), "b": file_of(*rows[:2])}
    section = sections_of(files)[0]["fits"]
    assert column(section, "file") == ["a", "b"]
    assert column(section, "latency (ms)") == ["1", "too few"]
    assert column(section, "bandwidth (MB/s)") == ["100", "too few"]
    assert column(section, "limit of the card (MB/s)") == ["833.3", ""], "1.25 GB/s over 1.5"
    assert column(section, "sizes") == ["3", "2"]
    assert "fits" not in sections_of({"a": file_of(row(0.1))})[0]


def test_the_papers_epoch():
    with torch.device("meta"):
        network = torchvision.models.resnet50()
    assert 4 * sum(weight.numel() for weight in network.parameters()) == GRADIENT
    assert (WORK["data.images"], WORK["batch_size"]) == (IMAGES, BATCH) and ITERATIONS == 418


def test_c_stands_beside_the_papers():
    def swept(sizes, **parameters):
        return [row(1e-3 + size / 1e9, size=size, **parameters) for size in sizes]

    files = {
        "a": file_of(
            row(2.0, size=GRADIENT, **exchange("ring", 32)),
            row(0.5, 0.25, 1.0, size=GRADIENT, **exchange("allgather")),
            *swept((2**10, 2**20, 2**30), **exchange("sharded_server", two_sided=True)),
            *swept((2**10, 2**20, 2**24), **exchange("ring of float16", 16)),
            *swept((2**10, 2**20), **exchange("ring")),  # too few sizes
            *swept((2**10, 2**11, 2**12), **exchange("ring of 8-bit lanes")),  # latency alone
            row(1.0, size=GRADIENT, **exchange("ring", 4)),
            row(9.0, size=GRADIENT),
        ),
        "b": file_of(row(3.0, size=GRADIENT, **exchange("ring", 32))),
    }
    section = sections_of(files)[0]["table-4"]
    fitted = f"{418 * (1e-3 + GRADIENT / 1e9):.4g}"
    assert section.rows == [
        ["32 bits", "ring", "no", "836", "1254", "898", "859"],
        [
            "16 bits",
            "ring of float16",
            "no",
            f"{fitted} (from the fit, within 0.0 %, extrapolated)",
            "-",
            "850",
            "849",
        ],
        ["8 bits", "allgather", "yes", "209", "-", "592", "594"],
        ["8 bits", "ring", "no", "-", "-", "592", "594"],
        ["8 bits", "ring of 8-bit lanes", "no", "-", "-", "592", "594"],
        [
            "8 bits, 2-sided",
            "sharded_server",
            "no",
            f"{fitted} (from the fit, within 0.0 %)",
            "-",
            "1091",
            "1013",
        ],
        ["32 bits, fast links", "ring", "yes", "836", "1254", "15", "15"],
    ]
    assert table_4_section(files, series_of(match({"a": file_of(row(9.0, size=GRADIENT))}))) is None
    engines = [row(1.0, size=GRADIENT, **exchange("allgather"), engine=name) for name in ("horovod", "torch")]
    both = sections_of({"a": file_of(*engines)})[0]["table-4"]
    assert column(both, "our exchange") == ["allgather, horovod", "allgather, torch"]
    alone = sections_of({"a": file_of(row(1.0, size=GRADIENT, **exchange("allgather", 32)))})[0]["table-4"]
    assert [cells[:3] for cells in alone.rows] == [["32 bits", "allgather", "yes"]]
    missing = (
        "No exchange like these rows of the paper was measured: 16 bits; 8 bits; 8 bits, 2-sided; 32 bits"
    )
    assert any(note.startswith(missing) for note in alone.notes)


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


@pytest.fixture
def files(tmp_path):
    def swept(slowdown):
        rows = [
            row(*[slowdown * (1e-3 + size / 1e8)] * 6, size=size, figures={"busbw": 1.5e8 * size}, **kind)
            for size in (2**10, 2**16, 2**22)
            for kind in ({}, exchange("allgather"))
        ]
        return file_of(*rows, rate="10gbit")

    for name, slowdown in {"A": 1.0, "B": 1.05, "C": 1.25}.items():
        swept(slowdown).write(tmp_path / f"{name}.json")
    return tmp_path


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


def test_pages_and_plot(files):
    done = run_here("report", "--benchmark", files / "A.json", files / "B.json", "--out", files / "out")
    assert done.returncode == 0, done.stderr
    names = sorted(file.name for file in (files / "out").iterdir())
    assert names == ["fits.svg", "report.csv", "report.html", "report.md"]
    page = (files / "out" / "report.html").read_text()
    assert "<title>Benchmarks of hpcdat</title>" in page and page.count("<svg") == 1
    rows = list(csv.reader(io.StringIO((files / "out" / "report.csv").read_text())))
    assert ["Times", "all-reduce", "", "32", "1,024", "1.01", "1.061", "1.050"] in rows
    shown = run_here("report", "--benchmark", files / "A.json")
    assert "svg" not in shown.stdout and not (files / "report").exists(), "without --out nothing is written"


def test_the_plot_has_a_line_for_each_operation_and_the_limit_of_the_card(files):
    read = read_benchmarks([files / "A.json", files / "B.json"])
    text = plot_times(read, series_of(match(read)))
    labels = "all-reduce", "exchange", "hpcdat, allgather, 8 bits", "A.json", "B.json", "limit of the card"
    for label in labels:
        assert f">{label}</text>" in text, label
    no_rate = {"$a^$": file_of(row(0.1), row(0.2, size=2048))}
    assert "limit of the card" not in (text := plot_times(no_rate, series_of(match(no_rate))))
    assert ">$a^$</text>" in text, "as a formula it would be an error"


def test_files_are_named_by_what_distinguishes_them(files):
    for day in ("monday", "tuesday"):
        (files / day).mkdir()
        shutil.copy(files / "A.json", files / day / "result.json")
    read = read_benchmarks([files / "monday", files / "tuesday" / "result.json", files / "monday"])
    assert list(read) == ["monday", "tuesday"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--benchmark A.json page.html", "page.html is not a benchmark file: Invalid JSON"),
        (
            "--benchmark A.json other.json",
            "is of the benchmark communication, other.json of attack_step",
        ),
        ("--benchmark none.json", "none.json cannot be read: No such file or directory"),
        ("--benchmark empty.json", "empty.json has no rows: nothing was measured"),
        (
            "--benchmark pending",
            "pending has no result.json: its benchmark has not ended, or failed; see the",
        ),
        ("--benchmark folder", "folder has no result.json\n"),
        ("--benchmark A.json --fail-if-slower 10%", "first of two or more files; only one is given"),
        ("--benchmark A.json different.json --fail-if-slower 10%", "have no row with equal parameters"),
        ("--benchmark A.json B.json --fail-if-slower 10", "expected a percentage, such as 10%"),
        ("--benchmark A.json B.json --fail-if-slower -5%", "expected a percentage, such as 10%"),
        ("--benchmark A.json --table dat-4", "--table: not allowed with --benchmark"),
        ("A.json", "A.json is not the folder of a run; --benchmark reads files of benchmarks"),
        ("folder --fail-if-slower 10%", "--fail-if-slower: only with --benchmark"),
    ],
)
def test_wrong_input_is_refused(files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    (files / "page.html").write_text("<html>")
    file_of(row(0.1), benchmark="attack_step").write(files / "other.json")
    file_of().write(files / "empty.json")
    file_of(row(0.1), rate="fast").write(files / "odd.json")
    file_of(row(0.1, by="me")).write(files / "different.json")
    (files / "pending" / "slurm").mkdir(parents=True)
    (files / "folder").mkdir()
    done = run_here("report", *arguments.split())
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not done.stdout
