"""benchmarks/scale.py: simulated workers do as real ones do, and no message grows with their number."""

from importlib import import_module

import pytest

from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.report.plots import plot_growth
from tests.conftest import CHECKOUT

FEW, MANY = 6, 16


@pytest.fixture(scope="module")
def modules():
    """``one_worker`` and ``scale``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CHECKOUT / "benchmarks")
        yield import_module("one_worker"), import_module("scale")


@pytest.mark.full
@pytest.mark.parametrize("feedback", [True, False])
def test_messages_of_a_training_do_not_grow_and_are_those_of_simulated_workers(modules, feedback, tmp_path):
    one_worker, scale = modules
    settings = one_worker.FEEDBACK if feedback else []
    found = {}
    for size in (FEW, MANY):
        job = one_worker.job_in(tmp_path / f"together-{size}", settings)
        node_of = [rank // one_worker.PER_NODE for rank in range(size)]
        answers = run_threads(
            loopback(size, node_of=node_of), lambda rank, job=job: one_worker.train(job, rank)
        )
        found[size] = answers[1]["phases"]
        recorded, simulated = {}, []
        for rank in (0, 1):
            job = one_worker.job_in(tmp_path / f"simulated-{size}-{rank}", settings)
            simulated.append(one_worker.train(job, one_worker.OneOf(size, rank, recorded)))
        scale.check_messages(size, simulated, answers[:2])
    for name in one_worker.PHASES:
        few, many = found[FEW][name], found[MANY][name]
        # The residuals of padded shares may fill a block more or less.
        assert abs(few["messages"] - many["messages"]) <= (2 if feedback else 0)
        # Seconds have different numbers of digits.
        for key in ("given", "got"):
            assert abs(few[key] - many[key]) <= 20 + 0.1 * few[key], (name, key)


def test_every_phase_is_a_row_of_the_file(modules):
    one_worker, scale = modules
    phase = {"clock": 9.0, "thread": 0.5, "messages": 3, "given": 10, "got": 20, "counts": 0}

    def measured(sizes):
        phases = {
            name: phase | {"seconds": float(place)} for place, name in enumerate(one_worker.PHASES, start=1)
        }
        return {"phases": phases, "checkpoint_bytes": sizes, "memory": 7, "shares": {"shares": 2.0}}

    rows = scale.rows_of(
        {"rank0": {6: measured({"after": 100, "within": 200})}, "worker": {6: measured({}), 36: measured({})}}
    )
    assert len(rows) == 3 * (len(one_worker.PHASES) + 1)
    assert len({str(row.parameters) for row in rows}) == len(rows), "hpcdat report matches rows by parameters"
    steps = [row for row in rows if row.parameters["part"] == "step"]
    assert [(row.parameters["worker"], row.parameters["workers"]) for row in steps] == [
        ("worker 0", 6),
        ("another worker", 6),
        ("another worker", 36),
    ]
    assert steps[0].figures == {"messages": 3, "given": 10, "got": 20, "memory_bytes": 7}
    saved = [row.figures["checkpoint_bytes"] for row in rows if "checkpoint_bytes" in row.figures]
    assert saved == [100, 200]
    by_mpi = scale.rows_of_steps(6, [measured({}), measured({})], "MPI")
    assert [row.seconds for row in by_mpi] == [[0.5], [0.5]]


def test_an_exponent_is_that_of_a_power_law(modules):
    scale = modules[1]
    assert scale.exponent({6: 12.0, 36: 72.0, 256: 512.0}) == 1.0
    assert scale.exponent({6: 0.0, 36: 0.0}) == 0.0
    assert scale.per_worker({6: 100.0, 36: 400.0}) == 10.0


def test_a_plot_names_its_lines_and_numbers_and_leaves_out_zeros():
    text = plot_growth({"bytes": {"step": {6: 1.0, 4096: 3.0}, "begin": {6: 0.0, 4096: 0.0}}}, "workers M")
    assert text.startswith("<svg")
    assert all(f">{label}</text>" in text for label in ("bytes", "step", "begin", "workers M", "4,096"))
