"""``hpcdat submit``."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hpcdat.cli.options import SetOption, Settings
from hpcdat.cli.worker_process import reported_once
from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.config.sections import by_name
from hpcdat.slurm.submit import (
    Resources,
    Task,
    array_tasks,
    read_site,
    render_script,
    submit_script,
    write_script,
)
from hpcdat.storage.moved_run import folder_of


def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes (p).")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs per node, with one worker each.")] = 0,
    workers_per_node: Annotated[
        int | None, typer.Option(min=1, help="Workers per node (q), if not one per GPU.")
    ] = None,
    time: Annotated[str, typer.Option(help="Time limit; the run is requeued before it is reached.")] = "1-0",
    site: Annotated[
        str, typer.Option(help="Profile of the cluster: a YAML file, or a name in slurm/sites.")
    ] = "plain",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Submit an array of N seeds.")] = 1,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE,...", help="Submit an array over these values."),
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

    Writes a batch script to the run folder and submits it with sbatch. Two minutes before the time limit the
    run writes a checkpoint and is requeued, and then resumes. It is also requeued after a failure, unless it
    fails twice at the same step.
    """
    replaced = [*(set_ or []), *(settings or [])]

    def write() -> tuple[Path, str, list[Path], bool]:
        from hpcdat.commands.train import check_workers

        workers = workers_per_node or max(gpus_per_node, 1)

        def read_and_check(more: tuple[str, ...]) -> Job:
            checked = read_job(job, [*replaced, *more])
            check_workers(checked, nodes=nodes, size=nodes * workers)
            return checked

        resolved = read_and_check(())
        resolved = resolved.model_copy(update={"run_dir": folder_of(job, resolved, replaced)})
        resources = Resources(nodes, workers, gpus_per_node, time, after or ())
        tasks = array_tasks(
            resolved.run_dir,
            sweep or [],
            range(resolved.seed, resolved.seed + seeds),
            read_and_check,
        )
        tasks = [
            replace(
                task, settings=(*task.settings, *_followers(resolved, read_and_check(task.settings), task))
            )
            for task in tasks
        ]
        make_script = render_script if dry_run else write_script
        script, text = make_script(resolved, read_site(site), resources, tasks)
        # hpcdat report finds the seeds in the folder that holds all of them.
        folders = [task.run_dir for task in tasks] if sweep else [resolved.run_dir]
        return script, text, folders, bool(tasks)

    script, text, folders, is_array = reported_once(write)
    if dry_run:
        print(text, end="")
        return
    number = reported_once(lambda: submit_script(script))
    log = script.parent / (f"{number}_*.log" if is_array else f"{number}.log")
    print(f"submitted job {number}: squeue -j {number}")
    print(f"script: {script}")
    print(f"log: tail -F {log if is_array else shlex.quote(str(log))}")
    print(f"result, when done: hpcdat report {shlex.join(map(str, folders))}")


def _followers(job: Job, element: Job, task: Task) -> list[str]:
    """Settings that follow those of an array's element, such as ``attack.step_size`` its ``attack.eps``.

    The script starts from the resolved job, in which they are filled in with the values of the job itself.

    Args:
        job, element: resolved.
        task: with the settings that the element is given.
    """
    given, before, after = (
        {text.partition("=")[0] for text in task.settings},
        by_name(job),
        by_name(element),
    )
    changed = [key for key in after if key not in given and after[key] != before[key]]
    return [f"{key}={json.dumps(after[key][0], default=str)}" for key in changed]
