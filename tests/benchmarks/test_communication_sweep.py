"""benchmarks/communication.py: what its sweep times and checks, and what it concludes from that."""

import dataclasses
import math
import time
import weakref
from importlib import import_module

import pytest
import torch

from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.hardware.network_cards import Card
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from tests.conftest import CHECKOUT

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """The modules of benchmarks."""
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")


@pytest.fixture
def operations():
    return import_module("communication_operations")


@pytest.fixture
def rows():
    return import_module("communication_rows")


@pytest.fixture
def sweeping():
    return import_module("communication_sweep")


@pytest.fixture
def sampling():
    return import_module("communication_samples")


def swept(sweeping, workers, *sizes, **settings):
    """The file of a sweep among ranks of the loopback."""
    wanted = sweeping.Sweep(sizes, **{"warm_up": 1, "repetitions": 2, **settings})
    files = run_threads(loopback(workers), lambda rank: sweeping.sweep(rank, CPU, wanted, None))
    assert not any(files[1:])
    return files[0]


def test_bandwidths_have_the_factors_of_nccl_tests(operations):
    found = {name: operations.share_sent(name, 4) for name in operations.OPERATIONS}
    assert found == {
        "all-reduce": 1.5,
        "all-gather": 0.75,
        "all-to-all": 0.75,
        "broadcast": 1,
        "point to point": 1,
        "exchange": 1,
    }


def test_sizes_are_rounded_up_to_numbers_of_every_worker(operations):
    assert [operations.count_of("all-reduce", size, 3) for size in (1, 4, 5, 1024)] == [1, 1, 2, 256]
    assert [operations.count_of("all-to-all", size, 3) for size in (1, 12, 13, 1024)] == [3, 3, 6, 258]


def report_of(seconds, arrivals, **more):
    found = {"seconds": seconds, "arrivals": arrivals, "events": [], "processor": [0.1, 0.2, 0.6]}
    return found | {"off": 0.0, "norm": 25.0, "wrong": 0, "sent": {}, "uncounted": []} | more


def operation_of(operations, **more):
    parameters = operations.plain("all-gather", "hpcdat", 100, CPU)
    nothing = torch.empty(0)
    fields = {"carried": 0.5, "replaced": 2.0, "sent": 12.0, "align": lambda: None}
    return operations.Operation(parameters, lambda: nothing, nothing, **fields | more)


def test_a_row_is_of_the_slowest_worker(operations, rows):
    reports = [
        report_of([1.0, 2.0, 9.0], [0.0, 10.0, 20.0], sent={"Ethernet": 10.0}, off=9.0),
        report_of([4.0, 1.0, 1.0], [0.0, 10.5, 21.0], sent={"Ethernet": 5.0, "RoCE": 1.0}, wrong=3),
        report_of([1.0, 1.0, 1.0], [0.5, 10.5, 20.5], off=3.0),
    ]
    row = rows.row_of(operation_of(operations), reports, 2)
    assert row.seconds == [4.0, 2.0, 9.0] and row.median == 4.0 and row.p99 == 9.0
    assert row.medians_of_rounds == [3.0, 9.0]
    assert row.variation == pytest.approx(math.sqrt(13) / 5)
    assert row.figures == {
        "algbw": 100.0,
        "busbw": 50.0,
        "effective_busbw": 200.0,
        "error": 0.4,
        "wrong": 3,
        "skew": 0.5,
        "processor_seconds": pytest.approx(0.2),
        "device_seconds": None,
        "sent": 16.0,
        "sent by Ethernet": 15.0,
        "sent by RoCE": 1.0,
        "predicted_sent": 12.0,
    }


def test_there_and_back_counts_half_and_by_the_first_worker_s_clock(operations, rows):
    reports = [report_of([2.0, 4.0, 6.0], [0.0] * 3, sent={"Ethernet": 8.0}), report_of([9.0] * 3, [0.0] * 3)]
    row = rows.row_of(operation_of(operations, timed_by=0, messages=2), reports, 1)
    assert row.seconds == [1.0, 2.0, 3.0]
    assert row.figures["algbw"] == 200.0 and row.figures["sent"] == 4.0


def test_bytes_that_nothing_counts_are_not_0(operations, rows, sampling):
    before = [Card("a", "Ethernet", 10), Card("b", "RoCE", None), Card("c", "Ethernet", 0)]
    after = [Card("a", "Ethernet", 50), Card("b", "RoCE", None), Card("c", "Ethernet", 8)]
    assert sampling.counted(before, after) == {"sent": {"Ethernet": 48}, "uncounted": ["b"]}
    reports = [report_of([1.0], [0.0], processor=[0.1]) for _ in range(2)]
    row = rows.row_of(operation_of(operations), reports, 1)
    assert row.figures["sent"] is None and not any(name.startswith("sent by") for name in row.figures)


def everything(operations, rank, size):
    exchanges = import_module("communication_exchanges")
    gradients = exchanges.Gradients(rank, CPU)
    sources = [
        operations.Collectives(gradients),
        operations.ExchangesAtSizes(gradients, exchanges.SWEPT),
    ]
    return [make() for source in sources for make in source.at(size, operations.OPERATIONS)]


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_every_operation_is_right_and_damage_is_found(operations, rows, workers):
    """Damage: a number off by more than the bound, another that is not a number, and a missing one."""

    def program(rank):
        found = {}
        for operation in everything(operations, rank, 4096):
            operation.reset()
            result = operation.run().clone()
            before = rows.check(result, operation.expected, operation.bound)["wrong"]
            damaged = []
            if result.numel():
                flat = result.flatten()
                flat[3] += 1.001 * operation.bound + abs(flat[3]) + 1
                damaged.append(rows.check(flat, operation.expected, operation.bound)["wrong"])
                flat[7] = torch.nan
                damaged.append(rows.check(flat, operation.expected, operation.bound)["wrong"])
                damaged.append(
                    rows.check(flat[1:], operation.expected, operation.bound)["wrong"] == len(flat)
                )
            label = import_module("communication_exchanges").label_of(operation.parameters)
            found[f"{operation.parameters['operation']} {label}"] = [before, *damaged]
        return found

    of_ranks = run_threads(loopback(workers), program)
    assert len(of_ranks[0]) == 5 + 14
    for rank, found in enumerate(of_ranks):
        for name, counts in found.items():
            # Only the first worker gets back what it has sent to the last one.
            gets = rank == 0 or not name.startswith("point")
            assert counts == [0, *([1, 2, True] if gets else [])], (rank, name)


def test_a_run_that_does_nothing_is_found(operations, rows):
    """The last result does not remain where the next one is expected."""

    def program(rank):
        lazy = []
        for operation in everything(operations, rank, 256):
            operation.reset()
            result = operation.run()
            operation.reset()
            if result.data_ptr() and operation.parameters["operation"] in (
                "exchange",
                "broadcast",
                "all-reduce",
            ):
                wrong = rows.check(result, operation.expected, operation.bound)["wrong"]
                lazy.append((operation.parameters["operation"], wrong))
        return lazy

    for rank, lazy in enumerate(run_threads(loopback(2), program)):
        assert len(lazy) == 16
        for name, wrong in lazy:
            assert wrong > 0 or (name == "broadcast" and rank == 0)


def test_a_sum_of_zeros_is_not_taken_for_a_quantised_one(operations, rows):
    def program(rank):
        for operation in everything(operations, rank, 2**16):
            if operation.parameters["operation"] == "exchange":
                zeros = torch.zeros_like(operation.expected)
                assert rows.check(zeros, operation.expected, operation.bound)["wrong"] > 0, (
                    operation.parameters
                )

    run_threads(loopback(4), program)


def test_predicted_bytes_are_those_of_the_messages(operations):
    def program(rank):
        gradients = import_module("communication_exchanges").Gradients(rank, CPU)
        made = [make() for make in operations.Collectives(gradients).at(1200, operations.OPERATIONS)]
        return {operation.parameters["operation"]: operation.sent for operation in made}

    predicted = run_threads(loopback(3), program)[0]
    assert predicted == {
        "all-reduce": 4 * 1200,
        "all-gather": 2 * 1200,
        "all-to-all": 2 * 1200,
        "broadcast": 2 * 1200,
        "point to point": 1200,
    }


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


def test_each_round_warms_up(operations, sampling):
    """Runs before the timed ones: buffers are new in each round."""
    runs = []
    operation = operation_of(operations, reset=lambda: runs.append("reset"))
    operation = dataclasses.replace(operation, run=lambda: runs.append("run"))
    sampling.warm_up(operation, 2)
    assert runs == ["reset", "run"] * 2


def test_samples_of_several_rounds_are_joined_and_clocks_corrected(operations, rows, sampling, monkeypatch):
    clock = iter([100.0, 200.0, 300.0])
    monkeypatch.setattr(sampling.time, "time", lambda: next(clock))
    counts = iter([0, 30, 1000, 1060])
    monkeypatch.setattr(
        sampling,
        "cards_to_count",
        lambda workers: [Card("a", "Ethernet", next(counts)), Card("b", "RoCE", None)],
    )
    operation = operation_of(operations)
    (rank,) = loopback(1)
    samples = sampling.Samples(rank, CPU, operation)
    samples.take(operation, 1, 0.25, checked=False)
    samples.take(operation, 2, 0.5, checked=True)
    report = samples.report()
    assert report["arrivals"] == [99.75, 199.5, 299.5] and len(report["seconds"]) == 3
    assert report["sent"] == {"Ethernet": 30.0} and report["uncounted"] == ["b"] and report["wrong"] == 0


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


def test_on_a_gpu_times_are_taken_by_events_too(operations, rows, sampling, monkeypatch):
    """With stand-ins for CUDA's events, which read the host's clock."""

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = time.perf_counter()

        def elapsed_time(self, later):
            return 1e3 * (later.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    result = torch.ones(3)
    operation = dataclasses.replace(
        operation_of(operations), run=lambda: time.sleep(0.01) or result, expected=result
    )
    operation.parameters["device"] = "cuda"
    (rank,) = loopback(1)
    samples = sampling.Samples(rank, CPU, operation)
    samples.take(operation, 3, 0.0, checked=True)
    row = rows.row_of(samples.operation, [samples.report()], 1)
    assert 0.01 <= row.figures["device_seconds"] <= row.median and row.figures["wrong"] == 0


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
