"""Train or evaluate one job, on every worker."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import find_images
from hpcdat.data.images import Images
from hpcdat.data.unlabelled import joined, read_pseudo_labelled
from hpcdat.environment import describe_environment
from hpcdat.errors import InputError
from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.evaluation.determinism import deterministic
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation.results import evaluate_robustness
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.exchange.choice import recall_exchange, settle
from hpcdat.files import write_text
from hpcdat.job import METHODS, Job
from hpcdat.lock import locked
from hpcdat.memory import enough_memory
from hpcdat.models import build_model_for
from hpcdat.progress import Progress
from hpcdat.record import Result, RunFolder, State
from hpcdat.report.sweep_files import write_sweeps
from hpcdat.report.table import in_pixel_units, result_table
from hpcdat.training.roles import assign_roles, first_workers
from hpcdat.training.step import Algorithm1
from hpcdat.training.trainer import Trainer
from hpcdat.training.validation import hold_out


def train(job: Job, workers: Workers, stop: StopRequest, *, overwrite: bool = False) -> Result:
    """Train a job to its end, from the start or from the checkpoint in its run folder.

    Args:
        job: resolved.
        workers: all of them call this together.
        stop: request to stop.
        overwrite: start over in a folder that holds an earlier run.

    Returns:
        The result, which worker 0 has written to the run folder. If the run is finished already, its
        result is read from there.

    Raises:
        InputError: data or run folder cannot be used, or the method needs fewer nodes.
        WorkerError: something failed on a worker.
        Stopped: a stop was requested.
    """
    check_workers(job, nodes=workers.nodes, size=workers.size)
    device = workers.together("choose a device", lambda: choose_device(job, workers))
    train_images, test_images = workers.together("find the images", lambda: find_images(job.data))
    images = workers.together("hold images out", lambda: hold_out(train_images, test_images, job))
    if unlabelled := job.data.unlabelled:
        mixed = workers.together("read data.unlabelled", lambda: _mixed(unlabelled, images.train))
        images = images._replace(train=mixed)
    folder = RunFolder(job.run_dir)
    environment = describe_environment(workers, device)

    def begin() -> State | None:
        return folder.begin(job, environment, overwrite=overwrite) if workers.is_first else None

    # Worker 0 decides for all: another node may see the folder a moment later.
    state = workers.gather(workers.together("make the run folder", begin), "state of the run")[0]
    if state == "finished":
        if workers.is_first:
            print(f"the run in {job.run_dir} is finished; --overwrite starts it over", flush=True)
        return workers.together("read the result", folder.read_result)
    with enough_memory(job, "batch_size"):
        model = build_model_for(job, len(images.train.classes)).to(device)
        progress = Progress(shown=workers.is_first)
        exchange = settle(job.exchange, workers, model, folder.choice_file, progress)
        trainer = Trainer(Algorithm1(job, model, exchange, workers, device), folder, images, stop)
        if state == "unfinished":
            trainer.resume()
        accuracy = trainer.run()
    return _conclude(folder, job, accuracy, trainer.state.epoch, workers, finished=True)


def train_seeds(
    job: Job, count: int, workers: Workers, stop: StopRequest, *, overwrite: bool = False
) -> dict[Path, Result]:
    """Train a job with several seeds, one after the other, each in a run folder of its own.

    Finished runs are not trained again, so the same command resumes where it ended.

    Args:
        job: resolved; its seed is the first, and its ``run_dir`` holds ``seed-N`` for each.
        count: number of seeds.
        workers, stop, overwrite: as for :func:`train`.

    Returns:
        The results by run folder; worker 0 has written their table to ``run_dir``.

    Raises:
        InputError, WorkerError, Stopped: as :func:`train`.
    """

    def check() -> None:
        if RunFolder(job.run_dir).job_file.exists():
            raise InputError(f"run_dir {job.run_dir} holds a run of one seed: choose another folder")

    workers.together("look at run_dir", check)
    results = {}
    for seed in range(job.seed, job.seed + count):
        one = job.model_copy(update={"seed": seed, "run_dir": job.run_dir / f"seed-{seed}"})
        if workers.is_first:
            print(f"seed {seed} ({one.run_dir})", flush=True)
        results[one.run_dir] = train(one, workers, stop, overwrite=overwrite)

    def write() -> None:
        if workers.is_first:
            write_text(job.run_dir / "result.md", result_table(results, mean=True) + "\n")

    workers.together("write the table", write)
    return results


def evaluate(
    run_dir: Path, settings: list[str], request: EvaluationRequest, workers: Workers, stop: StopRequest
) -> Result:
    """Evaluate the latest checkpoint of a finished or interrupted run.

    Args:
        run_dir: the run's folder.
        settings: ``key=value`` texts, such as ``evaluation.steps=50``.
        request: measurements in addition to TA and RA.
        workers: all of them call this together.
        stop: request to stop.

    Returns:
        The result. Worker 0 has written it and the results of all measurements to the run folder, and the
        warnings of the sanity checks to stderr.

    Raises:
        InputError: the folder is not a run's or has no checkpoint, a setting is wrong, or another evaluation
            of this run is in progress.
        WorkerError: something failed on a worker.
        Stopped: a stop was requested; the same command resumes.
    """
    folder = RunFolder(run_dir)
    job = workers.together("read the job", lambda: folder.read_job(settings))
    trained = load_trained(folder, job, workers)
    test_images = find_test_images(job, trained, workers)
    progress = Progress(shown=workers.is_first)
    execution = Execution(workers, progress, stop)
    with deterministic(trained.device, progress.say), locked(folder.outcomes_folder, workers):
        results = evaluate_robustness(
            request, test_images, trained.model, job, execution, folder.outcomes_folder
        )

    def write() -> tuple[float, int] | None:
        if not workers.is_first:
            return None
        everything = results.merged_with(folder.evaluation_file)
        everything.write(folder.evaluation_file, trained.epoch)
        for file in write_sweeps(everything.sections, folder.path):
            progress.say(f"written: {file}")
        for warning in results.warnings:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        return everything.autoattack(job.evaluation, job.attack.norm)

    aa = workers.gather(workers.together("write the results", write), "AA")[0]
    return _conclude(folder, job, results.accuracy, trained.epoch, workers, finished=False, aa=aa)


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        model: on the device, in evaluation mode.
        epoch: epochs it was trained for.
        classes: names, in the order of the logits.
        device: where this worker computes.
    """

    model: torch.nn.Module
    epoch: int
    classes: list[str]
    device: torch.device


def load_trained(folder: RunFolder, job: Job, workers: Workers) -> Trained:
    """Load the network of a run's latest checkpoint; with early stopping, of the best one.

    Raises:
        InputError: there is no checkpoint, or it is not of the job's network.
    """
    checkpoint = workers.together("read the checkpoint", lambda: folder.checkpoint_of_result(job))
    device = workers.together("choose a device", lambda: choose_device(job, workers))

    def build() -> torch.nn.Module:
        model = build_model_for(job, len(checkpoint.classes))
        try:
            model.load_state_dict(checkpoint.model)
        except RuntimeError:
            raise InputError(
                f"{folder.path}: the settings make another network than the one that was trained: "
                "leave method, model and data.channels as they are"
            ) from None
        return model.to(device).eval()

    model = workers.together("build the model", build)
    return Trained(model, checkpoint.epoch, checkpoint.classes, device)


def find_test_images(job: Job, trained: Trained, workers: Workers) -> Images:
    """The test images of a trained network.

    Raises:
        InputError: there are none, or their classes are not those of the training.
    """

    def find() -> Images:
        train_images, test_images = find_images(job.data)
        if train_images.classes != trained.classes:
            raise InputError(f"{job.data.root} holds other classes than those of the training")
        return test_images

    return workers.together("find the images", find)


def check_workers(job: Job, *, nodes: int, size: int) -> None:
    """Check that so many workers on so many nodes can train a job, before any of them starts.

    Raises:
        InputError: it cannot.
    """
    if METHODS[job.method].centralised and nodes > 1:
        raise InputError(
            f"method {job.method} is centralised training (one node, DAT Sec. 6.1) and this run has "
            f"{nodes} nodes: take dat-pgd-without-lalr or dat-fgsm-without-lalr",
            everywhere=True,
        )
    assign_roles(job, size)


def choose_device(job: Job, workers: Workers) -> torch.device:
    """This worker's GPU, or the CPU with its share of the cores.

    Raises:
        InputError: the job asks for GPUs that are not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if job.device == "cuda" and gpus == 0:
        raise InputError("device: cuda, but there is no GPU that torch can use")
    if job.device != "cpu" and gpus:
        device = torch.device("cuda", workers.local_rank % gpus)
        torch.cuda.set_device(device)
        return device
    if "OMP_NUM_THREADS" in os.environ:
        # Set by someone who knows what else runs on these cores.
        return torch.device("cpu")
    mine, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    # A launcher that binds each worker to its own cores has already divided them.
    bound = mine < all_cores
    torch.set_num_threads(mine if bound else max(1, mine // workers.local_size))
    return torch.device("cpu")


def _mixed(unlabelled: Path, labelled: Images) -> Images:
    return joined(labelled, read_pseudo_labelled(unlabelled, labelled.classes))


def _conclude(
    folder: RunFolder,
    job: Job,
    accuracy: Accuracy,
    epoch: int,
    workers: Workers,
    *,
    finished: bool,
    aa: tuple[float, int] | None = None,
) -> Result:
    """Write the result: what the run folder holds of the training, and what was measured now."""

    def conclude() -> Result:
        result = summarise(folder, job, accuracy, epoch, aa)
        if workers.is_first:
            folder.write_result(result, result_table({folder.path: result}))
            if finished:
                folder.log(event="finished")
        return result

    return workers.together("write the result", conclude)


def summarise(
    folder: RunFolder, job: Job, accuracy: Accuracy, epoch: int, aa: tuple[float, int] | None = None
) -> Result:
    """The row of a run in the result table.

    Args:
        folder: with the records of the training: workers, times, bytes.
        job: as evaluated.
        accuracy: of the evaluation.
        epoch: number of epochs trained.
        aa: AA in [0, 1] and its number of images, if it was measured.
    """
    team = folder.environment()
    epochs = folder.metrics("epoch")
    # Where steps were skipped or images could not be read, an epoch was shorter.
    whole = [e for e in epochs if e["images"] == max(e["images"] for e in epochs)]
    attack = job.evaluation
    restarts = f" x {attack.restarts}" if attack.restarts > 1 else ""
    return Result(
        method=job.method,
        seed=job.seed,
        p=team["nodes"],
        q=len(team["workers"]) // team["nodes"],
        batches=len(first_workers(assign_roles(job, len(team["workers"])))),
        batch=job.batch_size,
        images=accuracy.images,
        ta=accuracy.ta,
        ra=accuracy.ra,
        attack=f"PGD-{attack.steps}{restarts}, {job.attack.norm}, eps {in_pixel_units(attack.resolved_eps)}",
        communication=median(e["communication_seconds"] for e in whole) if whole else None,
        total=median(e["total_seconds"] for e in whole) if whole else None,
        exchange=recall_exchange(job.exchange, folder.choice_file).in_words(),
        megabytes=epochs[-1]["megabytes"] if epochs else None,
        epoch=epoch,
        aa=aa[0] if aa else None,
        aa_images=aa[1] if aa else None,
    )
