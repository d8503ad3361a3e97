"""Benchmarks beside each other: rows, fits and C beside the paper's."""

import csv
import io
import shutil

import pytest
import torch
import torchvision

from hpcdat.errors import InputError
from hpcdat.report.benchmarks.files import card_rate, differing, machines, read_benchmarks
from hpcdat.report.benchmarks.fit import fit, limit
from hpcdat.report.benchmarks.lines import match, series_of
from hpcdat.report.benchmarks.plot import plot_times
from hpcdat.report.benchmarks.table_4 import BATCH, GRADIENT, IMAGES, ITERATIONS, table_4_section
from hpcdat.report.papers.dat import WORK
from tests.conftest import run_here
from tests.report.benchmark_rows import column, exchange, file_of, row, sections_of


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
