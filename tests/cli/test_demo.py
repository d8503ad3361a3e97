"""``hpcdat demo``: which commands it runs, and that they run."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hpcdat.cli import demo
from hpcdat.cli.app import app
from hpcdat.commands.shipped_jobs import FOLDER


class Started:
    """Stands in for the processes, which end with these codes."""

    def __init__(self, *codes):
        self.codes, self.commands = list(codes), []

    def __call__(self, command):
        self.commands.append(command[3:])
        return self

    def wait(self):
        return self.codes.pop(0)


@pytest.fixture
def started(monkeypatch):
    made = Started(0, 0, 0)
    monkeypatch.setattr(demo.subprocess, "Popen", made)
    return made


def test_the_demo_trains_twice_and_reports(started, tmp_path):
    done = CliRunner().invoke(app, ["demo", "-np", "3", "--out", str(tmp_path), "engine=torch"])
    assert done.exit_code == 0
    train = ["train", str(FOLDER / "demo.yaml"), "-np", "3", "--overwrite"]
    assert started.commands == [
        [*train, f"run_dir={tmp_path}/demo", "engine=torch"],
        [*train, "method=plain", f"run_dir={tmp_path}/demo-plain", "engine=torch"],
        ["report", f"{tmp_path}/demo", f"{tmp_path}/demo-plain"],
    ]
    assert done.stdout.count("$ hpcdat ") == 3


@pytest.mark.parametrize("code, exit_code", [(2, 2), (75, 75), (-9, 137)])
def test_a_training_that_fails_ends_the_demo_with_its_code(started, code, exit_code):
    started.codes = [code]
    assert CliRunner().invoke(app, ["demo"]).exit_code == exit_code
    assert len(started.commands) == 1


@pytest.mark.distributed
def test_two_workers_train_the_demo(tmp_path):
    """Over torch.distributed, as where nothing but the wheel is installed."""
    short = ["epochs=1", "attack.steps=1", "evaluation.steps=1", "engine=torch", "schedule.decay_epochs=[]"]
    command = [sys.executable, "-m", "hpcdat", "demo", "--out", str(tmp_path), *short]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("trained adversarially and trained plainly")[2]
    assert re.search(r"^\| dat-pgd +\| 1 x 2", table, re.M) and re.search(r"^\| plain +\| 1 x 2", table, re.M)
