"""Boxes for the tests."""

import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcdat.emulation import slurm_daemons
from hpcdat.emulation.cluster import BoxError, create_box, find_box, remove_box
from hpcdat.emulation.slurm_daemons import SlurmError
from tests.cluster.nodes import TIMEOUTS, Cluster
from tests.conftest import run_here


@contextmanager
def making_boxes():
    names = []

    def make(**choices):
        name = f"test-{uuid.uuid4().hex[:8]}"
        names.append(name)
        try:
            return create_box(name, **choices)
        except (BoxError, SlurmError) as error:
            pytest.skip(f"NO CLUSTER IN A BOX HERE: {error}")

    try:
        yield make
    finally:
        for name in names:
            if find_box(name):
                remove_box(name)


@pytest.fixture
def make_box():
    """Makes boxes with names of their own, and takes them away; skips, loudly, where none can be made."""
    with making_boxes() as make:
        yield make


@pytest.fixture(scope="session")
def cluster():
    """Four nodes with Slurm, for all tests, whose jobs want three; afterwards nothing of them is left."""
    with making_boxes() as make:
        made = Cluster(make(nodes=4, slurm=True, timeouts=TIMEOUTS))
        yield made
        folder = slurm_daemons.FOLDERS / made.box.name
        pids = [int(file.read_text()) for file in folder.glob("*.pid")]
        done = run_here("box", "down", made.box.name)
        assert done.returncode == 0, done.stderr
        assert len(pids) == 6, "munged, slurmctld and four slurmd"
        assert not folder.exists() and not any(is_alive(pid) for pid in pids)


@pytest.fixture(scope="session")
def undisturbed(cluster, tmp_path_factory):
    """The folder of a run that nothing happens to, handed to Slurm by the command."""
    job = cluster.submit_by_command(tmp_path_factory.mktemp("undisturbed") / "run")
    job.ends_well()
    return job.folder


@pytest.fixture(scope="session")
def with_mpirun(cluster, tmp_path_factory):
    """Options of ``hpcdat submit`` by which mpirun starts the workers."""
    profile = tmp_path_factory.mktemp("mpirun") / "site.yaml"
    profile.write_text(f"launcher: mpirun\ninterface: {cluster.box.address(0)}/24\n")
    return ["--site", str(profile)]


@pytest.fixture(scope="session")
def undisturbed_over_mpi(cluster, with_mpirun, tmp_path_factory):
    """As ``undisturbed``, over MPI: the sums of three workers are in another order."""
    job = cluster.submit_by_command(tmp_path_factory.mktemp("undisturbed") / "over mpi", *with_mpirun)
    job.ends_well()
    return job.folder


def is_alive(pid):
    """Whether it runs; one that has ended may wait for a parent to read its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
