"""benchmarks/timing.py, and what several benchmarks conclude from its seconds."""

from importlib import import_module

import pytest
import torch

from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.performance.benchmark_file import BenchmarkFile
from tests.conftest import CHECKOUT

CPU = torch.device("cpu")


@pytest.fixture
def module(monkeypatch):
    """A module of benchmarks by its name."""
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    return import_module


@pytest.fixture
def run(module, monkeypatch, tmp_path, capsys):
    """Run a benchmark in this process; what it prints, and its file."""

    def of(benchmark, *given):
        file, threads = tmp_path / f"{benchmark}.json", torch.get_num_threads()
        monkeypatch.setattr("sys.argv", [f"{benchmark}.py", *given, "--json", str(file)])
        module(benchmark).main()
        torch.set_num_threads(threads)
        return capsys.readouterr().out, BenchmarkFile.read(file)

    return of


def test_parts_take_turns_in_rotating_order_and_the_first_round_does_not_count(module, monkeypatch):
    timing, order = module("timing"), []
    monkeypatch.setattr(timing, "seconds", lambda work, device: work())
    parts = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    times = timing.in_turns(parts, 2, CPU)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert times == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}


def test_the_slowest_worker_counts(module, monkeypatch):
    timing = module("timing")
    monkeypatch.setattr(timing, "seconds", lambda work, device: work())
    own = {0: [0.0, 1.0, 5.0], 1: [9.0, 3.0, 2.0]}

    def measure(workers):
        left = iter(own[workers.rank])
        return timing.in_turns({"part": lambda: next(left)}, 2, CPU, workers)

    assert run_threads(loopback(2), measure) == [{"part": [3.0, 5.0]}] * 2


def test_rows_are_named_by_their_parts_and_settings_are_those_of_all_benchmarks(module):
    timing = module("timing")
    rows = timing.rows_of({"copy": [1.0, 2.0]}, device="cpu")
    assert [(row.parameters, row.seconds) for row in rows] == [
        ({"part": "copy", "device": "cpu"}, [1.0, 2.0])
    ]
    ranks = loopback(6, node_of=[0, 0, 0, 1, 1, 1])
    settings = timing.settings_of(ranks[0], CPU, 4, eps=0.5)
    assert (settings["workers"], settings["nodes"], settings["workers_per_node"]) == (6, 2, 3)
    assert (settings["repetitions"], settings["warm_up"], settings["eps"]) == (4, 1, 0.5)
    assert timing.settings_of(SingleProcess(), CPU, 1)["engine"] == "none"


def test_the_codec_is_timed_and_its_rows_of_encoding_have_the_errors(module, run, monkeypatch):
    # Compiling takes a minute.
    monkeypatch.setattr(module("codec"), "can_compile", lambda: False)
    output, file = run("codec", "--count", "4096", "--rounds", "2", "--device", "cpu")
    errors = {row.parameters["part"]: row.figures.get("error") for row in file.rows}
    assert errors["copy"] is None and errors["8 bits, eager: decode"] is None
    assert errors["8 bits, eager: encode"] == file.ratios["error_8bit"] < errors["4 bits, eager: encode"]
    assert all(len(row.seconds) == 2 and row.parameters["numbers"] == 4096 for row in file.rows)
    assert f"error_8bit: {file.ratios['error_8bit']:.4g}" in output


def test_noisy_copies_of_one_worker_are_timed(run):
    output, file = run("smoothing", "--batch", "1", "--rounds", "1", "--device", "cpu")
    independent, shared = (row.median for row in file.rows)
    assert file.ratios == {"shared_over_alone": shared / independent}
    assert file.settings["workers"] == 1 and "shared_over_alone: " in output


def test_the_loader_that_suffers_more_from_latency_counts(module):
    loader = module("loader")
    seconds = {
        loader.Case(name, latency, epoch): [spent * epoch, 9.0, spent * epoch]
        for name, latency, spent in (
            ("dali", False, 1.0),
            ("dali", True, 2.0),
            ("torchvision", False, 3.0),
            ("torchvision", True, 4.0),
        )
        for epoch in (1, 2)
    }
    assert loader.latency_ratio(seconds, 1) == 0.5
    assert loader.latency_ratio(seconds, 2) == 0.5


def test_protocols_take_turns_in_rotating_order(module):
    training = module("epoch").Training(2, 2, rounds=3, width=0.1, only="ring*", device="cpu")
    full, codes = "ring, float32", "ring, 8 bits"
    assert training.turns == [(0, full), (0, codes), (1, codes), (1, full), (2, full), (2, codes)]


def test_epochs_of_all_rounds_are_one_row_and_c_is_compared_by_round(module):
    epoch = module("epoch")
    rounds = [
        {"communication": [1.0, 3.0, 2.0], "total": [4.0, 5.0, 9.0], "predicted": 1.0},
        {"communication": [4.0, 4.0, 4.0], "total": [6.0, 7.0, 8.0], "predicted": 6.0},
    ]
    for each in rounds:
        each |= {"predicted_total": 5.0, "mebibytes": 0.5}
    report = {"p": 2, "q": 3, "links": "1gbit links", "rows": {"ring": rounds}}
    (row,) = epoch.rows_of(report)
    assert row.parameters == {"protocol": "ring", "nodes": 2, "workers_per_node": 3, "links": "1gbit links"}
    assert row.seconds == [1.0, 3.0, 2.0, 4.0, 4.0, 4.0] and row.medians_of_rounds == [2.0, 4.0]
    assert row.figures["total"] == 6.5 and row.figures["predicted"] == 3.5
    # 1 / 2 and 6 / 4.
    assert row.figures["predicted_over_measured"] == 1.0
    assert row.figures["predicted_elsewhere_over_measured"] is None
    assert epoch.error_max([report]) == 0.0
