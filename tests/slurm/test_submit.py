"""Scripts for sbatch: valid shell for all values of a job, and what they request from Slurm."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.config.job_file import JobError, read_job
from hpcdat.errors import InputError
from hpcdat.slurm.gpus import parse_gpus
from hpcdat.slurm.preemption import decide
from hpcdat.slurm.script import Resources
from hpcdat.slurm.site import Site, read_site
from hpcdat.slurm.submit import Task, array_tasks, render_script, write_script
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT, DEMO
from tests.distributed.ranks import environment

SHELLCHECK = Path(sys.executable).parent / "shellcheck"
NASTY = "a b'c\"d$(touch owned)`touch owned`%j;&\\"
SITES = {
    "plain": {},
    "everything": {
        "launcher": "mpirun",
        "partition": "gpu,long",
        "account": "me@lab",
        "cpus_per_worker": 4,
        "modules": ["gcc/13", "cuda/13.0"],
        "container": ["apptainer", "exec", "--nv", "/images/my image.sif"],
        "python": "/opt/hpc dat/bin/python",
        "interface": "10.0.0.0/24",
        "environment": {"NCCL_IB_HCA": "mlx5 $(touch owned)"},
        "sbatch": {"exclusive": None, "comment": NASTY, "nice": "5"},
    },
    "horovodrun": {"launcher": "horovodrun", "interface": "eth0"},
    "torchrun": {
        "launcher": "torchrun",
        "interface": "eth0",
        "cpus_per_worker": 4,
        "container": ["apptainer", "exec", "/images/my image.sif"],
        "python": "python3",
    },
    "set up": {
        "cpus_per_worker": 2,
        "setup": ["export A='1'  # one", "source /dev/null"],
        "environment": {"TORCH_HOME": "$PATH/torch", "NASTY": NASTY},
        "container": ["env", "A=$PATH"],
        "python": "~/$PATH/python",
        "sbatch": {"gres": "gpu:a100:2"},
    },
}


def job_in(run_dir):
    return read_job(DEMO).model_copy(update={"run_dir": run_dir})


def resources(**values):
    given = {"nodes": 6, "workers_per_node": 2, "gpus": parse_gpus("2"), "time": "1-0"} | values
    return Resources(**given)


@pytest.fixture(params=SITES)
def site(request):
    return Site(**SITES[request.param])


@pytest.mark.parametrize("array", [False, True])
def test_the_script_is_sound_and_no_value_becomes_a_command(tmp_path, site, array):
    run_dir = tmp_path / NASTY
    tasks = [Task(run_dir / "seed-0", ("seed=0", f"model.name={NASTY}"))] * 2 if array else []
    script, text = write_script(job_in(run_dir), site, resources(), tasks)
    assert script == run_dir / "slurm" / "job.sh" and script.read_text() == text
    # These two ask whether a $ and a backslash in single quotes are meant as they stand: they are.
    command = [SHELLCHECK, "--severity=style", "--exclude=SC2016,SC1003", script]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + text
    # Run with a launcher that only prints its arguments.
    fake = re.sub(r"(?m)^launch=\(\S+", "launch=(printf '%s\\\\n'", text.replace("module load", "true"))
    done = subprocess.run(
        ["bash", "-c", fake.replace("scontrol", "echo")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            "SLURM_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "1",
            "SLURM_JOB_NODELIST": "n",
            "PATH": "/usr/bin:/bin",
            "HOME": "/h",
        },
    )
    lines = done.stdout.splitlines()
    expected = str(run_dir / "seed-0" if array else run_dir)
    assert f"run_dir={json.dumps(expected)}" in lines, done.stdout + done.stderr
    assert not array or f"model.name={NASTY}" in lines
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("control", ["\n", "\r", "\x1b"])
def test_a_folder_that_would_end_the_comment_it_stands_in_is_refused(tmp_path, monkeypatch, control):
    nasty = tmp_path / f"a{control}touch owned #"
    with pytest.raises(InputError, match=r"control characters .* sbatch --output; rename"):
        write_script(job_in(nasty), Site(), resources())
    nasty.mkdir()
    monkeypatch.chdir(nasty)
    with pytest.raises(InputError, match=r"control characters .* sbatch --chdir; rename"):
        write_script(job_in(tmp_path / "run"), Site(), resources())
    assert not (tmp_path / "run").exists()


def test_a_script_in_the_queue_keeps_its_settings_when_others_are_submitted(tmp_path):
    job = job_in(tmp_path / "run")
    _, queued = write_script(job, Site(), resources())
    write_script(job.model_copy(update={"epochs": 7}), Site(), resources())
    (its_job,) = re.findall(r"hpcdat train (\S+)", queued)
    assert read_job(Path(its_job)) == job


def test_what_slurm_is_asked_for(tmp_path):
    site = Site(**SITES["everything"])
    _, text = render_script(job_in(tmp_path / "run"), site, resources(after=[7, 8]))
    directives = re.findall(r"(?m)^#SBATCH --(.*)$", text)
    for expected in (
        "nodes=6",
        "ntasks-per-node=2",
        "gpus-per-node=2",
        "time=1-0",
        "partition=gpu,long",
        "dependency=afterok:7:8",
        "signal=B:USR1@120",
        "requeue",
        "exclusive",
        "nice=5",
        f"output={tmp_path}/run/slurm/%j.log",
    ):
        assert expected in directives, text
    assert "-np 12 --map-by ppr:2:node" in text and "module load gcc/13 cuda/13.0" in text
    assert not (tmp_path / "run").exists(), "a dry run writes nothing"
    cpu = render_script(job_in(tmp_path / "run"), Site(), resources(gpus=None))[1]
    assert "gpus" not in cpu and "srun --ntasks 12" in cpu


def test_an_array_has_every_value_with_every_seed(tmp_path):
    seen = []
    tasks = array_tasks(tmp_path, ["attack.eps=2/255,4/255", "epochs=3"], range(5, 7), seen.append)
    assert [str(task.run_dir.relative_to(tmp_path)) for task in tasks] == [
        "attack.eps=2_255/epochs=3/seed-5",
        "attack.eps=2_255/epochs=3/seed-6",
        "attack.eps=4_255/epochs=3/seed-5",
        "attack.eps=4_255/epochs=3/seed-6",
    ]
    assert seen[-1] == ("attack.eps=4/255", "epochs=3", "seed=6")
    assert array_tasks(tmp_path, [], range(1), seen.append) == []
    for values in ("/data/a,/data_a", "/data,/data"):
        with pytest.raises(InputError, match=r"root=/data.*root=/data.* have the same run folder"):
            array_tasks(tmp_path, [f"data.root={values}"], range(2), seen.append)
    with pytest.raises(InputError, match="expected KEY=VALUE,VALUE"):
        array_tasks(tmp_path, ["attack.eps"], range(1), seen.append)


@pytest.mark.parametrize(
    "text, message",
    [
        ("partition: 'a; rm'", "partition: 'a; rm'"),
        ("modules: ['$(x)']", r"modules.0: '\$\(x\)'"),
        ("laucher: srun", "did you mean 'launcher'"),
        ("environment: {A-B: x}", "environment.A-B"),
        ("launcher: mpirum", "expected one of srun, mpirun, horovodrun, torchrun; did you mean 'mpirun'"),
        ("[1]", "expected a mapping"),
        (
            "interface: 10.0.0.0/24",
            r"interface: expected a network card.*; srun accepts no subnet \(found '10.0.0.0/24'\)",
        ),
    ],
)
def test_an_invalid_profile_is_reported_with_its_place(tmp_path, text, message):
    profile = tmp_path / "mine.yaml"
    profile.write_text(text)
    with pytest.raises(JobError, match=f"mine.yaml(:1)?: .*{message}"):
        read_site(str(profile))


def test_an_unknown_site_is_refused_with_the_known_ones():
    assert read_site("plain") == Site()
    known = "cloud-ethernet, infiniband, plain, slingshot"
    with pytest.raises(
        InputError, match=f"--site mars: no such profile; expected a YAML file or one of: {known}"
    ):
        read_site("mars")


@pytest.mark.parametrize("time", ["soon", "1:2:3:4", "", "10; ls"])
def test_a_wrong_time_is_refused(time):
    with pytest.raises(InputError, match="expected minutes"):
        resources(time=time)


@pytest.mark.parametrize("time", ["1", "4", "4:59", "0:04:59", "0-0:4"])
def test_a_time_limit_that_leaves_no_time_to_train_is_refused(time):
    with pytest.raises(InputError, match=f"time limit {time}: expected 5 minutes or more"):
        resources(time=time)


@pytest.mark.parametrize("time", ["0", "5", "5:00", "0:05:00", "0-0:5", "1-0", "0-1", "12:00:00"])
def test_time_limits_as_sbatch_reads_them(time):
    assert resources(time=time).time == time


@pytest.mark.parametrize(
    "command, message",
    [
        ("submit --time 3", "5 minutes or more"),
        ("submit --nodes 2 --sweep method=dat-pgd,at", "method at is centralised training"),
        ("submit --nodes 3 smoothing.sigma=0.1 smoothing.workers=2", "3 workers cannot be divided"),
        ("plan --link 1gbit method=at", "this run has 2 nodes"),
        ("plan --link fast", "--link 'fast': expected a value like 1gbit"),
        ("submit method=trades", "trades is a value of objective.regulariser"),
        ("submit data.source=folder", "data.root: expected a folder with train/ and test/ in it"),
        ("submit model.name=tests.own_networks:Atention", "there is no Atention in"),
        ("plan --bytes model.name=tests.own_netwroks:Odd", "there is no module tests.own_netwroks"),
        ("submit concurrent.delay=1", "concurrent: not allowed with method dat-pgd"),
    ],
)
def test_what_would_fail_in_the_queue_is_refused_before_in_one_line(command, message):
    name, *options = command.split()
    done = CliRunner().invoke(app, [name, str(DEMO), *options])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and message in done.stderr


def test_what_goes_back_into_the_queue(tmp_path, monkeypatch):
    place = [3, 10]
    monkeypatch.setattr("hpcdat.slurm.preemption.progress", lambda run_dir: place)

    def again(code, warned=False):
        return decide(tmp_path, code, warned=warned)[0]

    assert not again(0) and not again(2)
    assert not again(75), "scancel must not bring it back"
    assert again(1), "the first failure"
    assert not again(1), "a second one at the same step"
    place = [3, 11]
    assert again(137), "it has come further"
    place = [3, 12]
    assert again(75, warned=True) and not again(1), "a stop in time is no progress"
    hint = "no further than the previous time; the time limit is too short for the next step or evaluation"
    assert hint in decide(tmp_path, 75, warned=True)[1]
    with monkeypatch.context() as other_job:
        other_job.setenv("SLURM_JOB_ID", "8")
        assert again(1), "the ends of an earlier submission do not count"
        (tmp_path / "slurm" / "code-8").write_text("2")
        assert not again(1) and again(0) is False, "horovodrun makes 1 of everything"
    assert not again(1)
    with (tmp_path / "slurm" / "ends.jsonl").open("a") as file:
        file.write('{"time": 17')
    assert not again(1), "a line cut off by the loss of a node is left out"
    assert not again(1), "and does not spoil the next one"
    (tmp_path / "slurm" / "ends.jsonl").unlink()
    (tmp_path / "slurm" / "code-8").unlink()
    (tmp_path / "slurm").rmdir()
    (tmp_path / "slurm").touch()
    again, reason = decide(tmp_path, 1, warned=False)
    assert not again and "ends.jsonl cannot be written" in reason


@pytest.mark.full
@pytest.mark.distributed
def test_slurms_warning_reaches_a_run_whose_launcher_passes_on_neither_signals_nor_exit_codes(tmp_path):
    """The script itself, with a real horovodrun and two workers; only Slurm is not there."""
    scontrol, log = tmp_path / "scontrol", tmp_path / "log"
    scontrol.write_text(f'#!/bin/sh\n[ "$1" = show ] && echo localhost || echo "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    run_dir = tmp_path / "run"
    job = read_job(DEMO, [f"run_dir={run_dir}", "epochs=500", "attack.steps=1", "evaluation.every=0"])
    script, _ = write_script(job, Site(launcher="horovodrun"), resources(nodes=1))
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with log.open("w") as out:
        process = subprocess.Popen(
            ["bash", script], cwd=CHECKOUT, env=environment() | variables, stdout=out, stderr=out
        )
        try:
            deadline = time.monotonic() + 200
            while not RunFolder(run_dir).metrics("epoch"):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            process.send_signal(signal.SIGUSR1)
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
    assert "hpcdat: requeue: stopped with a checkpoint: epoch" in log.read_text()
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


def test_what_follows_a_setting_that_is_swept_is_each_elements_own(tmp_path):
    """A step of FGSM is as long as the radius, of PGD 2.5 eps / steps: not that of the job's own radius."""
    job = CHECKOUT / "jobs" / "conadv" / "table-5" / "conadv-32k.yaml"
    command = ["submit", str(job), f"run_dir={tmp_path}/run", "--nodes", "2", "--dry-run"]
    done = CliRunner().invoke(app, [*command, "--sweep", "attack.eps=0,3/255,12/255"])
    assert done.exit_code == 0, done.output
    steps = re.findall(r"attack\.eps=(\S+)'? '?attack\.step_size=([\d.]+)", done.output)
    assert [float(step) * 255 for _, step in steps] == pytest.approx([0, 12])
    assert "attack.eps=3/255" in done.output
