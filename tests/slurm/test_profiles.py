"""The profiles of clusters that come with hpcdat."""

import re
import subprocess

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.slurm.gpus import parse_gpus
from hpcdat.slurm.script import Resources
from hpcdat.slurm.site import SITES, Site, read_site
from hpcdat.slurm.submit import render_script
from tests.conftest import DEMO
from tests.slurm.test_submit import SHELLCHECK, job_in

NAMES = sorted(file.stem for file in SITES.glob("*.yaml"))
KINDS = [name for name in NAMES if name != "plain"]


@pytest.mark.parametrize("name", NAMES)
def test_every_launcher_gets_a_sound_script(tmp_path, name):
    profile = read_site(name).model_dump(exclude_defaults=True)
    scripts = []
    for launcher in ("srun", "srun --mpi=pmix", "mpirun", "horovodrun", "torchrun"):
        launcher, pmix, _ = launcher.partition(" --mpi=pmix")
        site = Site(**profile | {"launcher": launcher} | ({"mpi": "pmix"} if pmix else {}))
        for nodes in (1, 2):
            resources = Resources(nodes, 4, site.gpus or parse_gpus("4"), "1-0")
            script = tmp_path / f"{launcher}{pmix and '-pmix'}-{nodes}.sh"
            script.write_text(render_script(job_in(tmp_path / "run"), site, resources)[1])
            scripts.append(script)
            assert f"#SBATCH --nodes={nodes}\n" in script.read_text()
    assert len(scripts) == 10
    done = subprocess.run([SHELLCHECK, "--severity=style", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", KINDS)
def test_a_profile_is_chosen_by_its_name(name):
    command = ["submit", str(DEMO), "run_dir=/runs/x", "--nodes", "2", "--site", name, "--dry-run"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    for variable in read_site(name).environment:
        assert f"\nexport {variable}=" in done.stdout


@pytest.mark.parametrize("name", KINDS)
def test_every_variable_and_module_has_a_source(name):
    head, settings = re.match(r"((?:#.*\n)+)((?:.*\n)+)", (SITES / f"{name}.yaml").read_text()).groups()
    sources = re.findall(r"(?m)^# \[(\d)\] https://", head)
    assert sources == [str(number + 1) for number in range(len(sources))]
    sourced = re.findall(r"(?m)^(?:  (?:# )?[A-Z]+_\w+:|modules:|interface:).*$", settings)
    assert len(sourced) >= 2
    for line in sourced:
        numbers = re.search(r"# .*\[(\d(?:, \d)*)\]", line)
        assert numbers and set(numbers[1].split(", ")) <= set(sources), line


def test_pmix_chooses_mpi_and_its_network_card(tmp_path):
    def script(**profile):
        return render_script(job_in(tmp_path / "run"), Site(**profile), Resources(2, 1, None, "1-0"))[1]

    text = script(mpi="pmix", interface="ib0")
    assert "--mpi=pmix" in text and "\nexport HOROVOD_CONTROLLER=mpi\n" in text
    assert "\nexport OMPI_MCA_btl_tcp_if_include=ib0\n" in text
    assert "OMPI_MCA" not in script(mpi="pmix")
    own = script(mpi="pmix", interface="ib0", environment={"OMPI_MCA_pml": "ucx"})
    assert re.findall(r"export OMPI_MCA_pml=(\w+)", own) == ["ucx"]
    assert "--mpi=none" in script() and "HOROVOD_CONTROLLER" not in script(interface="ib0")
