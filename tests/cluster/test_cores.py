"""The cores of a worker under a Slurm that binds tasks to them."""

import os
import sys

import pytest

from hpcdat.config.job_file import read_job
from hpcdat.slurm.script import Resources
from hpcdat.slurm.site import Site
from hpcdat.slurm.submit import write_script
from tests.cluster.nodes import Cluster
from tests.conftest import DEMO, run_here


@pytest.mark.full
@pytest.mark.distributed
def test_a_worker_has_the_cores_that_its_profile_asks_for(make_box, tmp_path):
    """From Slurm 22.05 on, srun gives each worker one, whatever the job has."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("ONE CORE: cores of workers cannot be counted here")
    made = Cluster(make_box(nodes=1, slurm=True, bind_cores=True))
    python, seen = tmp_path / "python", tmp_path / "seen"
    python.write_text(
        f"#!{sys.executable}\nimport os, sys\nif 'hpcdat' in sys.argv:\n"
        f"    open({str(seen)!r}, 'w').write(str(len(os.sched_getaffinity(0))))\nelse:\n    sys.exit(1)\n"
    )
    python.chmod(0o755)
    job = read_job(DEMO, [f"run_dir={tmp_path}/run"])
    for asked, cores in [(None, "1"), (2, "2")]:
        site = Site(cpus_per_worker=asked, python=str(python))
        script, _ = write_script(job, site, Resources(1, 1, None, "30"))
        made.do("sbatch", "--wait", str(script))
        assert seen.read_text() == cores


def test_only_slurm_binds_cores():
    done = run_here("box", "up", "unbound", "--bind-cores")
    assert (done.returncode, done.stderr) == (2, "--bind-cores: not allowed without --slurm\n")
