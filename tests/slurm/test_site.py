"""Profiles of clusters: what they may hold, and what becomes of it in a batch script."""

import os
import re
import subprocess

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.config.job_file import JobError, read_job
from hpcdat.errors import InputError, WorkerError
from hpcdat.slurm.gpus import parse_gpus, parse_gres
from hpcdat.slurm.script import Resources
from hpcdat.slurm.shell import quote_expanding
from hpcdat.slurm.site import OPTIONS, OWN, PROFILE_KEYS, SITES, Site, read_site
from hpcdat.slurm.submit import Task, choose_gpus, render_script, submit_script
from tests.conftest import CHECKOUT, DEMO


@pytest.fixture
def profile(tmp_path):
    """Write a profile; answers its path."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def script(site, tmp_path, **resources):
    given = {"nodes": 2, "workers_per_node": 1, "gpus": site.gpus, "time": "30"} | resources
    job = read_job(DEMO).model_copy(update={"run_dir": tmp_path / "run"})
    tasks = [Task(tmp_path / "run", ())] * 3 if "at_once" in given else []
    return render_script(job, site, Resources(**given), tasks)[1]


def submit(*options):
    return CliRunner().invoke(app, ["submit", str(DEMO), "run_dir=/runs/x", "--dry-run", *options])


def directives(text):
    return re.findall(r"(?m)^#SBATCH --(.*)$", text)


def test_values_of_a_profile_are_as_they_are_written(profile):
    site = read_site(
        profile(
            "partition: 2024\naccount: 00123\ntime: 12:00:00\nmodules: [gcc/13, 1.10]\ncpus_per_worker: 4\n"
            "environment: {NCCL_IB_DISABLE: 1, A: true, B: 'no', C: 1.50, D: 010, ON: 0x1}\n"
            "sbatch: {mem: 4G, nice: 08, deadline: 12:00:00, begin: 2026-11-28, exclusive: }\n"
        )
    )
    assert (site.partition, site.account, site.time, site.cpus_per_worker) == ("2024", "00123", "12:00:00", 4)
    assert site.modules == ["gcc/13", "1.10"]
    assert site.environment == {
        "NCCL_IB_DISABLE": "1", "A": "true", "B": "no", "C": "1.50", "D": "010", "ON": "0x1",
    }  # fmt: skip
    assert site.sbatch == {
        "mem": "4G", "nice": "08", "deadline": "12:00:00", "begin": "2026-11-28", "exclusive": None,
    }  # fmt: skip


@pytest.mark.parametrize("time", ["12:00:00", "1-00:00:00", "30:00", "90", "1-0", "0"])
@pytest.mark.parametrize("form", ["time: {}", "sbatch: {{time: {}}}", "time: {{gpu: {}}}\npartition: gpu"])
def test_a_time_limit_is_as_it_is_written(profile, form, time):
    done = submit("--site", profile(form.format(time)))
    assert f"time={time}" in directives(done.stdout), done.output
    done = submit("--site", profile(form.format(time)), "--time", "45")
    assert "time=45" in directives(done.stdout) and done.stdout.count("#SBATCH --time") == 1


def test_a_partition_has_its_own_time_limit(profile):
    path = profile("partition: gpu\ntime: {gpu: 1-0, debug: 30, forever: 0}\n")
    assert "time=1-0" in directives(submit("--site", path).stdout)
    debug = directives(submit("--site", path, "--partition", "debug").stdout)
    assert "time=30" in debug and "partition=debug" in debug
    assert "time=30" in directives(submit("--site", path, "--partition", "gpu,debug,forever").stdout)
    assert "time=0" in directives(submit("--site", path, "--partition", "forever").stdout)
    other = submit("--site", path, "--partition", "long")
    assert (
        other.exit_code == 2 and "no limit for partition 'long', only for gpu, debug, forever" in other.stderr
    )
    assert "--partition 'a b': expected a name" in submit("--partition", "a b").stderr


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("time: soon", "mine.yaml:1: time: 'soon': expected minutes, HH:MM:SS or D-HH:MM"),
        ("time: 3", "time: 3: expected 5 minutes or more"),
        ("\nsbatch: {time: soon}", "mine.yaml:2: sbatch.time: expected minutes"),
        ("time: 30\nsbatch: {time: 40}", "mine.yaml:2: sbatch.time: not allowed with time (found 40)"),
        ("account: ~\npartition: [a]", "mine.yaml:2: partition: ['a']: expected text"),
        ("cpus_per_worker: yes", "cpus_per_worker: 'yes': expected a whole number, not the boolean yes"),
        ("cpus_per_worker: 0", "cpus_per_worker: 0: expected 1 or more"),
        ("moduls: [a]", "mine.yaml:1: moduls: unknown key; did you mean 'modules'?"),
        ("environment: {A: }", "mine.yaml:1: environment.A: null: expected text"),
        ("environment: {A: [1]}", "environment.A: ['1']: expected text"),
        ("environment: {A-B: x}", "environment.A-B: 'A-B': expected the name of an environment variable"),
        ("sbatch: {exclusive: true}", "sbatch.exclusive: expected no value, as in `exclusive:`,"),
        (
            "sbatch: {cpus_per_task: 4}",
            "sbatch.cpus_per_task: 'cpus_per_task': expected the long name of an opt",
        ),
        ("sbatch: {N: 4}", "sbatch.N: 'N': expected the long name of an option of sbatch"),
        ("sbatch: {sig: x}", "sbatch.sig: expected an option of sbatch in full; is it signal? (found 'x')"),
        ("sbatch: {gpu: 4}", "sbatch.gpu: expected an option of sbatch in full; is it gpus?"),
        ("sbatch: {gres: 'gpu:a:b:c'}", "sbatch.gres: expected GPUs as in gpu:4 or gpu:a100:4"),
        ("sbatch: {gpus-per-node: many}", "sbatch.gpus-per-node: expected a number of GPUs, or TYPE:NUMBER"),
        (
            "sbatch: {gpus-per-node: 4, gres: 'gpu:4'}",
            "sbatch.gpus-per-node: not allowed with GPUs in sbatch.gres",
        ),
        ("setup: module purge", "setup: 'module purge': expected a list"),
        ("setup: ['if true']", "setup.0: 'if true': expected a complete command of bash"),
        ("setup: ['cat <<END']", "setup.0: 'cat <<END': expected a complete command of bash"),
        ("setup: ['echo \"']", "expected a complete command of bash"),
        ("setup: ['true \\']", "expected a complete command of bash: it ends with a backslash"),
        ('setup: ["true\\nfalse"]', "setup.0: 'true\\nfalse': expected a single line"),
        ("container: [apptainer, exec, x.sif]", "python: expected the path of Python in the container"),
        ("at_once: 0", "at_once: 0: expected 1 or more"),
        ("launcher: mpirun\nmpi: pmix", "mine.yaml:2: mpi: not allowed with launcher mpirun, only with srun"),
        ("mpi: pmi2", "mpi: 'pmi2': expected one of none, pmix"),
        ("time: 30\ntime: 40", "mine.yaml:2: time: duplicate key"),
    ],
)
def test_an_invalid_profile_is_refused_in_one_line(profile, text, complaint):
    with pytest.raises(JobError) as refused:
        read_site(profile(text))
    assert complaint in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("option", [*PROFILE_KEYS, *OPTIONS, *OWN])
def test_a_profile_cannot_replace_what_submit_or_resuming_depends_on(profile, option):
    with pytest.raises(JobError, match=rf"mine\.yaml:1: sbatch\.{option}: not allowed in .*: \w"):
        read_site(profile(f"sbatch: {{{option}: }}"))


@pytest.mark.parametrize(
    "text, count",
    [("gpu:a100:4", 4), ("gpu:4", 4), ("gpu", 1), ("gpu:a100", 1), ("gpu:a100:2,nvme:1,gpu:v100:1", 3)],
)
def test_a_worker_for_each_gpu_that_the_profile_requests(profile, text, count):
    assert parse_gres(text).count == count
    done = submit("--site", profile(f"sbatch: {{gres: '{text}'}}"))
    found = directives(done.stdout)
    assert f"ntasks-per-node={count}" in found and f"gres={text}" in found, done.output
    assert "gpus-per-node" not in done.stdout


def test_other_generic_resources_are_no_gpus(profile):
    assert parse_gres("nvme:4,shard:2") is None
    done = submit("--site", profile("sbatch: {gres: 'nvme:4'}"), "--gpus-per-node", "2")
    assert {"ntasks-per-node=2", "gpus-per-node=2", "gres=nvme:4"} <= set(directives(done.stdout))


def test_gpus_by_type():
    found = directives(submit("--gpus-per-node", "a100:4").stdout)
    assert {"gpus-per-node=a100:4", "ntasks-per-node=4"} <= set(found)
    assert "ntasks-per-node=2" in directives(
        submit("--gpus-per-node", "a100:4", "--workers-per-node", "2").stdout
    )
    assert "gpus" not in submit("--gpus-per-node", "0").stdout
    done = submit("--gpus-per-node", "many")
    assert done.exit_code == 2 and "--gpus-per-node 'many': expected a number of GPUs, or TYPE" in done.stderr


def test_gpus_of_the_profile_and_of_the_command_must_agree():
    site = Site(sbatch={"gres": "gpu:a100:4"})
    assert choose_gpus(site, None) == choose_gpus(site, "4") == choose_gpus(site, "a100:4") == site.gpus
    for other in ("2", "v100:4", "0"):
        with pytest.raises(InputError, match=r"the profile requests others \(sbatch\.gres: gpu:a100:4\)"):
            choose_gpus(site, other)
    assert choose_gpus(Site(sbatch={"gpus-per-node": "a100:4"}), None).count == 4
    assert choose_gpus(Site(), "3") == parse_gpus("3") and choose_gpus(Site(), None) is None


def run_bash(text, **environment):
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, env={"PATH": os.environ["PATH"]} | environment
    )


def test_nodes_expand_variables_and_nothing_else():
    nasty = "a b'c\"d$(touch owned)`touch owned`\\;&*"
    for text, expected in [
        ("$SCRATCH/torch", "/s c/$HOME/torch"),
        ("${SCRATCH}x:$SCRATCH", "/s c/$HOMEx:/s c/$HOME"),
        ("~/x", "/h/x"),
        ("~", "/h"),
        ("x~", "x~"),
        ("a$$SCRATCH", "a$SCRATCH"),
        ("", ""),
        (nasty, nasty),
        ("${SCRATCH:-$(touch owned)}", "${SCRATCH:-$(touch owned)}"),
    ]:
        done = run_bash(f"printf %s {quote_expanding(text)}", SCRATCH="/s c/$HOME", HOME="/h")
        assert (done.stdout, done.stderr) == (expected, ""), text
    unset = run_bash(f"export A={quote_expanding('$SCRATCH/x')}; echo go on")
    assert unset.returncode and "go on" not in unset.stdout
    assert "SCRATCH: is not set on this node, but the profile uses it" in unset.stderr


def test_the_environment_container_and_python_of_nodes(tmp_path):
    site = Site(
        environment={"TORCH_HOME": "$SCRATCH/torch"},
        container=["apptainer", "exec", "$HOME/my image.sif"],
        python="python3",
    )
    text = script(site, tmp_path)
    assert 'command=(apptainer exec "${HOME?' in text and " python3 -m hpcdat train" in text
    assert text.count("python3 -m hpcdat") == 2, "the decision to requeue is made with the same Python"
    (line,) = re.findall(r"(?m)^export TORCH_HOME=.*$", text)
    assert run_bash(f"{line}; echo $TORCH_HOME", SCRATCH="/s").stdout == "/s/torch\n"


def set_up(text):
    """The part of a script that sets up the environment."""
    return text[: text.index("\nrun_dir=")]


def test_a_set_up_that_fails_ends_the_job_with_a_message(tmp_path):
    site = Site(setup=["echo $NOT_SET # a comment", "source /nowhere/env.sh"], modules=["gcc/13"])
    done = run_bash(set_up(script(site, tmp_path)) + "\necho go on")
    assert done.returncode == 1 and "go on" not in done.stdout
    assert re.search(r"hpcdat: set-up failed on \S+ with exit code 1: source /nowhere/env.sh\n", done.stderr)
    modules = set_up(script(Site(modules=["gcc/13", "cuda"]), tmp_path))
    absent = run_bash(modules + "\necho go on")
    assert absent.returncode == 1 and "with exit code 127: module load gcc/13 cuda\n" in absent.stderr
    present = run_bash('module() { echo "$@" $NOT_SET; }\n' + modules + "\necho go on; echo $NOT_SET")
    assert present.stdout == "load gcc/13 cuda\ngo on\n" and "unbound" in present.stderr


def test_set_up_lines_come_in_order_before_the_modules(tmp_path):
    text = set_up(script(Site(setup=["echo one", "cd /; A=2", "echo $A $PWD"], modules=["m"]), tmp_path))
    assert run_bash("module() { echo $1 $2; }\n" + text).stdout == "one\n2 /\nload m\n"


def test_cores_reach_the_workers_of_srun(tmp_path):
    text = script(Site(cpus_per_worker=4), tmp_path)
    assert "cpus-per-task=4" in directives(text)
    assert "export SRUN_CPUS_PER_TASK=4\n" in text and "launch+=(--cpus-per-task 4)" in text
    # Open MPI may start its daemons by srun.
    assert "SRUN_CPUS" not in script(Site(cpus_per_worker=4, launcher="mpirun"), tmp_path)
    assert "SRUN_CPUS" not in script(Site(), tmp_path)


def test_an_array_may_be_throttled(tmp_path, profile):
    assert "array=0-2" in directives(script(Site(), tmp_path, at_once=None))
    assert "array=0-2%2" in directives(script(Site(), tmp_path, at_once=2))
    path = profile("at_once: 4")
    assert "array=0-9%4" in directives(submit("--site", path, "--seeds", "10").stdout)
    assert "array=0-9%3" in directives(submit("--site", path, "--seeds", "10", "--at-once", "3").stdout)
    assert "array" not in "".join(directives(submit("--site", path).stdout))
    alone = submit("--at-once", "3")
    assert (
        alone.exit_code == 2
        and alone.stderr == "--at-once: not allowed without an array (--seeds, --sweep)\n"
    )


def test_a_sweep_has_lists_and_expanded_paths(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/s c")
    done = submit("--sweep", "schedule.decay_epochs=[1,2],[]", "--sweep", "data.root=$SCRATCH/a,/b")
    settings = re.findall(r"settings=\((.*)\) ;;", done.stdout)
    assert len(settings) == 4, done.output
    assert "'schedule.decay_epochs=[1,2]'" in settings[0] and "'data.root=\"/s c/a\"'" in settings[0]
    assert "data.root=/b" in settings[3]
    refused = submit("--sweep", "seed=010,1")
    assert refused.exit_code == 2
    assert "--sweep seed=010: seed: '010': expected a whole number" in refused.stderr


def test_variables_that_would_override_the_script_are_left_out(tmp_path, monkeypatch, capfd):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/bash\nenv | grep ^SBATCH_ | sort >&2\necho "a site says hello"\necho "7;box"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"TIMELIMIT": "1", "NO_REQUEUE": "1", "ARRAY_INX": "1-9", "ACCOUNT": "me"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    file = tmp_path / "job.sh"
    file.write_text("#!/bin/bash\n#SBATCH --time=30\n")
    sbatch.write_text(sbatch.read_text().replace(">&2", f"> {tmp_path}/seen"))
    assert submit_script(file) == 7
    assert (tmp_path / "seen").read_text() == "SBATCH_ACCOUNT=me\n", "the script says nothing of the account"
    ignored = capfd.readouterr().err
    assert "ignored: SBATCH_TIMELIMIT=1, which would override the script" in ignored
    assert "SBATCH_NO_REQUEUE" in ignored and "SBATCH_ARRAY_INX" in ignored
    sbatch.write_text("#!/bin/bash\necho hello\n")
    with pytest.raises(WorkerError, match=r"sbatch printed no job id .*hello"):
        submit_script(file)
    sbatch.write_text("#!/bin/bash\nprintf 'one\\ntwo\\n' >&2; exit 1\n")
    with pytest.raises(WorkerError, match=r"sbatch rejected .*job\.sh: one; two$"):
        submit_script(file)


def test_an_installed_package_has_profiles_and_templates(monkeypatch):
    from distutils.core import run_setup

    import setuptools  # noqa: F401  (brings distutils)

    monkeypatch.chdir(CHECKOUT)
    command = run_setup("setup.py", stop_after="init").get_command_obj("build_py")
    command.ensure_finalized()
    packaged = {f"{package}/{name}" for package, _, _, names in command.data_files for name in names}
    for folder in ("templates", "sites"):
        files = {f"hpcdat.slurm/{folder}/{file.name}" for file in (SITES.parent / folder).glob("*.*")}
        assert files and files <= packaged
        # Some ways to copy a checkout make a small file of a link.
        assert not (SITES.parent / folder).is_symlink()


@pytest.mark.parametrize(
    "array, requeued",
    [({}, "7"), ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "7_2")],
    ids=["a job", "the last element of an array, whose number is that of the array"],
)
def test_only_the_element_that_stopped_is_requeued(tmp_path, array, requeued):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    text = script(Site(python=str(python)), tmp_path, at_once=None)
    end = text[text.index("# Slurm sends USR1") :]
    start = f"run_dir={tmp_path}/run launch=() command=(false)\nscontrol() {{ echo scontrol $@; }}\n"
    done = subprocess.run(
        ["bash", "-c", "set -uo pipefail\n" + start + end],
        env={"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", **array},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"scontrol requeue {requeued}\n"), done.stderr
