"""Benchmarks in the queue: what their script runs, where the result is, and what is refused."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from hpcdat.slurm.benchmark import BENCHMARKS, find_benchmark, write_benchmark
from hpcdat.slurm.gpus import parse_gpus
from hpcdat.slurm.script import Resources
from hpcdat.slurm.site import Site
from tests.conftest import CHECKOUT, run_here
from tests.slurm.test_submit import NASTY, SHELLCHECK, SITES

COMMUNICATION = CHECKOUT / "benchmarks" / "communication.py"


def resources(**values):
    return Resources(**{"nodes": 6, "workers_per_node": 2, "gpus": parse_gpus("2"), "time": "30"} | values)


@pytest.mark.parametrize("site", SITES)
def test_the_script_is_sound_and_no_option_becomes_a_command(tmp_path, site):
    folder, options = tmp_path / NASTY, ["--rates", NASTY, "--min-bytes", "1K"]
    script, text = write_benchmark(COMMUNICATION, folder, Site(**SITES[site]), resources(), options)
    assert script == folder / "slurm" / "benchmark.sh" and script.read_text() == text
    command = [SHELLCHECK, "--severity=style", "--exclude=SC2016,SC1003", script]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + text
    # Run with a launcher that only prints its arguments.
    fake = re.sub(r"(?m)^launch=\(\S+", "launch=(printf '%s\\\\n'", text.replace("module load", "true"))
    assert "exec " in fake
    done = subprocess.run(
        ["bash", "-c", fake.replace("scontrol", "echo").replace("exec ", "")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "PATH": "/usr/bin:/bin", "HOME": "/h"},
    )
    lines = done.stdout.splitlines()
    expected = [str(COMMUNICATION), *options, "--json", str(folder / "result.json")]
    assert lines[-len(expected) :] == expected, done.stdout + done.stderr
    assert ("torch.distributed.run" in lines) is (site == "torchrun")
    assert not list(tmp_path.rglob("owned"))


def test_what_slurm_is_asked_for(tmp_path):
    _, text = write_benchmark(COMMUNICATION, tmp_path / "a 50% share", Site(), resources(after=[7]), [])
    directives = re.findall(r"(?m)^#SBATCH --(.*)$", text)
    assert directives == [
        "job-name=communication",
        "nodes=6",
        "ntasks-per-node=2",
        "gpus-per-node=2",
        "time=30",
        "dependency=afterok:7",
        f"chdir={Path.cwd()}",
        f"output='{tmp_path}/a 50%% share/slurm/%j.log'",
        "no-requeue",
    ]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_started_by_a_launcher_and_writes_json(name):
    usage = ast.get_docstring(ast.parse(find_benchmark(name).read_text()))
    assert "mpirun" in usage and "--json PATH" in usage


def submit(*arguments):
    return run_here("submit", "--benchmark", *arguments)


def test_the_command_says_where_the_result_will_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpcdat.cli.submit.submit_script", lambda script: 4711)
    done = submit("communication", "--nodes", "8", "--gpus-per-node", "8", "--", "--nodes", "3")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("benchmark-results/*")
    assert re.fullmatch(r"communication-\d{4}-\d\d-\d\d-\d{6}", folder.name)
    script = (folder / "slurm" / "benchmark.sh").read_text()
    assert f"{COMMUNICATION} --nodes 3 --json {folder}/result.json)" in script
    assert "# benchmark communication, 8 x 8 workers\n" in script and "--time=1:00:00\n" in script
    assert done.stdout.splitlines() == [
        "submitted job 4711: squeue -j 4711",
        f"script: {folder}/slurm/benchmark.sh",
        f"log: tail -F {folder}/slurm/4711.log",
        f"result, when done: hpcdat report --benchmark benchmark-results/{folder.name}/result.json",
    ]
    (folder / "result.json").write_text("{}")
    again = submit("communication", "--nodes", "2", "--out", folder)
    assert again.returncode == 2 and "choose another folder with --out" in again.stderr
    done = submit("epoch", "--nodes", "2", "--out", "here", "--batch", "9")
    assert done.stdout.splitlines()[-1].endswith(" hpcdat report --benchmark here/result.json")
    assert (
        f"epoch.py --batch 9 --json {tmp_path}/here/result.json)"
        in (tmp_path / "here" / "slurm" / "benchmark.sh").read_text()
    )


@pytest.mark.parametrize(
    ("profile", "option", "expected"),
    [
        ("time: 2-0", [], "1:00:00"),
        ("time: 20", [], "20"),
        ("time: 20", ["--time", "3:00:00"], "3:00:00"),
        ("{partition: debug, time: {debug: 30, gpu: 1-0}}", [], "30"),
    ],
)
def test_a_benchmark_takes_an_hour_or_what_the_profile_allows(tmp_path, profile, option, expected):
    site = tmp_path / "site.yaml"
    site.write_text(profile)
    done = submit("communication", "--nodes", "2", "--site", site, "--dry-run", *option)
    assert f"#SBATCH --time={expected}\n" in done.stdout, done.stderr


def test_a_dry_run_writes_nothing(tmp_path):
    done = submit("start", "--out", tmp_path / "new", "--dry-run")
    assert done.returncode == 0 and done.stdout.startswith("#!/bin/bash\n")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--benchmark comunication", "expected one of attack_step, autoattack, communication"),
        ("--benchmark ../x", "--benchmark ../x: expected one of"),
        ("--benchmark communication --seeds 2 --set a=b", "--set, --seeds: not allowed with --benchmark"),
        ("--benchmark communication --sweep a=1", "--sweep: not allowed with --benchmark"),
        ("--benchmark communication --command evaluate", "--command: not allowed with --benchmark"),
        (
            "--benchmark communication --nodes 2 -- --json=x",
            "--json: not allowed here; the result is written to ",
        ),
        ("--benchmark epoch", "epoch measures between workers and needs two or more: set --nodes"),
        ("--benchmark communication --time soon", "expected minutes"),
        ("", "expected a job, or --benchmark NAME"),
        ("jobs/demo.yaml --out x", "--out: only with --benchmark; the folder of a run is its run_dir"),
    ],
)
def test_wrong_input_is_refused_in_one_line(monkeypatch, arguments, message):
    monkeypatch.chdir(CHECKOUT)
    done = run_here("submit", *arguments.split())
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


def test_without_a_checkout_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcdat.slurm.benchmark.__file__", f"{tmp_path}/hpcdat/slurm/benchmark.py")
    done = submit("communication", "--nodes", "2")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{tmp_path}/benchmarks/communication.py does not exist" in done.stderr
    assert "run `make setup` in a clone" in done.stderr
