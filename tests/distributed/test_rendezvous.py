"""Tasks of an srun step, and workers of mpirun, meet, or say for whom they wait."""

import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from hpcdat.distributed import addresses
from hpcdat.distributed.horovod_communicator import HorovodCommunicator
from hpcdat.distributed.launcher import Launched
from hpcdat.distributed.rendezvous import meet, party_of
from hpcdat.distributed.start_file import FOLDER, Start, StartFile
from hpcdat.distributed.torch_communicator import TorchCommunicator
from hpcdat.distributed.torch_store import connect_store
from hpcdat.errors import InputError, Stopped, WorkerError

HERE = "node1"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the files of starts are."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "starts"))
    for variable in addresses.CARDS:
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "starts"


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


def party(rank, size=2, nodes=1, **more):
    return party_of(Launched("srun", rank, size), task(rank, size, nodes) | more)


def set_resolver(monkeypatch, resolve):
    found = SimpleNamespace(
        **{name: getattr(socket, name) for name in ("socket", "AF_INET", "SOCK_DGRAM", "gethostname")},
        gethostbyname=resolve,
        getaddrinfo=lambda name, port: [(0, 0, 0, "", (resolve(name), 0))],
    )
    monkeypatch.setattr(addresses, "socket", found)


@pytest.fixture
def names(monkeypatch):
    """The names that resolve."""
    known = {HERE, "node2", socket.gethostname()}

    def resolve(name):
        if name not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return "127.0.0.1"

    set_resolver(monkeypatch, resolve)
    return known


def meet_all(parties):
    """What each of them has put into the store, and the next one has read there."""

    def run(own):
        client = meet(own, 60, None)
        client.set(f"from {own.rank}", str(own.rank).encode())
        return own.rank, client.get(f"from {(own.rank + 1) % own.size}", 60)

    with ThreadPoolExecutor(len(parties)) as pool:
        return dict(pool.map(run, parties))


@pytest.mark.parametrize("nodes", [1, 2])
def test_tasks_meet_though_task_0_comes_last_and_leave_no_file(names, capsys, folder, nodes):
    assert meet_all([party(rank, nodes=nodes) for rank in (1, 0)]) == {0: b"1", 1: b"0"}
    assert capsys.readouterr().err == ""
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("local", ["3", "1"])
def test_workers_of_mpirun_meet_on_one_node_and_on_several(monkeypatch, local):
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", local)
    monkeypatch.setenv("PMIX_NAMESPACE", f"prterun-{os.getpid()}@1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with ThreadPoolExecutor(3) as pool:
        places = [Launched("mpirun", rank, 3) for rank in range(3)]
        stores = list(pool.map(lambda place: connect_store(place, 20, None), reversed(places)))[::-1]
    for rank, store in enumerate(stores):
        store.set(f"from {rank}", str(rank))
    assert [stores[rank].get(f"from {2 - rank}") for rank in range(3)] == [b"2", b"1", b"0"]


def test_an_mpirun_on_several_nodes_asks_for_a_card_where_its_own_name_is_of_no_use(names):
    own = party_of(Launched("mpirun", 0, 4), {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "x"})
    with pytest.raises(InputError, match=r"resolves to 127\.0\.0\.1, .* set GLOO_SOCKET_IFNAME"):
        meet(own, 60, None)


def test_another_node_is_one_on_which_this_worker_is_not():
    """Task 0 need not be on the first one."""
    assert [party(rank, nodes=2).other_host for rank in (0, 1)] == ["node2", "node1"]
    assert party(0).other_host is None


def test_clusters_that_share_a_home_folder_have_files_of_their_own():
    tokens = {
        party(0, **more).token for more in ({}, {"SLURM_CLUSTER_NAME": "a"}, {"SLURM_CLUSTER_NAME": "b"})
    }
    assert len(tokens) == 3


@pytest.mark.parametrize("listens", [False, True])
def test_a_file_that_an_earlier_start_has_left_is_not_taken_for_this_one(names, capsys, listens):
    """A job that was requeued: nobody is at the other end, or a program that does not know the secret."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        closing = threading.Thread(target=lambda: other.accept()[0].close())
        if listens:
            closing.start()
        else:
            other.close()
        StartFile(party(1).token).write(Start("127.0.0.1", port, "ab" * 32))
        assert meet_all([party(rank) for rank in (1, 0)]) == {0: b"1", 1: b"0"}
    assert capsys.readouterr().err == ""


def test_a_worker_that_finds_no_rank_0_where_the_file_says_so_names_both(names):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    StartFile(party(1).token).write(Start("127.0.0.1", port, "ab" * 32))
    with pytest.raises(
        WorkerError, match=rf"task 0 of Slurm step .* to answer on 127.0.0.1, port {port}, as "
    ):
        meet(party(1), 0.3, None)


def test_a_worker_refuses_a_file_that_others_may_read(names):
    file = StartFile(party(1).token)
    file.write(Start("127.0.0.1", 1, "ab" * 32))
    file.path.chmod(0o644)
    with pytest.raises(InputError, match="others may use it"):
        meet(party(1), 60, None)


def test_task_0_in_an_interactive_shell_says_at_once_for_whom_it_waits(names, capsys, monkeypatch, folder):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))

    class Later:
        """A stop that is requested once the wait has been announced."""

        @property
        def requested(self):
            said.append(capsys.readouterr().err)
            return "waiting" in "".join(said)

    said = []
    with pytest.raises(Stopped, match="stopped while waiting for task 1 of Slurm step"):
        meet(party(0), 60, Later())
    assert "".join(said).startswith(
        f"hpcdat: waiting for task 1 of Slurm step {os.getpid()}.3 (2 tasks on {HERE}) to run the same"
    )
    assert "unset SLURM_STEP_NUM_TASKS" in "".join(said)
    assert list(folder.iterdir()) == []


def test_a_wait_for_tasks_that_never_come_ends(names, folder):
    with pytest.raises(WorkerError, match=r"for tasks 1, 2, 3, 4, 5 and 1 more of Slurm step \d+\.3"):
        meet(party(0, size=7), 0.2, None)
    assert list(folder.iterdir()) == []
    with pytest.raises(
        WorkerError, match=rf"for task 0 of Slurm step .* the same command and write {folder}"
    ):
        meet(party(1, SLURM_STEP_ID="4"), 0.2, None)
    with pytest.raises(WorkerError, match=f"all nodes have to share this folder; {FOLDER} names another"):
        meet(party(1, nodes=2), 0.2, None)


def test_a_start_that_fails_listens_no_more(names, monkeypatch):
    written = []
    monkeypatch.setattr(StartFile, "write", lambda file, start: written.append(start))
    with pytest.raises(WorkerError):
        meet(party(0), 0.1, None)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((written[0].address, written[0].port))


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
    names.remove("node2")
    with pytest.raises(
        WorkerError, match=f"the name of node node2 does not resolve on {socket.gethostname()}"
    ):
        meet(party(0, nodes=2), 60, None)


def test_a_name_that_takes_long_is_said_and_bounded(monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(addresses, "SECONDS_TO_RESOLVE", 0.0)
    set_resolver(monkeypatch, lambda name: forever.wait())
    with pytest.raises(WorkerError, match="of waiting for the name of node node2 to resolve"):
        meet(party(0, nodes=2), 60, None)
    forever.set()
