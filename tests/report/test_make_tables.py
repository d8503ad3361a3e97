"""benchmarks/tables.py: the rows of its file, and what is compared with those of an earlier time."""

import argparse
from importlib import import_module

import pytest

from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.report.benchmarks.files import read_benchmarks
from hpcdat.report.benchmarks.lines import match
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    return import_module("tables")


def row(job, *seconds, part="C"):
    return Row(parameters={"part": part, "job": job}, seconds=seconds)


def test_a_run_gives_t_and_with_several_workers_c(tables, make_run):
    folder = RunFolder(make_run("dat-pgd-8", "dat-4/8"))
    total, communication = tables.rows_from(folder, "100mbit")
    assert total.seconds == [5.0, 5.0] and communication.seconds == [3.0, 3.0]
    assert communication.median == folder.read_result().communication
    assert total.figures == {"ta": 0.9, "ra": 0.5, "mebibytes_per_iteration": 52.3}
    assert communication.parameters == {
        "part": "C",
        "job": "dat-pgd-8",
        "nodes": 6,
        "workers_per_node": 1,
        "rate": "100mbit",
    }
    (alone,) = tables.rows_from(RunFolder(make_run("at", "dat-1/at", method="at", p=1, c=0.0)), "100mbit")
    assert alone.parameters["part"] == "T"


def test_c_is_compared_with_that_of_an_earlier_file_which_the_report_reads(tables, tmp_path):
    rows = [row("dat-pgd", 1.0, 3.0, 2.0), row("dat-pgd-8", 1.0), row("dat-pgd", 9.0, part="T")]
    file = tmp_path / "before.json"
    BenchmarkFile.of("tables", {}, {}, rows).write(file)
    before = tables.seconds_in(str(file))
    assert before == {"dat-pgd": 2.0, "dat-pgd-8": 1.0}
    assert tables.ratios_of({"dat-pgd": 2.0, "dat-pgd-8": 3.0}, before) == {
        "c_8_bits_over_32_pgd": 1.5,
        "c_against_dat-pgd-8": 3.0,
    }
    assert len(match(read_benchmarks([file]))) == 3
    BenchmarkFile.of("scale", {}, {}, rows).write(file)
    with pytest.raises(argparse.ArgumentTypeError, match="is a file of the benchmark scale, not of tables"):
        tables.seconds_in(str(file))
