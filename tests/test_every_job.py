"""Every job file trains and evaluates with its own network, method, exchange and optimiser.

The data are replaced, by a tiny stand-in with as many classes and smaller pictures, and the sizes that follow
from them: batches, epochs, images held out. To save time the evaluation attacks with two steps, nothing is
compiled, and most networks are smaller: ResNet-50 has one block in each stage, others an eighth of the width
in each layer. The jobs of :data:`WHOLE` and those that start from given weights have their network as it is.
"""

import ctypes
import gc
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet50
from torchvision.models.resnet import Bottleneck, ResNet

from hpcdat import models
from hpcdat.commands import train as command
from hpcdat.config.job_file import read_job
from hpcdat.data.encoded_images import Files
from hpcdat.data.images import Images
from hpcdat.data.pseudo_labelled import write_pseudo_labelled
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.exchange import gradient_exchange
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.roles import assign_roles
from tests.conftest import CHECKOUT, Never

JOBS = CHECKOUT / "jobs"
# The last layers of ResNet-50 see one pixel: batch norm of two such values explodes at SGD's rate.
STEPS, BATCH, TEST_IMAGES, HELD_OUT = 2, 4, 4, 4
WHOLE = {
    "cifar10-unlabelled-wrn-dat-pgd.yaml",
    "cifar10-dat-pgd.yaml",
    "imagenet-dat-pgd.yaml",
    "imagenet-dat-fgsm-8-two-sided.yaml",
    "conadv/4k/conadv-aa.yaml",
    "conadv/4k/disadv.yaml",
    "miniature/dat-pgd.yaml",
}
"""Jobs whose network is not made smaller: every network, and every method and exchange of its own on one."""
SMALL = 1 / 8
"""Factor of the channels of other networks than ResNet-50."""
TIMEOUT = 280
"""Seconds that a worker waits for the others."""
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "folder": 1000}
WIDE = ("preact-resnet18", "wide-resnet28-10")
"""Networks that have a width."""
SIZES = {"digits-cnn": 8, "preact-resnet18": 8, "wide-resnet28-10": 8, "resnet50": 16}


def classes_of(job):
    """Names of the classes of the data that a job trains on: five of the digits for Figure 4 in miniature."""
    halves = job.data.source == "folder" and job.model.name == "digits-cnn"
    return [f"class-{i:04}" for i in range(5 if halves else CLASSES[job.data.source])]


def picture(number, channels, size=40):
    shape = (size, size, 3) if channels == 3 else (size, size)
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """Makes so many images like those of a job: files, or for CIFAR pixels in memory."""
    folder = tmp_path_factory.mktemp("images")

    def make(job, count):
        classes, channels = classes_of(job), job.data.channels
        labels = [i * len(classes) // count for i in range(count)]
        names = [str(folder / f"{channels}-{i}.png") for i in range(count)]
        if job.data.source.startswith("cifar"):
            return Images(names, labels, classes, np.stack([picture(i, 3, 32) for i in range(count)]))
        for i, name in enumerate(names):
            Image.fromarray(picture(i, channels)).save(name)
        return Images(Files.of(names), labels, classes)

    return make


@pytest.fixture(scope="session")
def weights_of_resnet50(tmp_path_factory):
    """Stands for the pre-training that Figure 4 starts from."""
    file = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(resnet50().state_dict(), file)
    return file


def small_resnet50(channels, num_classes):
    """ResNet-50 with one block in each of its four stages."""
    assert channels == 3
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=num_classes)


def workers_of(job):
    """As few workers as divide the roles of a job, real ones where its exchange is more than a plain sum."""
    concurrent = job.concurrent
    cell = (2 if concurrent.halves == "apart" else 1) + (concurrent.place == "workers")
    if job.smoothing.workers * cell > 1:
        return loopback(job.smoothing.workers * cell, timeout=TIMEOUT)
    if job.exchange.protocol == "hierarchical":
        return loopback(3, node_of=[0, 0, 1], timeout=TIMEOUT)
    if (job.exchange.protocol, job.exchange.bits) != ("ring", 32):
        return loopback(2, node_of=[0, 1], timeout=TIMEOUT)
    return [SingleProcess()]


def shortened(path, folder, stand_in, weights):
    """A job with other data, two steps long, its workers and its training and test images."""
    job = read_job(path)
    workers = workers_of(job)
    if len(workers) == 1:
        job = job.model_copy(update={"virtual_workers": 2})
    batches = len({number for role in assign_roles(job, len(workers)) for number in role.trains})
    labelled = BATCH // 2 if job.data.unlabelled else BATCH
    held_out = HELD_OUT if job.early_stopping.held_out else 0
    train_images = stand_in(job, STEPS * labelled * batches + held_out)
    data = {"image_size": SIZES[job.model.name], "train_images": None, "test_images": None, "root": None}
    if job.data.unlabelled:
        data["unlabelled"] = folder / "unlabelled.npz"
        write_pseudo_labelled(data["unlabelled"], stand_in(job, 8), np.arange(8, dtype=np.int64))
    model = {"compiled": False, "pretrained": job.model.pretrained and weights}
    if path.relative_to(JOBS).as_posix() not in WHOLE and job.model.name in WIDE:
        model["width"] = job.model.width * SMALL
    sections = {
        "data": job.data.model_copy(update=data),
        "model": job.model.model_copy(update=model),
        "early_stopping": job.early_stopping.model_copy(update={"held_out": held_out}),
        "evaluation": job.evaluation.model_copy(update={"steps": 2, "every": min(job.evaluation.every, 1)}),
    }
    update = {"run_dir": folder / "run", "epochs": 1, "batch_size": BATCH, "device": "cpu", **sections}
    return job.model_copy(update=update), workers, (train_images, stand_in(job, TEST_IMAGES))


@pytest.mark.full
@pytest.mark.parametrize("path", sorted(JOBS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(JOBS)))
def test_a_job_file_trains_two_steps_and_evaluates(
    path, tmp_path, monkeypatch, stand_in, weights_of_resnet50
):
    job, workers, images = shortened(path, tmp_path, stand_in, weights_of_resnet50)
    monkeypatch.setattr(command, "find_images", lambda data, **_: images)
    if path.relative_to(JOBS).as_posix() not in WHOLE and not job.model.pretrained:
        monkeypatch.setitem(models.MODELS, "resnet50", small_resnet50)
    # torch.compile is not made for several threads, which here are the workers.
    monkeypatch.setattr(gradient_exchange, "pays_to_compile", lambda count: False)
    try:
        if len(workers) == 1:
            results = [command.train(job, workers[0], Never())]
        else:
            results = run_threads(workers, lambda worker: command.train(job, worker, Never()))
        assert all(result == results[0] for result in results)
        assert results[0].images == TEST_IMAGES and results[0].epoch == 1
        (epoch,) = RunFolder(job.run_dir).metrics("epoch")
        assert epoch["images"] == STEPS * BATCH * results[0].batches
        assert epoch["skipped_steps"] == 0 and np.isfinite(epoch["cost"])
        evaluations = RunFolder(job.run_dir).metrics("evaluation")
        assert any(e["held_out"] for e in evaluations) == (job.early_stopping.held_out > 0)
    finally:
        # A quarter of a gigabyte a checkpoint of ResNet-50.
        shutil.rmtree(job.run_dir, ignore_errors=True)
        # Models and loaders refer to themselves: a hundred of them are more than a machine's memory.
        gc.collect()
        # The memory of threads that have ended would stay with this process, three hundred MiB a job.
        ctypes.CDLL(None).malloc_trim(0)
