"""The sdist and the wheel: what they hold, and that hpcdat works where only the wheel is."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import hpcdat
from tests.conftest import CHECKOUT

pytestmark = pytest.mark.full

FILES = ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")
PAPERS = ("CHANGELOG.md", "CITATION.cff")
NAME = f"hpcdat-{hpcdat.__version__}"


def run(*command, cwd, **environment):
    variables = {"PATH": os.environ["PATH"], "HOME": str(cwd), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist, and the wheel that is made from it; built without a network."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    for name in FILES + PAPERS:
        shutil.copy(CHECKOUT / name, copy)
    for folder in ("hpcdat", "jobs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / folder, copy / folder, symlinks=True, ignore=ignored)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), cwd=copy, PIP_NO_INDEX="1")
    return out


def test_both_hold_every_file_of_the_package_and_the_licence(built):
    listed = subprocess.run(
        ["git", "ls-files", "hpcdat", "jobs"], cwd=CHECKOUT, capture_output=True, text=True
    )
    files = {name for name in listed.stdout.splitlines() if name.startswith("hpcdat/")} - {"hpcdat/jobs"}
    files |= {f"hpcdat/{name}" for name in listed.stdout.splitlines() if name.startswith("jobs/")}
    assert {"hpcdat/py.typed", "hpcdat/jobs/demo.yaml", "hpcdat/slurm/sites/plain.yaml"} < files
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files
        licence = wheel.read(f"{NAME}.dist-info/licenses/LICENSE")
        assert "License: Apache-2.0\n" in wheel.read(f"{NAME}.dist-info/METADATA").decode()
    assert licence == (CHECKOUT / "LICENSE").read_bytes()
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        held = {name.removeprefix(f"{NAME}/") for name in sdist.getnames() if sdist.getmember(name).isfile()}
    generated = {name for name in held if name.startswith("hpcdat.egg-info/")} | {"PKG-INFO"}
    assert held - generated == files | {*FILES, *PAPERS}


def install(how, wheel, folder):
    """Install the wheel by itself: the interpreter, the command that starts hpcdat, and their variables.

    torch and the other packages are those of this environment: a path file lets the empty one find them.
    """
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check"]
    own = ["install", "--quiet", "--no-deps", "--no-index"]
    packages = sysconfig.get_path("purelib")
    if how == "target":
        run(*pip, *own, "--target", str(folder), str(wheel), cwd=folder.parent)
        return sys.executable, [sys.executable, "-m", "hpcdat"], {"PYTHONPATH": str(folder)}
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder.parent)
    run(*pip, "--python", str(folder / "bin" / "python"), *own, str(wheel), cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{packages}\n")
    return folder / "bin" / "python", [folder / "bin" / "hpcdat"], {}


@pytest.mark.parametrize("how", ["environment", "target"])
def test_the_wheel_alone_lists_jobs_trains_submits_plans_and_reports(how, built, tmp_path):
    python, command, variables = install(how, built / f"{NAME}-py3-none-any.whl", tmp_path / "installed")
    work = tmp_path / "work"
    work.mkdir()

    def hpcdat_(*arguments):
        return run(*command, *arguments, cwd=work, **variables)

    where = run(python, "-c", "import hpcdat; print(hpcdat.__file__)", cwd=work, **variables)
    assert Path(where).is_relative_to(tmp_path / "installed")
    assert hpcdat_("--version") == f"hpcdat {hpcdat.__version__}\n"
    assert hpcdat_("jobs", "copy", "demo") == "written: demo.yaml\n"
    short = ["epochs=1", "attack.steps=1", "evaluation.steps=1", "schedule.decay_epochs=[]"]
    trained = hpcdat_("train", "demo.yaml", *short)
    assert "| dat-pgd " in trained and Path(work, "runs", "demo", "result.json").exists()
    script = hpcdat_("submit", "demo.yaml", "--dry-run", "--nodes", "2", "run_dir=runs/queued")
    assert script.startswith("#!/bin/bash") and "#SBATCH --nodes=2" in script
    assert "MiB" in hpcdat_("plan", "demo.yaml", "--bytes")
    ta = json.loads((work / "runs" / "demo" / "result.json").read_text())["ta"]
    reported = hpcdat_("report", "runs/demo")
    assert "| dat-pgd " in reported and f"| {100 * ta:.2f} [" in reported
    assert "written: page/report.html\n" in hpcdat_("report", "runs/demo", "--out", "page")
