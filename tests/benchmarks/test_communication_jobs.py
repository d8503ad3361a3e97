"""benchmarks/communication.py --jobs: the exchanges of jobs, as their training runs them."""

from importlib import import_module

import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.errors import InputError
from hpcdat.models import build_model_for
from tests.conftest import CHECKOUT, DEMO

CPU = torch.device("cpu")
EXCHANGES = {
    "exact": {},
    "as the paper": {"protocol": "allgather", "bits": 8, "levels": 127, "norm": "l2", "block": "tensor"},
    "two-sided": {"protocol": "sharded_server", "bits": 8, "two_sided": True},
    "of nodes": {"protocol": "hierarchical", "across": "allgather", "bits": 8},
}


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """The modules of benchmarks."""
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")


def jobs():
    demo = read_job(DEMO, [])
    return {
        name: demo.model_copy(
            update={"exchange": type(demo.exchange).model_validate(demo.exchange.model_dump() | settings)}
        )
        for name, settings in EXCHANGES.items()
    }


def test_the_gradient_of_each_job_is_exchanged_by_its_settings():
    sweeping, made = import_module("communication_sweep"), jobs()

    def program(rank):
        gradients = import_module("communication_exchanges").Gradients(rank, CPU)
        exchanges = import_module("communication_jobs").ExchangesOfJobs(gradients, made)
        wanted = sweeping.Sweep(exchanges.sizes, ("exchange",), warm_up=1, repetitions=2)
        return sweeping.sweep(rank, CPU, wanted, None, exchanges)

    file = run_threads(loopback(3, node_of=[0, 1, 2]), program)[0]
    rows = {row.parameters["job"]: row for row in file.rows}
    assert list(rows) == list(EXCHANGES)
    count = sum(p.numel() for p in build_model_for(read_job(DEMO, []), 10).parameters())
    assert {row.parameters["bytes"] for row in file.rows} == {4 * count}
    assert all(row.figures["wrong"] == 0 and len(row.seconds) == 2 for row in file.rows)
    errors = {name: row.figures["error"] for name, row in rows.items()}
    assert errors["exact"] == 0 and all(0 < errors[name] < 1 for name in errors if name != "exact")
    # One l2 norm of a tensor makes larger steps than the largest number of a block.
    assert errors["as the paper"] > errors["of nodes"]
    protocols = [row.parameters["protocol"] for row in file.rows]
    assert protocols == ["ring", "allgather", "sharded_server", "allgather"]
    assert "two-sided: int8 two-sided" in import_module("communication_tables").swept_tables(file)


def test_a_protocol_that_is_chosen_by_measuring_is_refused():
    job = read_job(DEMO, ["exchange.protocol=auto"])
    with pytest.raises(InputError, match=r"^mine: exchange\.protocol: auto: set the protocol"):
        gradients = import_module("communication_exchanges").Gradients(loopback(2)[0], CPU)
        import_module("communication_jobs").ExchangesOfJobs(gradients, {"mine": job})
