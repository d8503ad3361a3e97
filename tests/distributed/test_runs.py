"""Whole runs from the command line, under every launcher: what they leave, and what they refuse."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from hpcdat.data.digits import write_digits
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT, DEMO, run_here
from tests.distributed.command_line import HPCDAT, hpcdat, short, weights
from tests.distributed.ranks import environment, launcher, on

pytestmark = pytest.mark.distributed


def test_a_run_leaves_job_environment_metrics_checkpoint_and_table(finished):
    run_dir, done = finished
    assert str(run_dir) in done.stdout and "RA (%)" in done.stdout
    assert "\r" not in done.stderr, "no progress bar outside a terminal"
    folder = RunFolder(run_dir)
    job = folder.read_job([])
    assert job.attack.step_size == pytest.approx(2.5 * 0.2 / 2) and job.epochs == 2
    record = json.loads(folder.environment_file.read_text())
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]
    assert record["horovod"]["mpi"] and record["horovod"]["gloo"]
    assert [worker["host"] for worker in record["workers"]] == [socket.gethostname()] * 2
    assert (record["transport"], record["launcher"], record["nodes"]) == ("MPI", "mpirun", 1)
    epochs = folder.metrics("epoch")
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert all(0 < line["communication_seconds"] < line["total_seconds"] for line in epochs)
    assert all(line["images"] == 1400 for line in epochs)
    result = folder.read_result()
    assert (result.method, result.p, result.q, result.images, result.epoch) == ("dat-pgd", 1, 2, 397, 2)
    size = sum(t.numel() for name, t in weights(run_dir).items() if name.endswith(("weight", "bias"))) * 4
    assert result.megabytes == pytest.approx(2 * size / 2**20)
    assert folder.table_file.read_text().strip() in done.stdout


def test_evaluate_finds_the_same_again_with_another_number_of_workers(finished, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    before = RunFolder(run_dir).read_result()
    done = run_here("evaluate", run_dir)
    assert done.returncode == 0, done.stderr
    assert RunFolder(run_dir).read_result() == before
    done = run_here("report", run_dir, run_dir)
    assert done.returncode == 0 and f"{100 * before.ra:.2f}" in done.stdout


@on("MPI 2")
def test_two_identical_runs_give_bit_identical_weights(finished, tmp_path, team):
    """The second one in processes that have run other programs before."""
    run_dir, _ = finished
    team.run("training.train_job", *short(tmp_path / "again")[2:])
    first, second = weights(run_dir), weights(tmp_path / "again")
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    team.run("training.train_job", *short(tmp_path / "other", "seed=1")[2:])
    assert not torch.equal(first["1.classifier.weight"], weights(tmp_path / "other")["1.classifier.weight"])


@pytest.mark.full
def test_horovodrun_and_torchvision_train_too(tmp_path):
    arguments = short(tmp_path / "run", "data.loader=torchvision", "method=dat-fgsm", "attack.steps=1")
    done = hpcdat("train", *arguments, prefix=launcher("Gloo", 2))
    assert done.returncode == 0, done.stderr
    record = json.loads(RunFolder(tmp_path / "run").environment_file.read_text())
    assert (record["transport"], record["launcher"]) == ("Gloo", "horovodrun")


@on("MPI 2")
def test_a_run_goes_on_over_the_other_engine_with_the_same_bits(finished, tmp_path, team):
    run_dir = tmp_path / "run"
    settings = short(run_dir)[2:]
    assert team.run("training.train_and_stop", 17, *settings) == ["stopped in epoch 2, step 3"] * 2
    # A stopped run holds its folder until its processes have ended.
    team.end()
    done = hpcdat("train", *short(run_dir), "-np", 2, "engine=torch")
    assert done.returncode == 0, done.stderr
    assert "resuming from epoch 1, step 3 " in done.stdout
    assert done.stdout.count("last trained over Horovod, and continues over torch.distributed: ") == 1
    assert "the sums of two workers are the same, bit for bit" in done.stdout
    first, second = weights(finished[0]), weights(run_dir)
    assert all(torch.equal(first[name], second[name]) for name in first)
    record = json.loads(RunFolder(run_dir).environment_file.read_text())
    assert (record["engine"], record["transport"], record["launcher"]) == ("torch", "Gloo", "hpcdat -np")


@pytest.fixture
def without_horovod(tmp_path):
    """An environment in which Horovod and mpi4py cannot be imported."""
    for name in ("horovod", "mpi4py"):
        package = tmp_path / "hidden" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise ImportError('{name} is hidden')")
    return {"PYTHONPATH": f"{tmp_path}/hidden:{CHECKOUT}"}


def check_without_horovod(finished, run_dir, launcher):
    record = json.loads(RunFolder(run_dir).environment_file.read_text())
    assert (record["engine"], record["horovod"], record["launcher"]) == ("torch", None, launcher)
    first, second = weights(finished[0]), weights(run_dir)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "prefix, arguments, name",
    [
        (launcher("torch", 2), [], "torchrun"),
        pytest.param([], ["-np", "2"], "hpcdat -np", marks=pytest.mark.full),
    ],
    ids=["torchrun", "-np"],
)
def test_two_workers_train_without_horovod(finished, tmp_path, without_horovod, prefix, arguments, name):
    """The weights are those that MPI gives."""
    arguments = [*short(tmp_path / "run"), *arguments]
    done = hpcdat("train", *arguments, prefix=prefix, env=environment() | without_horovod)
    assert done.returncode == 0, done.stderr
    check_without_horovod(finished, tmp_path / "run", name)


def slurm_task(rank, size):
    """What srun tells a task; there is no PMI, no MPI and no Horovod variable."""
    return environment() | {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": socket.gethostname(),
        "SLURM_STEP_TASKS_PER_NODE": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
    }


@pytest.mark.parametrize("engine", ["horovod", "torch"])
def test_tasks_of_srun_find_each_other(finished, tmp_path, without_horovod, engine):
    command = [*HPCDAT, "train", *map(str, short(tmp_path / "run"))]
    variables = without_horovod if engine == "torch" else {}
    tasks = [
        subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=slurm_task(rank, 2) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    outputs = [task.communicate(timeout=200) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert RunFolder(tmp_path / "run").read_result().q == 2
    assert outputs[0][0] == "", "only worker 0 talks"
    if engine == "torch":
        check_without_horovod(finished, tmp_path / "run", "srun")


@pytest.mark.parametrize("prefix", [[], ["-np", "2"], launcher("MPI", 2)], ids=["alone", "-np 2", "mpirun"])
def test_a_wrong_job_is_refused_once_and_nothing_is_written(tmp_path, prefix):
    np, outer = (prefix, []) if prefix[:1] == ["-np"] else ([], prefix)
    arguments = ["train", *short(tmp_path / "run", "attack.epz=0.1"), *np]
    done = hpcdat(*arguments, prefix=outer) if prefix else run_here(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("attack.epz: unknown key; did you mean 'eps'?") == 1
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def by_rank(first, other):
    """A command that hands worker 0 on to one shell line, and the others to another."""
    choice = f'if [ "$OMPI_COMM_WORLD_RANK" = 0 ]; then {first}; else {other}; fi'
    return [*launcher("MPI", 2), "sh", "-c", f'{choice}; exec "$0" "$@"']


def test_a_wrong_job_is_told_though_worker_0_comes_to_it_last(tmp_path):
    done = hpcdat("train", *short(tmp_path / "run", "attack.epz=0.1"), prefix=by_rank("sleep 2", ":"))
    assert done.returncode == 2
    assert done.stderr.count("attack.epz: unknown key") == 1 and "worker 1" not in done.stderr


SOON = """
from hpcdat.cli import main, worker_process

worker_process.SECONDS_FOR_RANK0 = 1
main()
"""
"""The command hpcdat, whose worker waits for rank 0's report for a second instead of ten."""


def test_what_one_worker_alone_cannot_read_is_told_by_that_one(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "job.yaml").write_bytes(DEMO.read_bytes())
    (tmp_path / "away").mkdir()
    prefix = by_rank(f"cd {tmp_path}/here", f"cd {tmp_path}/away")
    command = [*prefix, sys.executable, "-c", SOON, "train", "job.yaml", "--set", f"run_dir={tmp_path}/run"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"worker 1 on {socket.gethostname()}: job.yaml" in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_missing_data_is_wrong_input_and_nothing_is_written(tmp_path, workers):
    settings = ["data.source=folder", f"data.root={tmp_path}/nowhere"]
    arguments = ["train", *short(tmp_path / "run", *settings)]
    done = run_here(*arguments) if workers == 1 else hpcdat(*arguments, "-np", workers)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("nowhere/train: No such file or directory") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(finished, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    damaged = RunFolder(run_dir).checkpoints.epoch_file
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    done = run_here("evaluate", run_dir, "--set", "evaluation.steps=1")
    assert done.returncode == 0
    assert "epoch.pt: damaged" in done.stderr and "using the previous checkpoint" in done.stderr


def test_several_seeds_and_their_mean(tmp_path):
    arguments = ["train", *short(tmp_path / "runs", "epochs=1"), "--seeds", 2]
    done = run_here(*arguments)
    assert done.returncode == 0, done.stderr
    results = [RunFolder(tmp_path / "runs" / f"seed-{seed}").read_result() for seed in (0, 1)]
    mean = 50 * (results[0].ra + results[1].ra)
    assert [r.seed for r in results] == [0, 1] and results[0].ra != results[1].ra
    table = (tmp_path / "runs" / "result.md").read_text()
    assert f"{mean:.2f} ± " in table and table.strip() in done.stdout
    report = run_here("report", tmp_path / "runs")
    assert report.stdout.startswith(table.strip())
    again = run_here(*arguments)
    assert (
        again.returncode == 0 and again.stdout.count("is finished") == 2 and f"{mean:.2f} ± " in again.stdout
    )


@pytest.fixture
def corrupt(tmp_path):
    """Digits of which one training and one test image cannot be read; that training image."""
    write_digits(tmp_path / "digits")
    torn = sorted((tmp_path / "digits" / "train" / "3").iterdir())[5]
    torn.write_bytes(b"\x89PNG torn")
    (tmp_path / "digits" / "test" / "4" / "void.png").write_bytes(b"")
    return torn


def test_a_corrupt_image_ends_the_run_on_all_workers(tmp_path, corrupt):
    settings = [f"data.root={tmp_path}/digits", "evaluation.steps=1"]
    done = hpcdat("train", *short(tmp_path / "run", *settings), "-np", 2)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{corrupt}: cannot be read as an image" in done.stderr and "data.corrupt: skip" in done.stderr


@on("MPI 2")
@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_a_corrupt_image_is_skipped_and_counted(tmp_path, corrupt, team, loader):
    settings = [f"data.root={tmp_path}/digits", f"data.loader={loader}", "evaluation.steps=1"]
    refused = run_here("train", *short(tmp_path / "refused", *settings))
    assert refused.returncode == 2 and f"{corrupt}: cannot be read as an image" in refused.stderr
    answers = team.run("training.train_job", *short(tmp_path / "run", *settings, "data.corrupt=skip")[2:])
    assert sum(f"{corrupt}: cannot be read as an image" in answer["stderr"] for answer in answers) == 1
    epochs = RunFolder(tmp_path / "run").metrics("epoch")
    assert [(line["images"], line["skipped_images"]) for line in epochs] == [(1399, 1)] * 2
    assert RunFolder(tmp_path / "run").read_result().images == 397


def test_a_run_folder_is_not_written_over(finished, tmp_path):
    run_dir, _ = finished
    before = RunFolder(run_dir).result_file.read_text()
    done = run_here("train", *short(run_dir))
    assert done.returncode == 0 and "is finished; --overwrite starts it over" in done.stdout
    assert f"{100 * RunFolder(run_dir).read_result().ra:.2f}" in done.stdout
    done = run_here("train", *short(run_dir, "attack.eps=0.1"))
    assert done.returncode == 2 and "attack.eps: 0.2 -> 0.1" in done.stderr and "--overwrite" in done.stderr
    (tmp_path / "thesis.tex").write_text("years of work")
    done = run_here("train", *short(tmp_path), "--overwrite")
    assert done.returncode == 2 and "contains files that are not a run" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert RunFolder(run_dir).result_file.read_text() == before


def test_training_that_diverges_says_so_and_keeps_the_last_good_checkpoint(tmp_path):
    settings = ["method=plain", "optimizer.name=sgd", "optimizer.lr=1e30", "skipped_steps=3"]
    done = run_here("train", *short(tmp_path / "run", *settings))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "4 steps had a cost or gradient that is not finite" in done.stderr
    assert done.stdout.count("skipped by all workers") == 4
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run").values() if t.is_floating_point())
