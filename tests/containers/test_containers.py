"""Images: what they are built from, and that building them needs no network."""

import os
import re
import subprocess
import zipfile

import pytest

from tests.conftest import CHECKOUT
from tests.distributed.ranks import BIN
from tests.slurm.test_submit import SHELLCHECK

CONTAINERS = CHECKOUT / "containers"
DOCKERFILE, DEFINITION = (CONTAINERS / name for name in ("Dockerfile", "hpcdat.def"))


def test_both_images_have_one_base_and_are_installed_and_checked_by_the_same_scripts():
    docker, apptainer = DOCKERFILE.read_text(), DEFINITION.read_text()
    (base,) = re.findall(r"(?m)^ARG BASE=(\S+)$", docker)
    assert re.findall(r"(?m)^ +base=(\S+)$", apptainer) == [base] and re.fullmatch(
        r"python:3\.11\.\d+-\w+", base
    )
    for text in (docker, apptainer):
        assert "bash /opt/install.sh /opt/wheels /opt/hpcdat" in text and "python /opt/check.py" in text
        assert not re.search(r"apt-get|curl|wget|git clone|https?:", text), "a command that needs a network"
    (user,) = re.findall(r"(?m)^USER (\S+)$", docker)
    assert int(user) > 0, "the image runs as root"


def test_the_scripts_are_sound():
    scripts = sorted(CONTAINERS.glob("*.sh"))
    assert len(scripts) == 2
    done = subprocess.run([SHELLCHECK, "--severity=style", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_wheels_are_not_committed():
    done = subprocess.run(["git", "check-ignore", "--quiet", "containers/wheels/x.whl"], cwd=CHECKOUT)
    assert done.returncode == 0


def wheel(folder, name, version, *requires):
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"version = '{version}'\n")
        needed = "".join(f"Requires-Dist: {each}\n" for each in requires)
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}"
        )
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.full
def test_the_installation_needs_no_network_and_no_index(tmp_path):
    """With a package of two wheels in place of hpcdat and its hundred."""
    wheels, extra = tmp_path / "wheels", tmp_path / "extra"
    wheels.mkdir(), extra.mkdir()
    wheel(wheels, "hpcdat", "0.2.0", "needed")
    wheel(wheels, "needed", "1")
    wheel(wheels, "needed", "2")
    wheel(extra, "needed", "3")
    (wheels / "packages.txt").write_text("hpcdat\n")
    (wheels / "constraints.txt").write_text("needed==1\n")
    variables = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path), "PIP_FIND_LINKS": str(extra)}
    no_network = ["unshare", "--net"] if os.geteuid() == 0 else []

    def install(name):
        command = [*no_network, "bash", str(CONTAINERS / "install.sh"), str(wheels), str(tmp_path / name)]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200)

    done = install("environment")
    assert done.returncode == 0, done.stderr
    command = [
        tmp_path / "environment" / "bin" / "python",
        "-c",
        "import hpcdat, needed; print(needed.version)",
    ]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "1\n"
    (wheels / "needed-1-py3-none-any.whl").unlink()
    done = install("other")
    assert done.returncode != 0 and "depends on needed" in done.stdout + done.stderr
