"""``hpcdat submit``."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from hpcdat.cli.options import SetOption, Settings, path
from hpcdat.cli.submitted_benchmark import check_options, default_time_limit, submitted_benchmark
from hpcdat.cli.submitted_evaluation import CommandName, read_evaluation
from hpcdat.cli.worker_process import reported_once
from hpcdat.config.job import Job
from hpcdat.config.job_file import JobError, read_job
from hpcdat.config.paths import escape
from hpcdat.config.sections import by_name
from hpcdat.errors import InputError, shorten
from hpcdat.slurm.benchmark import BENCHMARKS
from hpcdat.slurm.script import Resources
from hpcdat.slurm.site import Site, check_name, read_site
from hpcdat.slurm.submit import (
    Task,
    array_tasks,
    choose_gpus,
    render_script,
    submit_script,
    write_script,
)
from hpcdat.storage.moved_run import folder_of


def submit(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|JOB.yaml", help="The job, or what --command evaluates.", show_default=False
        ),
    ] = None,
    settings: Settings = None,
    set_: SetOption = None,
    command: Annotated[
        CommandName, typer.Option(help="What the workers run; options of the command may follow.")
    ] = "train",
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Submit a benchmark, no job: {', '.join(BENCHMARKS)}. Its own options follow after --.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of a benchmark's result and log. Default: benchmark-results/NAME-DATE.",
            parser=path,
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes (p).")] = 1,
    gpus_per_node: Annotated[
        str | None,
        typer.Option(metavar="[TYPE:]N", help="GPUs per node, with one worker each: 4, a100:4."),
    ] = None,
    workers_per_node: Annotated[
        int | None, typer.Option(min=1, help="Workers per node (q), if not one per GPU.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            help="Time limit; a run is requeued before it is reached. Default: the profile's, or 1-0; of a "
            "benchmark at most an hour."
        ),
    ] = None,
    site: Annotated[
        str, typer.Option(help="Profile of the cluster: a YAML file, or a name in hpcdat/slurm/sites.")
    ] = "plain",
    partition: Annotated[str | None, typer.Option(help="Partition, if not the profile's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Submit an array of N seeds.")] = 1,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE,...", help="Submit an array over these values."),
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Run at most N elements of an array at a time.")
    ] = None,
    after: Annotated[
        list[int] | None, typer.Option(metavar="JOBID", help="Start after this job has succeeded.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script; submit nothing.")] = False,
) -> None:
    """Submit a job to Slurm.

    \b
    Examples:
      hpcdat submit JOB.yaml --nodes 6 --gpus-per-node 4 --time 12:00:00
      hpcdat submit JOB.yaml --nodes 6 --seeds 3 --site mysite.yaml
      hpcdat submit JOB.yaml --sweep attack.eps=2/255,4/255 --dry-run
      hpcdat submit runs/demo --command evaluate --nodes 2 --autoattack 1000
      hpcdat submit --benchmark communication --nodes 8 --gpus-per-node 8

    Writes a batch script to the run folder and submits it with sbatch. Two minutes before the time limit the
    run writes a checkpoint and is requeued, and then resumes. It is also requeued after a failure, unless it
    fails twice at the same step. With `--command evaluate` or `certify` it does the same for an evaluation;
    the first argument is then the folder of a run or a job file whose model has weights. Options of the
    command that `submit` has as well, such as `--sweep`, stand after `--`. A benchmark is not requeued; it
    writes `result.json` to its folder, which `hpcdat report --benchmark` reads.
    """
    replaced = [*(set_ or []), *(settings or [])]
    make_script = render_script if dry_run else write_script

    def write_evaluation(source: Path, profile: Site, resources: Resources) -> _Written:
        if seeds > 1 or sweep or at_once:
            raise InputError(f"--seeds, --sweep, --at-once: not allowed with --command {command}")
        evaluated, work = read_evaluation(command, source, set_ or [], settings or [])
        script, text = make_script(evaluated, profile, resources, command=work)
        return _Written(script, text, _report_of([evaluated.run_dir]))

    def write() -> _Written:
        from hpcdat.commands.train import check_workers
        from hpcdat.models import check_model_name

        profile = _profile(site, partition)
        gpus = choose_gpus(profile, gpus_per_node)
        workers = workers_per_node or max(gpus.count if gpus else 0, 1)
        if benchmark is not None:
            check_options({"--command": command != "train", "--set": set_, "--seeds": seeds > 1})
            check_options({"--sweep": sweep, "--at-once": at_once})
            limited = Resources(nodes, workers, gpus, time or default_time_limit(profile), after or ())
            options = [*([] if job is None else [job]), *(settings or [])]
            return _Written(*submitted_benchmark(benchmark, out, profile, limited, options, dry_run=dry_run))
        if job is None:
            raise InputError("expected a job, or --benchmark NAME")
        if out is not None:
            raise InputError("--out: only with --benchmark; the folder of a run is its run_dir")
        source = path(job)
        limit, elements = time or profile.time_limit() or "1-0", at_once or profile.at_once
        resources = Resources(nodes, workers, gpus, limit, after or (), elements)
        if command != "train":
            return write_evaluation(source, profile, resources)
        if unknown := [text for text in settings or [] if text.startswith("-")]:
            raise InputError(f"no such option: {shorten(unknown[0])}")

        def read_and_check(more: tuple[str, ...]) -> Job:
            try:
                checked = read_job(source, [*replaced, *more])
            except JobError as error:
                # What is wrong with an element only is a value of a sweep.
                raise JobError(str(error).replace("--set ", "--sweep ") if more else str(error)) from None
            check_workers(checked, nodes=nodes, size=nodes * workers)
            check_model_name(checked)
            return checked

        resolved = read_and_check(())
        resolved = resolved.model_copy(update={"run_dir": folder_of(source, resolved, replaced)})
        tasks = array_tasks(
            resolved.run_dir,
            sweep or [],
            range(resolved.seed, resolved.seed + seeds),
            read_and_check,
        )
        if at_once and not tasks:
            raise InputError("--at-once: not allowed without an array (--seeds, --sweep)")
        tasks = [_as_read(task, resolved, read_and_check(task.settings)) for task in tasks]
        script, text = make_script(resolved, profile, resources, tasks)
        # hpcdat report finds the seeds in the folder that holds all of them.
        folders = [task.run_dir for task in tasks] if sweep else [resolved.run_dir]
        return _Written(script, text, _report_of(folders), is_array=bool(tasks))

    script, text, result, is_array = reported_once(write)
    if dry_run:
        print(text, end="")
        return
    number = reported_once(lambda: submit_script(script))
    log = script.parent / (f"{number}_*.log" if is_array else f"{number}.log")
    print(f"submitted job {number}: squeue -j {number}")
    print(f"script: {script}")
    print(f"log: tail -F {log if is_array else shlex.quote(str(log))}")
    print(f"result, when done: {result}")


class _Written(NamedTuple):
    """A batch script: its path and text, what shows the result of its job, and whether that is an array."""

    script: Path
    text: str
    result: str
    is_array: bool = False


def _report_of(folders: Sequence[Path]) -> str:
    return f"hpcdat report {shlex.join(map(str, folders))}"


def _profile(name: str, partition: str | None) -> Site:
    """The profile of a cluster, with another partition if one is given."""
    site = read_site(name)
    if partition is None:
        return site
    try:
        return site.model_copy(update={"partition": check_name(partition)})
    except ValueError as error:
        raise InputError(f"--partition {shorten(repr(partition))}: {error}") from None


def _as_read(task: Task, job: Job, element: Job) -> Task:
    """An array's element with all settings in which it differs from the job, its paths expanded.

    The script starts from the resolved job, in which settings that follow from others, such as
    ``attack.step_size`` from ``attack.eps``, are filled in with the values of the job itself.

    Args:
        task: with the settings that it is given.
        job, element: resolved.
    """
    given = {text.partition("=")[0].strip(): text for text in task.settings}
    before, after = by_name(job), by_name(element)
    for key, (value, _) in after.items():
        if isinstance(value, Path | str) and re.search(r"[$~]", given.get(key, "")):
            given[key] = f"{key}={json.dumps(escape(value))}"
        elif key not in given and value != before[key][0]:
            given[key] = f"{key}={json.dumps(value, default=escape)}"
    return replace(task, settings=tuple(given.values()))
