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
from hpcdat.slurm import submit as slurm


def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes (p).")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs a node, with a worker for each.")] = 0,
    workers_per_node: Annotated[
        int | None, typer.Option(min=1, help="Workers a node (q), if not one for each GPU.")
    ] = None,
    time: Annotated[
        str, typer.Option(help="Time limit; before it the run goes back into the queue.")
    ] = "1-0",
    site: Annotated[
        str, typer.Option(help="Profile of the cluster: a YAML file, or a name in slurm/sites.")
    ] = "plain",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="An array of N seeds.")] = 1,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE,...", help="An array with each of these values."),
    ] = None,
    after: Annotated[
        list[int] | None, typer.Option(metavar="JOBID", help="Start when this job has ended well.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, and do nothing.")] = False,
) -> None:
    """Hand a job to Slurm.

    Writes a script into the run folder and gives it to sbatch. Two minutes before the time limit the run
    writes a checkpoint and goes back into the queue, from where it goes on by itself; so it does after a
    failure, unless it ends twice at the same step.
    """
    replaced = [*(set_ or []), *(settings or [])]

    def write() -> tuple[Path, str, list[Path], bool]:
        from hpcdat.commands.train import check_workers

        workers = workers_per_node or max(gpus_per_node, 1)

        def fitting(more: tuple[str, ...]) -> Job:
            fits = read_job(job, [*replaced, *more])
            check_workers(fits, nodes=nodes, size=nodes * workers)
            return fits

        resolved = fitting(())
        request = slurm.Request(nodes, workers, gpus_per_node, time, after or ())
        tasks = slurm.tasks_of(
            resolved.run_dir,
            sweep or [],
            range(resolved.seed, resolved.seed + seeds),
            fitting,
        )
        tasks = [
            replace(task, settings=(*task.settings, *_followers(resolved, fitting(task.settings), task)))
            for task in tasks
        ]
        script, text = slurm.write_script(resolved, slurm.read_site(site), request, tasks, keep=not dry_run)
        # Seeds are looked for in the folder of all of them.
        folders = [task.run_dir for task in tasks] if sweep else [resolved.run_dir]
        return script, text, folders, bool(tasks)

    script, text, folders, is_array = reported_once(write)
    if dry_run:
        print(text, end="")
        return
    number = reported_once(lambda: slurm.submit(script))
    log = script.parent / (f"{number}_*.log" if is_array else f"{number}.log")
    print(f"job {number} is in the queue: squeue -j {number}")
    print(f"its script: {script}")
    print(f"its log, as it grows: tail -F {log if is_array else shlex.quote(str(log))}")
    print(f"its result, when it is done: hpcdat report {shlex.join(map(str, folders))}")


def _followers(job: Job, element: Job, task: slurm.Task) -> list[str]:
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
