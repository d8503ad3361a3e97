"""Another user of the cluster is at work while workers start: the run ends as if nobody had been there."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hpcdat.storage.run_folder import RunFolder
from tests.cluster.nodes import SETTINGS, same, wait_for, weights
from tests.conftest import CHECKOUT, DEMO

pytestmark = [pytest.mark.distributed, pytest.mark.full, pytest.mark.timeout(600)]

SCRIPT = """\
#!/bin/bash
#SBATCH --nodes=3 --ntasks-per-node=1 --output={log}
srun bash -c 'until [ $SLURM_PROCID != 2 ] || [ -e {gate} ]; do sleep 0.1; done; exec "$@"' task \\
    {python} -m hpcdat train {job} --set {settings}
"""
"""The third task waits for the stranger."""


@pytest.fixture
def shared():
    """A folder that anybody may read, as pytest's is not."""
    with tempfile.TemporaryDirectory(prefix="hpcdat-stranger-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def start(cluster, folder, engine):
    """Submit a training; the file of its start is in ``folder``/starts."""
    gate, log = folder / "gate", folder / "log"
    settings = [*SETTINGS, "epochs=2", f"run_dir={folder}/run", f"engine={engine}"]
    script = folder / "job.sh"
    script.write_text(
        SCRIPT.format(log=log, gate=gate, python=sys.executable, job=DEMO, settings=" ".join(settings))
    )
    variables = f"--export=ALL,HPCDAT_STARTS={folder}/starts"
    cluster.do("sbatch", "--parsable", variables, str(script))
    return gate, log


def stranger(cluster, node, *arguments):
    command = cluster.box.inside(node, [sys.executable, "-m", "tests.cluster.stranger", *map(str, arguments)])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=CHECKOUT, env=cluster.environment, **pipes)


def finished(folder, log):
    run = RunFolder(folder / "run")
    wait_for(lambda: run.metrics("finished"), log=lambda: log.read_text() if log.exists() else "")
    return weights(run)


@pytest.mark.parametrize("engine", ["horovod", "torch"])
def test_a_stranger_changes_nothing(cluster, shared, engine):
    peace, fire = shared / "peace", shared / "fire"
    peace.mkdir()
    fire.mkdir()
    gate, log = start(cluster, peace, engine)
    gate.touch()
    expected = finished(peace, log)
    assert "refused" not in log.read_text()

    gate, log = start(cluster, fire, engine)
    wait_for(lambda: list(fire.glob("starts/*.json")), log=log.read_text)
    (file,) = fire.glob("starts/*.json")
    place = json.loads(file.read_text())
    assert place["address"] == cluster.box.address(1), "not on all addresses"
    on_the_store = stranger(cluster, 4, "store", place["address"], place["port"], file)
    on_proxies = stranger(cluster, 1, "proxies")
    said = json.loads(on_the_store.stdout.readline())
    assert said == {"file": "PermissionError", "read": "b''", "overwrite": "b''", "join": "Refused"}
    assert json.loads(on_the_store.stdout.readline()) == {"flood": 1000}
    gate.touch()
    assert same(finished(fire, log), expected)
    on_the_store.stdin.close()
    on_proxies.stdin.close()
    assert on_the_store.wait(60) == 0
    attacked = json.loads(on_proxies.stdout.readline())
    assert on_proxies.wait(60) == 0
    assert attacked["answers"] == [] and attacked["tried"] >= (engine == "horovod")
    text = log.read_text()
    address = cluster.box.address(4)
    assert text.count(f"hpcdat: refused a connection from {address} to the store of Slurm step") == 1, text
    assert text.count("refused a connection from another process on node1") == (engine == "horovod"), text
    assert list(fire.glob("starts/*")) == []
