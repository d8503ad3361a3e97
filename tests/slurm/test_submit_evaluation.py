"""Evaluations in the queue: what their script runs, what is refused, and when they are requeued."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job_file import read_evaluation_job, read_job, write_job
from hpcdat.slurm.preemption import decide
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, run_here
from tests.slurm.test_submit import SHELLCHECK

NASTY = "a b'c\"d$(touch owned)`touch owned`;&\\"


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    file = tmp_path / "job.yaml"
    file.write_text(
        f"run_dir: {json.dumps(str(tmp_path / NASTY))}\ndata: {{source: digits, channels: 1}}\n"
        "model: {name: digits-cnn, mean: [0.5], std: [0.5], pretrained: w.pth}\nevaluation: {eps: 0.1}\n"
    )
    return file


def arguments_of(text, tmp_path):
    """What the script hands to its launcher, which only prints it."""
    fake = re.sub(r"(?m)^launch=\(\S+", "launch=(printf '%s\\\\n'", text)
    done = subprocess.run(
        ["bash", "-c", fake.replace("scontrol", "true")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "PATH": "/usr/bin:/bin", "HOME": "/h"},
    )
    lines = done.stdout.splitlines()
    return lines[lines.index("hpcdat") :]


def test_given_weights_are_evaluated_with_the_options_of_the_command(job, tmp_path, monkeypatch):
    monkeypatch.setattr("hpcdat.cli.submit.submit_script", lambda script: 4711)
    options = ["--autoattack", "1000", "--sweep-eps=0,2/255", "--figure-3"]
    settings = ["evaluation.steps=7", f"data.root={NASTY.replace('$', '$$')}"]
    done = run_here("submit", job, "--command", "evaluate", "--nodes", "2", *settings, *options)
    assert done.returncode == 0, done.stderr
    assert "submitted job 4711" in done.stdout
    folder = RunFolder(tmp_path / NASTY)
    script = folder.slurm_folder / "evaluate.sh"
    # SC2054 takes a comma in a value for one between elements.
    checked = subprocess.run(
        [SHELLCHECK, "--exclude=SC2016,SC1003,SC2054", script], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    name, command, its_job, run_dir, *rest = arguments_of(script.read_text(), tmp_path)
    assert (name, command, rest) == ("hpcdat", "evaluate", options)
    assert not list(tmp_path.rglob("owned"))
    read = read_evaluation_job(Path(its_job), [run_dir])
    assert type(read) is EvaluationJob and read.run_dir == folder.path
    assert (read.evaluation.steps, str(read.data.root)) == (7, NASTY)
    assert not folder.contents(), "what is submitted is no evaluation yet"


@pytest.mark.parametrize("command", ["evaluate", "certify"])
def test_a_run_is_evaluated_in_its_folder(tmp_path, command):
    run_dir = tmp_path / "a run"
    run_dir.mkdir()
    RunFolder(run_dir).job_file.write_text(write_job(read_job(DEMO)))
    options = {"evaluate": ["--autoattack", "all"], "certify": ["--sigma", "0.5"]}[command]
    settings = ["evaluation.steps=7", "data.test_images=9"]
    submit = ["submit", run_dir, "--command", command, "--dry-run"]
    done = run_here(*submit, settings[0], *options, "--set", settings[1])
    assert done.returncode == 0, done.stderr
    assert arguments_of(done.stdout, tmp_path) == [
        *("hpcdat", command, str(run_dir)),
        *(settings[1], settings[0]),
        *options,
    ]
    assert f'preemption "$run_dir" "$code" "$warned" {command}' in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", "2"], "--seeds, --sweep, --at-once: not allowed with --command evaluate"),
        (["--sweep", "evaluation.eps=0.1,0.2"], "--seeds, --sweep, --at-once: not allowed with --command"),
        (["--autoattak", "9"], "--command evaluate: No such option: --autoattak"),
        (["--autoattack", "many"], "--autoattack many: expected a number of images, or all"),
        (["--autoattack"], "--command evaluate: Option '--autoattack' requires an argument"),
        (["-np", "2"], "-np: not allowed in a script"),
        (["model.pretrained=no.pth"], "model.pretrained: no.pth: there is no such file or folder"),
        (["evaluation.eps=null"], "evaluation.eps: missing"),
        (["--command", "train"], "method: missing"),
        (["--command", "certify", "--alpha", "2"], "certification.alpha: 2.0: expected less than 1"),
        (["--command", "certify", "--alpha", "much"], "--command certify: Invalid value for '--alpha'"),
    ],
)
def test_what_would_fail_in_the_queue_is_refused_before(job, tmp_path, arguments, message):
    done = run_here("submit", job, "--command", "evaluate", *arguments)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / NASTY).exists()


def test_an_unknown_option_of_a_training_is_refused():
    done = run_here("submit", DEMO, "--node", "2")
    assert done.returncode == 2 and "no such option: --node" in done.stderr


def test_an_evaluation_goes_back_into_the_queue_while_it_comes_further(tmp_path):
    folder = RunFolder(tmp_path)
    folder.outcomes_folder.mkdir()
    stored = folder.outcomes_folder / "accuracy-1234.jsonl.part-0"

    def again(code, warned=False):
        return decide(tmp_path, code, warned=warned, command="evaluate")

    assert again(75, warned=True) == (True, "stopped: 0 stored outcomes; it resumes from there")
    stored.write_text("1\n")
    assert again(75, warned=True) == (True, "stopped: 1 stored outcomes; it resumes from there")
    requeue, reason = again(1)
    assert not requeue and "failed (code 1): 1 stored outcomes, no further than the previous time" in reason
    folder.certification_folder.mkdir()
    (folder.certification_folder / "counts-1.jsonl").write_text("1\n2\n")
    assert again(1)[0]
    assert not again(0)[0] and not again(2)[0] and not again(75)[0]
