"""Tasks of an srun step, and workers of mpirun, meet, or say for whom they wait."""

import os
import socket
import sys
import threading
from types import SimpleNamespace

import pytest

from hpcdat.distributed import rendezvous
from hpcdat.distributed.horovod_communicator import HorovodCommunicator
from hpcdat.distributed.horovod_over_srun import srun_variables
from hpcdat.distributed.launcher import Launched
from hpcdat.distributed.rendezvous import connect_store, party_of
from hpcdat.distributed.torch_communicator import TorchCommunicator
from hpcdat.errors import InputError, Stopped, WorkerError

HERE = "node1"


def task(rank, size=2, nodes=1):
    """What srun sets for a task; the tasks' names of nodes resolve to this machine."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "3",
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": HERE if nodes == 1 else "node[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": str(size) if nodes == 1 else "1(x2)",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank if nodes == 1 else 0),
        "SLURM_NODEID": str(0 if nodes == 1 else rank),
        "SLURMD_NODENAME": f"node{1 if nodes == 1 else rank + 1}",
    }


def set_resolver(monkeypatch, resolve):
    found = SimpleNamespace(
        gethostname=socket.gethostname,
        gethostbyname=resolve,
        getaddrinfo=lambda name, port: [(0, 0, 0, "", (resolve(name), 0))],
    )
    monkeypatch.setattr(rendezvous, "socket", found)


@pytest.fixture
def names(monkeypatch):
    """The names that resolve."""
    known = {HERE, socket.gethostname()}

    def resolve(name):
        if name not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return "127.0.0.1"

    set_resolver(monkeypatch, resolve)
    return known


def test_tasks_meet_though_task_0_comes_last(names, capsys):
    meet_though_task_0_comes_last()
    assert capsys.readouterr().err == ""


def meet_though_task_0_comes_last():
    variables = {}

    def meet(rank):
        variables[rank] = srun_variables(60, None, task(rank))

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {variables[rank]["HOROVOD_GLOO_RENDEZVOUS_ADDR"] for rank in (0, 1)} == {"127.0.0.1"}
    assert len({variables[rank]["HOROVOD_GLOO_RENDEZVOUS_PORT"] for rank in (0, 1)}) == 1
    assert [variables[rank]["HOROVOD_RANK"] for rank in (0, 1)] == ["0", "1"]


def test_workers_of_mpirun_meet_at_one_store(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "3")
    monkeypatch.setenv("PMIX_NAMESPACE", f"prterun-{os.getpid()}@1")
    stores = {}

    def meet(rank):
        stores[rank] = connect_store(Launched("mpirun", rank, 3), 60, None)
        stores[rank].set(f"from {rank}", str(rank))

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [stores[rank].get(f"from {2 - rank}") for rank in range(3)] == [b"2", b"1", b"0"]


def test_an_mpirun_on_several_nodes_has_to_say_where_rank_0_is():
    with pytest.raises(InputError, match=r"^engine: torch: .* export MASTER_ADDR .* torchrun or srun$"):
        party_of(Launched("mpirun", 1, 4), {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "x"})


def test_a_stranger_on_one_of_the_ports_is_not_taken_for_task_0(names):
    """One port is taken by another server, whose answer is none of this step's."""
    token = task(0)
    first = rendezvous.candidate_ports(f"{token['SLURM_JOB_ID']}.{token['SLURM_STEP_ID']}")[0]
    other = rendezvous._open_meeting("another step", 1, [first])
    meet_though_task_0_comes_last()
    other.shutdown()
    other.server_close()


def test_task_0_in_an_interactive_shell_says_at_once_for_whom_it_waits(names, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))

    class Later:
        """A stop that is requested once the wait has been announced."""

        @property
        def requested(self):
            said.append(capsys.readouterr().err)
            return "waiting" in "".join(said)

    said = []
    with pytest.raises(Stopped, match="stopped while waiting for task 1 of Slurm step"):
        srun_variables(60, Later(), task(0))
    assert "".join(said).startswith(
        f"hpcdat: waiting for task 1 of Slurm step {os.getpid()}.3 (2 tasks on {HERE}) to run the same"
    )
    assert "unset SLURM_STEP_NUM_TASKS" in "".join(said)


def test_a_wait_for_tasks_that_never_come_ends(names, monkeypatch):
    monkeypatch.setattr(rendezvous, "SECONDS_TO_CONNECT", 0.2)
    with pytest.raises(WorkerError, match=r"for tasks 1, 2, 3, 4, 5 and 1 more of Slurm step \d+\.3"):
        srun_variables(0.2, None, task(0, size=7))
    with pytest.raises(WorkerError, match=rf"for task 0 of Slurm step .* to answer on {HERE}, port"):
        srun_variables(0.2, None, task(1) | {"SLURM_STEP_ID": "4"})


@pytest.mark.parametrize(
    "engine, launcher",
    [(HorovodCommunicator, "srun"), (HorovodCommunicator, "horovodrun"), (TorchCommunicator, "torchrun")],
)
def test_a_node_whose_own_name_does_not_resolve_is_named(names, engine, launcher):
    """Gloo would crash, Horovod's whichever network card it were given."""
    names.remove(socket.gethostname())
    message = rf"^the name of node {socket.gethostname()} does not resolve on .* add it to /etc/hosts"
    with pytest.raises(WorkerError, match=message):
        engine(Launched(launcher, 0, 2), 60)


def test_the_name_of_another_node_has_to_resolve(names):
    names.remove(HERE)
    with pytest.raises(
        WorkerError, match=f"the name of node {HERE} does not resolve on {socket.gethostname()}"
    ):
        srun_variables(60, None, task(1, nodes=2))


def test_a_name_that_takes_long_is_said_and_bounded(names, monkeypatch, capsys):
    forever = threading.Event()
    monkeypatch.setattr(rendezvous, "SECONDS_TO_RESOLVE", 0.0)
    set_resolver(monkeypatch, lambda name: forever.wait())
    with pytest.raises(WorkerError, match=f"of waiting for the name of node {HERE} to resolve"):
        srun_variables(60, None, task(1, nodes=2))
    forever.set()
