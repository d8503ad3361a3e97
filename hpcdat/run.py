"""A whole run, as every one of its workers lives it: train, or evaluate."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median

import torch

from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import find_images, open_loader
from hpcdat.data.images import Images
from hpcdat.environment import describe_environment
from hpcdat.errors import InputError
from hpcdat.evaluation.accuracy import Accuracy, measure_accuracy
from hpcdat.job import METHODS, Job
from hpcdat.progress import Progress
from hpcdat.record import Result, RunFolder, State
from hpcdat.report.table import result_table
from hpcdat.trainer import Trainer, build_model_for


def train(job: Job, workers: Workers, stop: StopRequest, *, overwrite: bool = False) -> Result:
    """Train a job to its end, from the start or from the checkpoint in its run folder.

    Args:
        job: resolved.
        workers: who trains.
        stop: the user's wish to stop.
        overwrite: start over in a folder that holds an earlier run.

    Returns:
        The result, which worker 0 has written to the run folder; of a run that is finished already,
        the one that is there.

    Raises:
        InputError: data or run folder cannot be used, or the method needs fewer nodes.
        WorkerError: something failed on a worker.
        Stopped: a stop was asked for.
    """
    if METHODS[job.method].centralised and workers.nodes > 1:
        raise InputError(
            f"method {job.method} is centralised training (one node, DAT Sec. 6.1) and this run has "
            f"{workers.nodes} nodes: take dat-pgd-without-lalr or dat-fgsm-without-lalr",
            everywhere=True,
        )
    device = workers.together("choose a device", lambda: choose_device(job, workers))
    train_images, test_images = _images(job, workers)
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
    trainer = Trainer(job, workers, folder, train_images, test_images, device, stop)
    if state == "unfinished":
        trainer.resume()
    accuracy = trainer.run()
    return _conclude(folder, job, accuracy, job.epochs, workers, finished=True)


def evaluate(run_dir: Path, settings: list[str], workers: Workers, stop: StopRequest) -> Result:
    """Evaluate the latest checkpoint of a finished or interrupted run.

    Args:
        run_dir: the run's folder.
        settings: ``key=value`` texts, such as ``evaluation.steps=50``.
        workers: who evaluates.
        stop: the user's wish to stop.

    Returns:
        The result, which worker 0 has written to the run folder.

    Raises:
        InputError: the folder is not a run's, has no checkpoint, or a setting is wrong.
        WorkerError: something failed on a worker.
        Stopped: a stop was asked for.
    """
    folder = RunFolder(run_dir)
    job = workers.together("read the job", lambda: folder.read_job(settings))
    checkpoint = workers.together("read the checkpoint", folder.newest_checkpoint)
    device = workers.together("choose a device", lambda: choose_device(job, workers))
    train_images, test_images = _images(job, workers)

    def build() -> torch.nn.Module:
        if train_images.classes != checkpoint.classes:
            raise InputError(f"{job.data.root} holds other classes than those of the training")
        model = build_model_for(job, train_images)
        model.load_state_dict(checkpoint.model)
        return model.to(device)

    model = workers.together("build the model", build)
    loader = open_loader(
        test_images, job.data, training=False, batch_size=job.evaluation.batch_size, device=device
    )
    progress = Progress(shown=workers.is_first)
    accuracy = measure_accuracy(model, loader, len(test_images), job, workers, progress, stop)
    return _conclude(folder, job, accuracy, checkpoint.epoch, workers, finished=False)


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
    mine, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    # A launcher that binds each worker to its own cores has already divided them.
    bound = mine < all_cores
    torch.set_num_threads(mine if bound else max(1, mine // workers.local_size))
    return torch.device("cpu")


def _images(job: Job, workers: Workers) -> tuple[Images, Images]:
    return workers.together("find the images", lambda: find_images(job.data))


def _conclude(
    folder: RunFolder, job: Job, accuracy: Accuracy, epoch: int, workers: Workers, *, finished: bool
) -> Result:
    """Sum up what the run folder knows of the training and what was measured just now."""

    def conclude() -> Result:
        result = summarise(folder, job, accuracy, epoch)
        if workers.is_first:
            folder.write_result(result, result_table({folder.path: result}))
            if finished:
                folder.log(event="finished")
        return result

    return workers.together("write the result", conclude)


def summarise(folder: RunFolder, job: Job, accuracy: Accuracy, epoch: int) -> Result:
    """The row of a run in the result table.

    Args:
        folder: its records tell of the training: workers, times, bytes.
        job: what was evaluated, and how.
        accuracy: what came out.
        epoch: epochs trained.
    """
    team = folder.environment()
    epochs = folder.metrics("epoch")
    # An epoch that was broken off and gone on with has no time of its own.
    whole = [e for e in epochs if e["images"] == max(e["images"] for e in epochs)]
    attack = job.evaluation
    return Result(
        method=job.method,
        p=team["nodes"],
        q=len(team["workers"]) // team["nodes"],
        batch=job.batch_size,
        images=accuracy.images,
        ta=accuracy.ta,
        ra=accuracy.ra,
        attack=f"PGD-{attack.steps}, {job.attack.norm}, eps {in_pixel_units(attack.eps)}",
        communication=median(e["communication_seconds"] for e in whole) if whole else None,
        total=median(e["total_seconds"] for e in whole) if whole else None,
        megabytes=epochs[-1]["megabytes"] if epochs else None,
        epoch=epoch,
    )


def in_pixel_units(eps: float) -> str:
    """A radius as people write it: ``0.2``, or ``8/255`` where that is shorter."""
    if float(f"{eps:.3g}") == eps or abs(eps * 255 - round(eps * 255)) > 1e-6:
        return f"{eps:.4g}"
    return f"{round(eps * 255)}/255"
