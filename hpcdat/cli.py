"""The command line: parse, call, print.

What a worker needs is imported where the work begins: it takes seconds, for which neither help, a wrong
setting nor the process that only starts workers should wait.
"""

from __future__ import annotations

import atexit
import gc
import os
import shlex
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from hpcdat.cluster import box, box_slurm, slurm
from hpcdat.cluster.launch import launch_local
from hpcdat.cluster.launched import launched
from hpcdat.cluster.requeue import in_touch
from hpcdat.cluster.stopping import StopRequest
from hpcdat.errors import Exit, HpcdatError, InputError
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation_options import read_request
from hpcdat.job import Job
from hpcdat.job_file import read_job
from hpcdat.record import Result, RunFolder
from hpcdat.report.table import result_table

if TYPE_CHECKING:
    from hpcdat.cluster.workers import Workers
    from hpcdat.doctor.examination import Report
    from hpcdat.performance.calibration import Calibration
    from hpcdat.report.pages import Section

T = TypeVar("T")

STALL_TIMEOUT = 120
"""Seconds that a worker may keep the others waiting where no job says it."""

SECONDS_FOR_WORKER_0 = 10
"""How much later than another one worker 0 may come to the same mistake, and still be the one to tell it."""

app = typer.Typer(
    name="hpcdat",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Distributed adversarial training (DAT) on one machine or many.

    hpcdat train jobs/demo.yaml -np 2       trains with two local workers
    mpirun -np 4 hpcdat train JOB.yaml      the same under a launcher: mpirun, horovodrun, srun
    hpcdat evaluate runs/demo               measures TA, RA and more of a finished or stopped run
    hpcdat pseudo-label runs/demo DIR X.npz labels images that have none
    hpcdat certify runs/demo                certifies its smoothed classifiers, image by image
    hpcdat report runs/demo runs/other      puts results side by side
    hpcdat doctor JOB.yaml                  looks at all nodes and links before a run, started like train
    hpcdat plan JOB.yaml --nodes 6,100      predicts C, T, bytes and speed-up
    hpcdat submit JOB.yaml --nodes 6        hands a job to Slurm
    hpcdat box up six --rate 100mbit        makes a cluster in a box, to try it on

    Exit codes: 0 done, 1 failure, 2 wrong input, 75 stopped early (the same command goes on),
    130 interrupted a second time.
    """.replace("\n    ", "\n\n    "),
)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="More settings, as with --set.", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of the job: --set attack.eps=4/255"),
]
WorkersOption = Annotated[
    int,
    typer.Option("-np", "--workers", min=1, help="Start so many workers on this machine (with mpirun)."),
]


@app.command()
def train(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Train with N seeds, one after the other, and average.")
    ] = 1,
    overwrite: Annotated[bool, typer.Option(help="Start over where run_dir holds an earlier run.")] = False,
) -> None:
    """Train a model as a job says, and evaluate it.

    Run by itself it is one worker; `-np N` starts N; under mpirun, horovodrun or srun every
    process is a worker. An unfinished run in run_dir is taken up again. Ctrl-C (or SIGTERM,
    SIGUSR2) stops after the step at hand and leaves a checkpoint. With `--seeds N` the runs are
    in run_dir/seed-0, seed-1, ..., and the table ends with their mean and standard deviation.
    """
    resolved = _told_once(lambda: read_job(job, [*(set_ or []), *(settings or [])]))
    if workers > 1:
        _start_locally(workers)

    def work(team: Workers, stop: StopRequest) -> dict[Path, Result]:
        from hpcdat.run import train, train_seeds

        if seeds == 1:
            with in_touch(resolved.run_dir, stop) if team.is_first else nullcontext():
                return {resolved.run_dir: train(resolved, team, stop, overwrite=overwrite)}
        return train_seeds(resolved, seeds, team, stop, overwrite=overwrite)

    results = _as_worker(work, resolved)
    if results is not None:
        print(f"\n{result_table(results, mean=seeds > 1)}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    autoattack: Annotated[
        str | None,
        typer.Option(metavar="N|all", help="Measure AA on so many test images, of each class as many."),
    ] = None,
    sweep_eps: Annotated[
        str | None, typer.Option(metavar="EPS,EPS,...", help="RA over radii: 0,2/255,4/255,8/255.")
    ] = None,
    sweep_steps: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="RA over numbers of PGD steps: 1,10,20,50,100.")
    ] = None,
) -> None:
    """Measure TA and RA of a run's latest checkpoint, and AA and sweeps if requested.

    The run may be finished or interrupted. A stronger attack than the job's:
    hpcdat evaluate runs/demo --set evaluation.steps=100

    Outcomes are kept in the run folder batch by batch: after a stop or a kill the same command resumes, with
    any number of workers. Sanity checks warn of numbers that are too good to be true.
    """
    replaced = [*(set_ or []), *(settings or [])]

    def read() -> tuple[Job, EvaluationRequest]:
        job = RunFolder(run).read_job(replaced)
        return job, read_request(autoattack, sweep_eps, sweep_steps, job)

    resolved, request = _told_once(read)
    if workers > 1:
        _start_locally(workers)

    def work(team: Workers, stop: StopRequest) -> dict[Path, Result]:
        from hpcdat.run import evaluate

        return {run: evaluate(run, replaced, request, team, stop)}

    results = _as_worker(work, resolved)
    if results is not None:
        print(result_table(results))


@app.command("pseudo-label")
def pseudo_label(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="A folder of images, or a .npy file: (N, H, W, C), uint8.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.npz", help="What to write.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
) -> None:
    """Give images the labels that a run's model would give them.

    A job trains on them beside its labelled images: data.unlabelled=OUT.npz, data.unlabelled_part=0.5
    """
    replaced = [*(set_ or []), *(settings or [])]
    resolved = _told_once(lambda: RunFolder(run).read_job(replaced))
    if workers > 1:
        _start_locally(workers)

    def work(team: Workers, stop: StopRequest) -> dict[str, int]:
        from hpcdat.pseudo_labels import pseudo_label

        return pseudo_label(run, source, out, replaced, team, stop)

    counts = _as_worker(work, resolved)
    if counts is not None:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        print(f"{out}: {sum(counts.values())} images: {told}")


@app.command()
def certify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    sigma: Annotated[
        str | None, typer.Option(metavar="SIGMA,...", help="Standard deviations of the noise: 0.12,0.25.")
    ] = None,
    n0: Annotated[int | None, typer.Option(help="Samples that choose the class.")] = None,
    n: Annotated[int | None, typer.Option(help="Samples that bound its probability.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Of a certificate's being wrong, at most.")] = None,
    every: Annotated[int | None, typer.Option(metavar="K", help="Each K-th test image.")] = None,
    workers: WorkersOption = 1,
) -> None:
    """Certify a run's latest checkpoint by randomised smoothing (Cohen et al. 2019).

    The options stand for the job's `certification` settings. Every image that is done is kept: after a
    stop or a failure the same command goes on, with any number of workers, to the same result. Table, plot
    and data are written to RUN/certification.
    """
    named = {"sigma": f"[{sigma}]" if sigma else None, "n0": n0, "n": n, "alpha": alpha, "every": every}
    given = [f"certification.{key}={value}" for key, value in named.items() if value is not None]
    replaced = [*given, *(set_ or []), *(settings or [])]
    resolved = _told_once(lambda: RunFolder(run).read_job(replaced))
    if workers > 1:
        _start_locally(workers)

    def work(team: Workers, stop: StopRequest) -> str:
        from hpcdat.certify import certify
        from hpcdat.report.certified import certified_table, rows_beside

        return certified_table(certify(run, replaced, team, stop), rows_beside(resolved))

    table = _as_worker(work, resolved)
    if table is not None:
        print(f"{table}\n\nwritten to {RunFolder(run).certification_folder}")


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", show_default=False)
    ],
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A paper's table: dat-1 to dat-4, conadv-1 to conadv-5, conadv-fig4."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write report.md, report.csv, report.html and plots there."),
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Runs of hpcdat",
) -> None:
    """Print the results of runs in one table, or beside a paper's.

    Of one folder with several seeds in it (`hpcdat train --seeds N`) also their mean. With `--table` each
    run stands in the rows that its job `reproduces`, with the paper's own number and the ratio beside it;
    several tables may be asked for. They are written with plots and notes, to the folder `report` if
    `--out` names no other; so is accuracy against the global batch, where runs of a method differ in it, and
    RA over eps and steps, where `hpcdat evaluate` measured it. dat-2 wants runs that `hpcdat certify` knows.
    """
    if table and out is None:
        out = Path("report")
    # A folder that is named twice is one run.
    runs = list(dict.fromkeys(runs))
    folders = [seed for run in runs for seed in _seeds_in(run) or [run]]
    if out is None:
        results = _told_once(lambda: {run: RunFolder(run).read_result() for run in folders})
        print(result_table(results, mean=len(runs) == 1))
        return

    def write() -> tuple[list[Section], list[Path]]:
        from hpcdat.report import pages
        from hpcdat.report.batches import batch_sections
        from hpcdat.report.comparison import compare, read_run
        from hpcdat.report.sweeps import sweep_sections

        read = [read_run(folder) for folder in folders]
        sections = [pages.comparison_section(compare(name, read)) for name in table or []]
        if not table:
            sections.append(pages.runs_section(read))
        sections += [*batch_sections(read), *sweep_sections(read)]
        return sections, pages.write_report(sections, out, title)

    sections, files = _told_once(write)
    print("\n".join(section.markdown for section in sections), end="")
    for file in files:
        print(f"written: {file}")


@app.command()
def doctor(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB.yaml", help="The job.", show_default=False)
    ] = None,
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    json: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write facts, findings and links there.")
    ] = None,
) -> None:
    """Look at the nodes of a run, and measure the links between them.

    Started like `hpcdat train`, on the nodes that the run is to have. Horovod, GPUs, versions, clocks,
    cores and links are looked at; with a job its images and run_dir too. Ends with exit code 1 where a
    check failed; warnings do not count.
    """
    replaced = [*(set_ or []), *(settings or [])]

    def read() -> Job | None:
        if job is None and replaced:
            raise InputError("settings replace those of a job, and none is named")
        return read_job(job, replaced) if job else None

    resolved = _told_once(read)
    if workers > 1:
        _start_locally(workers)

    def work(team: Workers, stop: StopRequest) -> Report:
        from hpcdat.doctor.examination import examine

        return examine(resolved, team, stop)

    found = _as_worker(work, resolved)
    if found is None:
        return
    print(found.in_words(), flush=True)
    if json:
        _told_once(lambda: found.write(json))
    if found.failed:
        raise typer.Exit(Exit.FAILURE)


@app.command()
def plan(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    nodes: Annotated[
        str, typer.Option(metavar="P,P,...", help="Numbers of nodes (p) to predict for.")
    ] = "1,2,6",
    workers_per_node: Annotated[int, typer.Option(min=1, help="Workers a node (q).")] = 1,
    workers: WorkersOption = 1,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Links measured before (--save).")
    ] = None,
    link: Annotated[
        str | None, typer.Option(metavar="RATE", help="Assume links of this rate: 1gbit, 200gbit.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the links that were measured.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images, where they are not here to be counted.")
    ] = None,
) -> None:
    """Predict what a job costs on so many nodes: C, T, bytes and speed-up, before it runs.

    Attack, gradient and update of the job's network are timed here, on random images. Links are measured
    where this is started on several nodes, as `hpcdat train` is; else they are those of `--calibration`,
    or of a rate that is assumed (`--link`). With exchange.protocol auto it says which protocol it would
    choose.
    """
    replaced = [*(set_ or []), *(settings or [])]
    started = workers if workers > 1 else launched().size

    def read() -> tuple[Job, list[int], Calibration | None]:
        from hpcdat.performance import calibration as links
        from hpcdat.performance.forecast import read_nodes
        from hpcdat.run import check_workers

        resolved, wanted = read_job(job, replaced), read_nodes(nodes)
        for number in wanted:
            check_workers(resolved, nodes=number, size=number * workers_per_node)
        if calibration and link:
            raise InputError("--calibration and --link: one of them says what the links are")
        if save and (calibration or link or started == 1):
            raise InputError(
                "--save: nothing is measured here; start it on several nodes, as hpcdat train is"
            )
        if calibration:
            return resolved, wanted, links.Calibration.read(calibration)
        if link:
            return resolved, wanted, links.assume_links(box.bytes_per_second(link))
        if started == 1 and max(wanted) * workers_per_node > 1:
            raise InputError(
                "nothing is known of the links: start it on several nodes, as hpcdat train is, to measure "
                "them, or give --calibration FILE or --link RATE"
            )
        return resolved, wanted, None

    resolved, wanted, known = _told_once(read)
    if workers > 1:
        _start_locally(workers)

    def work(team: Workers, stop: StopRequest) -> str:
        from hpcdat.performance.forecast import predict_job

        return predict_job(resolved, wanted, workers_per_node, images, known, save, team)

    told = _as_worker(work, resolved)
    if told is not None:
        print(told)


@app.command()
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
        from hpcdat.run import check_workers

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
        script, text = slurm.write_script(resolved, slurm.read_site(site), request, tasks, keep=not dry_run)
        # Seeds are looked for in the folder of all of them.
        folders = [task.run_dir for task in tasks] if sweep else [resolved.run_dir]
        return script, text, folders, bool(tasks)

    script, text, folders, is_array = _told_once(write)
    if dry_run:
        print(text, end="")
        return
    number = _told_once(lambda: slurm.submit(script))
    log = script.parent / (f"{number}_*.log" if is_array else f"{number}.log")
    print(f"job {number} is in the queue: squeue -j {number}")
    print(f"its script: {script}")
    print(f"its log, as it grows: tail -F {log if is_array else shlex.quote(str(log))}")
    print(f"its result, when it is done: hpcdat report {shlex.join(map(str, folders))}")


boxes = typer.Typer(
    no_args_is_help=True,
    help="""A cluster in a box: nodes and rate-limited links on this machine (root).

    hpcdat box up six --nodes 6 --rate 1gbit
    hpcdat box run six -np 6 -- .venv/bin/hpcdat train jobs/demo.yaml
    hpcdat box down six

    With a Slurm of its own (--slurm; Debian's slurm-wlm and munge):

    hpcdat box login six -- .venv/bin/hpcdat submit jobs/demo.yaml --nodes 6
    """.replace("\n    ", "\n\n    "),
)
app.add_typer(boxes, name="box")
BoxName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the box.", show_default=False)]


@boxes.command("up")
def box_up(
    name: BoxName,
    nodes: Annotated[int, typer.Option(help="Nodes, named node1, node2, ...")] = 6,
    rate: Annotated[str, typer.Option(help="Rate of every link, each way.")] = "1gbit",
    delay: Annotated[str, typer.Option(help="Delay of every packet.")] = "0ms",
    loss: Annotated[str, typer.Option(help="Share of packets lost.")] = "0%",
    slurm: Annotated[bool, typer.Option("--slurm", help="With a Slurm of its own.")] = False,
) -> None:
    """Make a box."""
    made = _told_once(lambda: box.up(name, nodes=nodes, rate=rate, delay=delay, loss=loss, slurm=slurm))
    print(f"{name} is up: {nodes} nodes from {made.address(1)} on, {rate} links")
    if slurm:
        print(f"its Slurm: hpcdat box login {name} -- sinfo")


@boxes.command("login", context_settings={"ignore_unknown_options": True})
def box_login(
    name: BoxName,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", show_default=False)],
) -> None:
    """Run a command as on the login node of a box with Slurm: sbatch, squeue, hpcdat submit."""

    def find() -> Path:
        file = box_slurm.configuration_file(_found(name))
        if not file.exists():
            raise box.BoxError(f"the box {name} has no Slurm: hpcdat box up {name} --slurm makes one with it")
        return file

    environment = box.SHARED_CORES | dict(os.environ) | {"SLURM_CONF": str(_told_once(find))}
    try:
        raise typer.Exit(subprocess.run(command, env=environment).returncode)
    except FileNotFoundError:
        print(f"{command[0]}: no such command", file=sys.stderr)
        raise typer.Exit(Exit.WRONG_INPUT) from None


@boxes.command("run", context_settings={"ignore_unknown_options": True})
def box_run(
    name: BoxName,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", show_default=False)],
    workers: Annotated[int, typer.Option("-np", "--workers", min=1, help="Workers, dealt to the nodes.")] = 1,
    mpirun: Annotated[bool, typer.Option(help="Over MPI, by mpirun, rather than over Gloo.")] = False,
) -> None:
    """Run a command once for every worker, on the nodes of a box."""
    found = _told_once(lambda: _found(name))
    if mpirun:
        line = found.inside(1, box.mpirun_command(found, workers, command))
        raise typer.Exit(box.wait_for([subprocess.Popen(line, env=box.SHARED_CORES | dict(os.environ))]))
    raise typer.Exit(box.run_over_gloo(found, workers, command))


@boxes.command("down")
def box_down(name: BoxName) -> None:
    """End what runs in a box and remove it."""
    _told_once(lambda: box.down(name))


def _seeds_in(run: Path) -> list[Path]:
    """The folders of a job's seeds, by their numbers."""
    return sorted(run.glob("seed-*"), key=lambda folder: (len(folder.name), folder.name))


def _found(name: str) -> box.Box:
    found = box.find(name)
    if found is None:
        raise box.BoxError(f"there is no box {name}: hpcdat box up {name} makes it")
    return found


def main() -> None:
    """Entry point of the command ``hpcdat``."""
    # Else Python looks once more for garbage among all of torch's objects, for most of a second, as it ends.
    atexit.register(gc.freeze)
    app()


def _told_once(read: Callable[[], T]) -> T:
    """Read an input before anything starts; a mistake in it is told by one worker."""
    try:
        return read()
    except HpcdatError as error:
        _refuse(error)


def _refuse(error: HpcdatError) -> NoReturn:
    """End before the workers have met, for a mistake that all of them find, or this one alone."""
    place = launched()
    if place.rank == 0:
        print(error, file=sys.stderr)
    else:
        # A launcher ends all workers when the first one ends: let worker 0 have its say. It has none where
        # this one is still alive afterwards; but srun may leave all alive, and names those that failed.
        time.sleep(SECONDS_FOR_WORKER_0)
        if place.launcher != "srun":
            print(f"worker {place.rank} on {socket.gethostname()}: {error}", file=sys.stderr)
    raise typer.Exit(error.exit_code)


def _start_locally(workers: int) -> None:
    """Become the launcher of local workers."""
    place = launched()
    if place.size > 1:
        _refuse(InputError(f"-np inside {place.launcher}: leave it out, the workers are there"))
    arguments = _without_np(sys.argv[1:])
    try:
        raise typer.Exit(launch_local(workers, arguments, on_terminal=sys.stderr.isatty()))
    except HpcdatError as error:
        _refuse(error)


def _without_np(arguments: list[str]) -> list[str]:
    """The command line without ``-np N``, in any of its forms."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("-np", "--workers"):
            skip = True
        elif not argument.startswith(("-np=", "--workers=")):
            kept.append(argument)
    return kept


def _as_worker(work: Callable[[Workers, StopRequest], T], job: Job | None) -> T | None:
    """Do a worker's part; what came of it on worker 0, None on the others; failures end the process."""
    stop = StopRequest()
    from hpcdat.cluster.workers import start_workers

    try:
        team = start_workers(
            job.stall_timeout if job else STALL_TIMEOUT,
            divisible=job is not None
            and (job.exchange.protocol == "hierarchical" or job.smoothing.workers > 1),
        )
    except HpcdatError as error:
        print(f"hpcdat: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    try:
        done = work(team, stop)
        team.close()
        return done if team.is_first else None
    except HpcdatError as error:
        _end(team, error)
    except KeyboardInterrupt:
        print(f"hpcdat: worker {team.rank} on {team.host} was interrupted", file=sys.stderr, flush=True)
        os._exit(Exit.INTERRUPTED)
    except BaseException:
        text = traceback.format_exc()
        print(f"hpcdat: worker {team.rank} on {team.host} failed:\n{text}", file=sys.stderr, flush=True)
        os._exit(Exit.FAILURE)


def _end(team: Workers, error: HpcdatError) -> NoReturn:
    """Tell of an expected failure and end this process, and with it, by the launcher, the others."""
    if not error.everywhere:
        print(f"hpcdat: worker {team.rank} on {team.host}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    if team.is_first:
        print(f"hpcdat: {error}", file=sys.stderr, flush=True)
    # A launcher ends all workers when the first one ends: let worker 0 have its say.
    team.gather(None, "the end")
    sys.stdout.flush()
    os._exit(error.exit_code)
