"""Certification over several workers, killed and gone on with, from the command line and within."""

import shutil

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.commands.certify import certify
from hpcdat.config.job_file import read_job
from hpcdat.data import find_images
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model_for
from hpcdat.storage.checkpoint_format import Checkpoint
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, Never
from tests.distributed.programs.certification import certificates
from tests.distributed.programs.evaluation import fit
from tests.distributed.ranks import on
from tests.distributed.team import RanksFailed, Team

FEW = ["certification.n0=20", "certification.n=400", "certification.every=30", "certification.batch_size=150"]
"""14 of 397 digits."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run, as if its net had been trained."""
    folder = tmp_path_factory.mktemp("trained")
    job = read_job(DEMO, [f"data.root={folder / 'digits'}", f"run_dir={folder / 'run'}"])
    run = RunFolder(job.run_dir)
    run.begin(job, {}, overwrite=False)
    images, _ = find_images(job.data)
    model = fit(build_model_for(job, len(images.classes)), images, job)
    run.checkpoints.save(
        Checkpoint(
            model=model.state_dict(),
            optimizer={},
            epoch=1,
            step=0,
            workers=1,
            classes=images.classes,
            images=len(images),
        )
    )
    return run.path


@pytest.fixture
def copied(trained, tmp_path):
    """Makes a copy of that folder."""

    def copy(name):
        return shutil.copytree(trained, tmp_path / name)

    return copy


@pytest.fixture(scope="session")
def serial(trained, tmp_path_factory):
    """What one worker leaves, without a break."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("serial") / "run")
    certify(run, FEW, SingleProcess(), Never())
    return certificates(run)


@pytest.mark.distributed
@on("MPI 2")
def test_two_workers_leave_the_same_bytes_however_unlike_their_shares(copied, serial, team):
    """Rank 0 is done six seconds before the other, and may wait four without hearing of it."""
    answers = team.run("certification.certify_slowly", copied("run"), *FEW)
    assert len(serial) == 5 and answers == [serial] * 2


@pytest.mark.distributed
@on(full=["Gloo 3"])
def test_after_a_kill_other_workers_go_on_to_the_same_bytes(copied, serial, team):
    """Of two workers one is killed at image 390, its seventh."""
    run = copied("run")
    with Team("MPI", 2) as two, pytest.raises(RanksFailed, match="has ended"):
        two.run("certification.certify_and_die", run, 390, *FEW)
    (part,) = (run / "certification").glob("counts-0.12-*.part-1")
    assert len(part.read_text().splitlines()) == 6
    assert team.run("certification.certify", run, *FEW) == [serial] * 3


def test_another_alpha_needs_no_other_samples(copied):
    run = copied("run")
    certify(run, FEW, SingleProcess(), Never())
    before = {file: file.stat().st_mtime_ns for file in (run / "certification").glob("counts-*")}
    certify(run, [*FEW, "certification.alpha=0.01"], SingleProcess(), Never())
    assert len(before) == 2 and all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert "certification.alpha: 0.01" in (run / "certification" / "certified.md").read_text()


def test_the_command_line_prints_the_table(copied):
    run = copied("run")
    options = ["--sigma", "0.25", "--n0", "20", "--n", "300", "--every", "60"]
    done = CliRunner().invoke(app, ["certify", str(run), *options, "reproduces=[dat-2/dat-25]"])
    assert done.exit_code == 0, done.stderr
    assert (run / "certification" / "certified.md").read_text() in done.stdout
    assert "paper, DAT (N = 20)" in done.stdout and "n0 = 20 samples choose" in done.stdout
