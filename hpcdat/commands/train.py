"""Train one job on every worker."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hpcdat.commands.run_result import conclude_run
from hpcdat.config.job import Job
from hpcdat.config.methods import METHODS
from hpcdat.data import find_images
from hpcdat.data.image_check import check_images
from hpcdat.data.images import Images
from hpcdat.data.listing import find_together
from hpcdat.data.pseudo_labelled import joined, read_pseudo_labelled
from hpcdat.data.sampler import images_of_groups
from hpcdat.data.staging import remove_copies, stage_folder, stage_images
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.device import check_own_gpus, choose_device
from hpcdat.distributed.engine import change_of_engine
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import InputError
from hpcdat.models import build_model_for
from hpcdat.out_of_memory import enough_memory
from hpcdat.performance.autotune import choose_exchange
from hpcdat.progress import Progress
from hpcdat.report.result_table import result_table
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import Result, RunFolder
from hpcdat.tracking.tracking import Tracking, check_trackers
from hpcdat.training.roles import assign_roles, groups_of_batches
from hpcdat.training.step import Algorithm1
from hpcdat.training.trainer import Trainer
from hpcdat.training.validation import ImageSplits, hold_out


def train(job: Job, workers: Communicator, stop: StopRequest, *, overwrite: bool = False) -> Result:
    """Train a job to its end, from the start or from the checkpoint in its run folder.

    Args:
        job: resolved.
        workers: all of them call this together.
        stop: request to stop.
        overwrite: discard an earlier run in the folder and restart.

    Returns:
        The result, which worker 0 has written to the run folder, or the stored one if the run is already
        finished.

    Raises:
        InputError: data or run folder cannot be used, or the method does not allow so many nodes.
        WorkerError: something failed on a worker.
        Stopped: a stop was requested.
    """
    check_workers(job, nodes=workers.nodes, size=workers.size)
    if job.trackers:
        workers.on_rank0("load the trackers", lambda: check_trackers(job.trackers))
    device = workers.on_all_ranks("choose a device", lambda: choose_device(job, workers))
    check_own_gpus(device, workers)
    find = partial(find_images, job.data, folders=job.module_path or ())
    train_images, test_images = find_together(find, job.data, workers)
    images = workers.on_all_ranks("hold images out", lambda: hold_out(train_images, test_images, job))
    if unlabelled := job.data.unlabelled:
        mixed = workers.on_all_ranks("read data.unlabelled", lambda: _mixed(unlabelled, images.train))
        images = images._replace(train=mixed)
    folder = RunFolder(job.run_dir)
    tracking = Tracking(job, folder, job.trackers if workers.is_rank0 else [])
    environment = describe_environment(workers, device)

    def begin() -> list[str]:
        # Before this start is recorded.
        engine = _recorded_engine(folder)
        return [folder.begin(job, environment, overwrite=overwrite), engine]

    # Worker 0 decides for all: another node may see the folder a moment later.
    state, engine_before = workers.on_rank0("make the run folder", begin)
    if state == "finished":
        if workers.is_rank0:
            print(f"the run in {job.run_dir} is finished; --overwrite starts it over", flush=True)
        return workers.on_all_ranks("read the result", folder.read_result)
    progress = Progress(shown=workers.is_rank0)
    if state == "new":
        check_images(images.train, [images.validation, images.test], job.data, workers, stop, progress)
    images, staged = _staged(images, job, workers, stop, progress)
    with closing(tracking):
        with enough_memory(job, "batch_size"):
            model = workers.on_all_ranks("build the model", lambda: _build(job, images.train, device))
            exchange = choose_exchange(job.exchange, workers, model, folder.choice_file, progress)
            algorithm = Algorithm1(job, model, exchange, workers, device)
            # The thread of the exchange would keep model and buffers in a process that trains again.
            with closing(algorithm.exchange), closing(Trainer(algorithm, folder, images, stop)) as trainer:
                if state == "unfinished":
                    trainer.resume()
                    if note := change_of_engine(engine_before, workers.engine, workers.size):
                        progress.say(note)
                if job.trackers:
                    workers.on_rank0("start the trackers", tracking.begin)
                trained, averaged = trainer.run()
        epoch = trainer.state.epoch
        if averaged:
            # First: the run is finished as soon as its own result is written.
            conclude_run(folder, job, *averaged, epoch, workers, averaged=True, finished=False)
        result = conclude_run(folder, job, *trained, epoch, workers, finished=True)
        tracking.conclude(result, finished=True)
    if not job.data.stage_keep:
        for stage in staged:
            remove_copies(stage, workers)
    return result


def _staged(
    images: ImageSplits, job: Job, workers: Communicator, stop: StopRequest, progress: Progress
) -> tuple[ImageSplits, list[Path]]:
    """The images that are read in several epochs, from copies on this node, and the folders of these.

    Those are the training images of the batches that this node's workers read and, if they are used before
    the end of training, the validation images.
    """
    if job.data.stage is None:
        return images, []
    roles = assign_roles(job, workers.size)
    groups = groups_of_batches(job.data.split, roles, workers.node_of)
    node = workers.node_of[workers.rank]
    here = [role for role, of in zip(roles, workers.node_of, strict=True) if of == node]
    read = {number for role in here for number in role.reads}
    labelled = len(images.train) - images.train.unlabelled
    own = images_of_groups(labelled, groups, {groups[number] for number in read}, seed=job.seed)
    unlabelled = np.arange(labelled, len(images.train))
    wanted = {"train": (images.train, np.concatenate([own, unlabelled]))}
    if job.evaluation.every:
        wanted["validation"] = (images.validation, np.arange(len(images.validation)))
    folders = [stage_folder(job.data.stage, *one, workers) for one in wanted.values()]
    copied = {
        split: stage_images(*one, folder, workers, stop, progress)
        for (split, one), folder in zip(wanted.items(), folders, strict=True)
    }
    return images._replace(**copied), folders


def train_seeds(
    job: Job, count: int, workers: Communicator, stop: StopRequest, *, overwrite: bool = False
) -> dict[Path, Result]:
    """Train a job with several seeds in succession, each in its own run folder.

    Finished runs are not trained again, so the same command resumes.

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
            raise InputError(f"run_dir {job.run_dir} holds a run of a single seed: choose another folder")

    workers.on_rank0("check run_dir", check)
    results = {}
    for seed in range(job.seed, job.seed + count):
        one = job.model_copy(update={"seed": seed, "run_dir": job.run_dir / f"seed-{seed}"})
        if workers.is_rank0:
            print(f"seed {seed} ({one.run_dir})", flush=True)
        results[one.run_dir] = train(one, workers, stop, overwrite=overwrite)
    table = result_table(results, mean=True) + "\n"
    workers.on_rank0("write the table", lambda: write_text(job.run_dir / "result.md", table))
    return results


def _recorded_engine(folder: RunFolder) -> str:
    """The engine of the run's latest start; empty if there is none on record."""
    try:
        return str(folder.environment().get("engine", "")) if folder.environment_file.exists() else ""
    except InputError:
        # A damaged record is about to be replaced.
        return ""


def check_workers(job: Job, *, nodes: int, size: int) -> None:
    """Check that a number of workers and nodes can train a job, before any worker starts.

    Args:
        job: resolved.
        nodes: number of nodes (p).
        size: number of workers (M).

    Raises:
        InputError: they cannot.
    """
    if METHODS[job.method].centralised and nodes > 1:
        raise InputError(
            f"method {job.method} is centralised training on one node (DAT Sec. 6.1), but this run has "
            f"{nodes} nodes: use dat-pgd-without-lalr or dat-fgsm-without-lalr",
            everywhere=True,
        )
    assign_roles(job, size)


def _build(job: Job, train_images: Images, device: torch.device) -> torch.nn.Module:
    with enough_memory(job, "batch_size"):
        return build_model_for(job, len(train_images.classes), device)


def _mixed(unlabelled: Path, labelled: Images) -> Images:
    return joined(labelled, read_pseudo_labelled(unlabelled, labelled.classes))
