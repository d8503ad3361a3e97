"""benchmarks/communication.py: the rounds of its sweep, and what it concludes from them."""

import weakref
from importlib import import_module

import pytest
import torch

from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.performance.benchmark_file import BenchmarkFile, Row

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("modules")


def swept(sweeping, workers, *sizes, **settings):
    """The file of a sweep among ranks of the loopback."""
    wanted = sweeping.Sweep(sizes, **{"warm_up": 1, "repetitions": 2, **settings})
    files = run_threads(loopback(workers), lambda rank: sweeping.sweep(rank, CPU, wanted, None))
    assert not any(files[1:])
    return files[0]


def test_a_sweep_gives_one_row_for_each_operation_and_size(sweeping, tmp_path):
    chosen = ("all-reduce", "all-gather", "exchange")
    file = swept(sweeping, 3, 4, 8, 4096, operations=chosen, repetitions=7)
    found = [(row.parameters["operation"], row.parameters["bytes"]) for row in file.rows]
    assert found.count(("exchange", 4096)) == 14 and found.count(("all-reduce", 4)) == 1
    # 4 and 8 bytes are both rounded up to one number for each worker.
    assert found.count(("all-gather", 12)) == 1 and ("all-gather", 4104) in found
    assert len(found) == 3 * (1 + 14) + 2
    assert all(row.figures["wrong"] == 0 and len(row.seconds) == 7 for row in file.rows)
    assert all(row.figures["sent"] is None for row in file.rows)
    notes = "\n".join(file.notes)
    assert "MPI itself is not measured: loopback connects the workers" in notes
    assert "those of all-gather and all-to-all to multiples of 12" in notes
    assert "bytes are not counted" in notes and "of 47 rows " in notes
    tables = import_module("communication_tables").swept_tables(file)
    assert "not counted" in tables and "int8 two-sided, sharded server" in tables
    file.write(tmp_path / "file.json")
    assert BenchmarkFile.read(tmp_path / "file.json") == file


def test_rows_are_measured_in_rounds_in_an_order_that_all_workers_share(sweeping, sampling, monkeypatch):
    began, take = {0: [], 1: [], 2: []}, sampling.Samples.take

    def noted(samples, operation, repetitions, *given, **more):
        row = operation.parameters["operation"], operation.parameters["bytes"]
        began[samples._workers.rank].append((*row, repetitions))
        take(samples, operation, repetitions, *given, **more)

    monkeypatch.setattr(sampling.Samples, "take", noted)
    chosen = ("all-reduce", "all-gather", "broadcast")
    file = swept(sweeping, 3, 48, 96, 192, operations=chosen, repetitions=45, warm_up=0)
    assert began[0] == began[1] == began[2], "collectives in different orders would block"
    count = len(file.rows)
    rounds = [began[0][start : start + count] for start in range(0, len(began[0]), count)]
    # 45 repetitions: 22 rounds of two and a last one of one.
    assert [{runs for *_, runs in each} for each in rounds] == [{2}] * 22 + [{1}]
    orders = [[row for *row, _ in each] for each in rounds]
    assert all(sorted(order) == sorted(orders[0]) for order in orders), "every row once in every round"
    assert len({str(order) for order in orders}) == len(orders), "every round has an order of its own"
    assert len({str(order[0]) for order in orders}) > 4, "no row keeps its place"
    assert all(len(row.seconds) == 45 and row.per_round == 2 for row in file.rows)
    sizes = [row.parameters["bytes"] for row in file.rows]
    assert sizes == sorted(sizes), "the file has the rows by size, in the order of the operations"


def test_only_the_operation_that_runs_has_buffers(sweeping, sampling, operations, monkeypatch):
    """But for the gradient, which is kept for the other operations of its size."""
    made, alive = [], []

    class Counted(operations.Operation):
        def __init__(self, *given, **more):
            super().__init__(*given, **more)
            if len(self.expected):
                made.append(weakref.ref(self.expected))
                alive.append(len({id(each()) for each in made if each() is not None}))

    monkeypatch.setattr(operations, "Operation", Counted)
    swept(sweeping, 1, 64, 128, operations=("all-gather", "broadcast"), repetitions=3)
    assert len(alive) > 10 and max(alive) == 1


@pytest.mark.parametrize(
    ("repetitions", "warm_up", "rounds"),
    [
        (20, 1, [0] + [1] * 20),
        (20, 0, [1] * 20),
        (6, 2, [0] + [1] * 6),
        (1, 1, [0, 1]),
        (50, 1, [0] + [2] * 25),
        (70, 3, [0] + [3] * 23 + [1]),
    ],
)
def test_repetitions_are_those_of_all_rounds_together(sweeping, repetitions, warm_up, rounds):
    wanted = sweeping.Sweep((4,), repetitions=repetitions, warm_up=warm_up)
    assert wanted.rounds == rounds and sum(rounds) == repetitions


def test_progress_is_reported_while_one_waits(sweeping, monkeypatch, capsys):
    wanted = sweeping.Sweep((1024, 4096), repetitions=4)
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 28.0, 36.0])
    monkeypatch.setattr(sweeping.time, "monotonic", lambda: next(clock))
    progress = sweeping.Progress(wanted, silent=False)
    for number, size in ((0, 1024), (0, 4096), (1, 4096), (1, 1024), (2, 1024), (2, 4096), (3, 4096)):
        progress.show(number, size)
    assert capsys.readouterr().err.splitlines() == [
        "warm-up: 1,024 bytes",
        "round 1 of 4: 4,096 bytes",
        "round 2 of 4, about 30 s left: 1,024 bytes",
        "round 2 of 4, about 22 s left: 4,096 bytes",
        "round 3 of 4, about 26 s left: 4,096 bytes",
    ]


def test_the_clocks_of_nodes_are_compared_and_their_uncertainty_stated(sweeping, monkeypatch):
    monkeypatch.setattr(sweeping, "clock_stamps", lambda workers: [[0.0, 5.25], [0.5, 5.5], [1.0, 6.0]])
    (near, _), (far, _) = (loopback(2, node_of=places) for places in ([0, 0], [0, 1]))
    clocks = sweeping.Clocks(near)
    clocks.compare()
    assert (clocks.ahead, clocks.uncertainty, clocks.note()) == ([0.0, 0.0], 0.0, "")
    clocks = sweeping.Clocks(far)
    clocks.compare()
    assert (clocks.ahead, clocks.uncertainty) == ([0.0, 5.0], 0.5)
    assert clocks.note() == "the nodes' clocks are known to 500.000 ms: skews are as uncertain"


def test_the_limit_is_that_of_the_fastest_real_card(sweeping, tmp_path):
    def write(path, text):
        file = tmp_path / "class" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    assert sweeping.fastest_card(tmp_path) is None
    for name, speed in (("eth0", 10000), ("veth1", 400000)):
        for file, text in (("type", 1), ("statistics/tx_bytes", 1), ("speed", speed), ("operstate", "up")):
            write(f"net/{name}/{file}", text)
    write("net/eth0/device/vendor", "0x15b3")
    assert sweeping.fastest_card(tmp_path) == 1.25e9
    for file, text in (("state", "4: ACTIVE"), ("rate", "100 Gb/sec (4X EDR)"), ("link_layer", "InfiniBand")):
        write(f"infiniband/mlx5_0/ports/1/{file}", text)
    write("infiniband/mlx5_0/ports/1/counters/port_xmit_data", 1)
    assert sweeping.fastest_card(tmp_path) == 12.5e9
    write("infiniband/mlx5_0/ports/1/state", "1: DOWN")
    assert sweeping.fastest_card(tmp_path) == 1.25e9


def file_of(engine, rate, rows):
    settings = {"engine": engine, "transport": "Gloo", "rate": rate, "workers": 2, "count": 10}
    environment = {"host": engine}
    return BenchmarkFile.of("communication", environment, settings, rows, notes=[f"{engine} is quiet"])


def test_several_engines_make_one_file(operations):
    merge = import_module("communication_ratios").merge
    rows = [Row(parameters=operations.plain("broadcast", "hpcdat", 10, CPU), seconds=[1.0])]
    one = merge([file_of("horovod", "1gbit", rows)], {"ratio": 2.0})
    assert one.ratios == {"ratio": 2.0} and one.rows == rows and one.notes == ["horovod is quiet"]
    both = merge([file_of(engine, "1gbit", rows) for engine in ("horovod", "torch")], {})
    assert both.settings == one.settings | {"engine": "horovod / torch"}
    assert [row.parameters["engine"] for row in both.rows] == ["horovod", "torch"]
    assert "rate" not in both.rows[0].parameters
    assert both.notes == ["horovod: horovod is quiet", "torch: torch is quiet"]
    rates = merge([file_of("torch", rate, rows) for rate in ("1gbit", "100mbit")], {})
    assert rates.settings["rate"] is None
    assert [row.parameters["rate"] for row in rates.rows] == ["1gbit", "100mbit"]


def test_the_ratios_of_one_gradient(operations):
    """At 1 Gbit/s a gradient of 10^8 bytes among two workers takes 0.8 s at least."""
    exchanges = import_module("communication_exchanges")
    seconds = [1.0, 0.9, 0.3, 0.5, 0.5, 0.45, 0.18, 0.7]
    rows = [
        Row(parameters=exchanges.parameters_of(settings, 25 * 10**6, CPU), seconds=[spent], figures=figures)
        for settings, spent, figures in zip(
            exchanges.OURS, seconds, [{"sent": 110.0, "predicted_sent": 100.0}, *[{}] * 7], strict=True
        )
    ]
    overlap = exchanges.parameters_of(exchanges.OURS[1], 25 * 10**6, CPU) | {"operation": "overlap"}
    for part, spent in (("computation", 1.0), ("communication", 0.8), ("step", 1.1)):
        rows.append(Row(parameters=overlap | {"part": part}, seconds=[spent]))
    file = file_of("torch", "1gbit", rows)
    file.settings["count"] = 25 * 10**6
    found = import_module("communication_ratios").ratios_of_all([[file]])
    assert found == {
        "int8_one_sided_over_fp32": pytest.approx(0.3 / 0.9),
        "int8_two_sided_over_fp32": pytest.approx(0.5),
        "int4_two_sided_over_fp32": pytest.approx(0.2),
        "overlap_over_max": pytest.approx(1.1),
        "fp32_of_limit": pytest.approx(0.8 / 0.9),
        "bytes_measured_over_predicted": pytest.approx(1.1),
    }
