"""benchmarks/tables.py: the rows of its file, and what is compared with those of an earlier time."""

import argparse
from importlib import import_module

import pytest

from hpcdat.config.job_file import read_job
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.performance.steadiness import is_steady
from hpcdat.report.benchmarks.files import read_benchmarks
from hpcdat.report.benchmarks.lines import match
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT, DEMO


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


def test_epochs_follow_one_another_so_that_they_are_one_round(tables, make_run):
    for row in tables.rows_from(RunFolder(make_run("dat-pgd-8", "dat-4/8")), "100mbit"):
        assert row.medians_of_rounds == [row.median] and is_steady(row) is None


def test_an_exchange_by_itself_is_compared_with_that_in_training(tables, make_run):
    """Two epochs of 600 images, in four iterations of 6 x 25, with C of 3 s."""
    folder = RunFolder(make_run("dat-pgd-8", "dat-4/8"))
    BenchmarkFile.of("communication", {}, {}, [Row(parameters={}, seconds=[0.6, 0.7])]).write(
        tables.file_alone(folder)
    )
    assert len(tables.rows_from(folder, "100mbit")) == 2
    rows = tables.rows_from(folder, "100mbit", alone=True)
    assert [row.parameters["part"] for row in rows] == ["T", "C", "C, the exchange alone"]
    assert rows[2].seconds == pytest.approx([2.4, 2.8]) and rows[2].medians_of_rounds == [rows[2].median]
    alone = tables.seconds_of(rows, tables.ALONE)
    ratios = tables.ratios_of(tables.seconds_of(rows), {}, alone)
    assert ratios == {"c_alone_over_c_dat-pgd-8": pytest.approx(2.6 / 3)}


def test_the_program_that_times_an_exchange_by_itself_takes_the_run_s_own_settings(
    tables, make_run, monkeypatch
):
    folder = RunFolder(make_run("dat-pgd-8", "dat-4/8"))
    job = read_job(DEMO, ["engine=torch"])
    monkeypatch.setattr("sys.argv", tables.exchange_of(folder, job, "1gbit")[1:])
    found = import_module("communication_arguments").read_arguments()
    assert found.jobs == [folder.job_file] and found.engines == ["torch"] and found.rates == ["1gbit"]
    assert found.worker_report == tables.file_alone(folder) and found.repetitions == tables.REPETITIONS


def test_a_note_says_whether_other_work_used_the_machine(tables, make_run, monkeypatch, tmp_path, capsys):
    run = make_run("dat-pgd-8", "dat-4/dat-pgd-8")
    monkeypatch.setattr(tables, "JOBS", [CHECKOUT / "jobs" / "miniature" / "dat-pgd-8.yaml"])
    monkeypatch.setattr(tables, "train", lambda *_, alone: None)
    monkeypatch.setattr(tables.subprocess, "run", lambda *_, **__: None)
    report = {"machine": "a", "host": "node1", "cores": 2, "seconds": 10.0, "own": 12.0, "computed": 19.0}
    monkeypatch.setattr(tables.Processors, "report", lambda _: report)
    file = tmp_path / "tables.json"
    out = ["--out", str(tmp_path / "report"), "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["tables.py", "--runs", str(run.parent), *out])
    tables.main()
    (note,) = BenchmarkFile.read(file).notes
    assert note.startswith("not quiet: other processes used 35% of the processor time of node1")
    assert note.endswith("there are too few repetitions to tell how far another run may differ")
    assert f"\nnote: {note}\n" in capsys.readouterr().out


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
