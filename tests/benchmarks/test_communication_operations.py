"""benchmarks/communication.py: what it times and checks of each operation."""

import dataclasses
import math
import time
from importlib import import_module

import pytest
import torch

from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.hardware.network_cards import Card

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("modules")


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
