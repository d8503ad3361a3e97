"""Attacks, evaluation, certification, loaders and averages on a fake GPU."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from hpcdat import PGD
from hpcdat.config.job_file import read_job
from hpcdat.config.measurements import Certification
from hpcdat.data.device_loader import DeviceLoader
from hpcdat.data.images import Images
from hpcdat.data.mixing import mix
from hpcdat.evaluation import sharded_runner
from hpcdat.evaluation.accuracy import CheckedAccuracy, PgdAccuracy
from hpcdat.evaluation.certification.certifier import Sampling
from hpcdat.evaluation.in_memory import TensorBatches
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.evaluation.sweep import Sweep
from hpcdat.models import build_model_for
from hpcdat.models.losses import Labelled, clean_loss
from hpcdat.progress import Progress
from hpcdat.training.replicas import BatchNormStatistics
from hpcdat.training.weight_averages import AveragedWeights
from tests.conftest import DEMO
from tests.fake_cuda.gpu import CUDA
from tests.fake_cuda.workers import EqualWorkers, check_sent

COLUMN = "evaluation.outcomes.from_tensors: copy to the host"
"""The outcomes of a batch, a column of booleans each, which are stored."""
MASK = "evaluation.pgd.still_robust: mask"
"""The images that are left, their labels and, of the first start, their points."""
ONE_START = Counter({"evaluation.pgd.robust: number": 1, MASK: 3})
"""An attack of a batch from one random start."""


@pytest.fixture
def job():
    return read_job(DEMO, ["evaluation.steps=2"])


@pytest.fixture
def model(gpu, job):
    with torch.device(CUDA):
        model = build_model_for(job, 10).eval()
    gpu.waits.clear()
    return model


@pytest.fixture
def images(gpu):
    return Labelled(torch.rand(4, 1, 8, 8, device=CUDA), torch.zeros(4, dtype=torch.int64, device=CUDA))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("wait", [True, False])
def test_an_attack_waits_only_for_its_check_of_the_images(gpu, model, images, norm, wait, monkeypatch):
    asserted = []
    monkeypatch.setattr(torch, "_assert_async", lambda condition, message: asserted.append(message))
    attack = PGD(eps=0.1, step_size=0.05, steps=3, norm=norm)
    loss = partial(clean_loss, y=images.y)
    x_adv = attack(model, loss, images.x, torch.Generator(CUDA), wait=wait)
    assert (x_adv.device, x_adv.shape) == (CUDA, images.x.shape)
    assert gpu.waits == ({"attacks.pgd._check_images: number": 1} if wait else {})
    assert asserted == ([] if wait else ["images must lie in [0, 1]; normalise inside the model"])


def test_an_evaluation_waits_for_outcomes_of_each_batch(gpu, model, images, job):
    settings = job.evaluation.model_copy(update={"restarts": 3})
    PgdAccuracy(settings, "linf", 0).measure(model, *images, 0)
    # Each start attacks the images that are left, whose number has to be known.
    assert gpu.waits == {
        "evaluation.pgd.robust: number": 3,
        MASK: 3 + 2 + 2,
        COLUMN: 2,
    }


def test_the_checks_of_an_evaluation_wait_for_their_columns(gpu, model, images, job):
    CheckedAccuracy(job.evaluation, "linf", 0).measure(model, *images, 0)
    assert gpu.waits == ONE_START + Counter({COLUMN: 4})


def test_a_measurement_reads_the_range_of_each_batch(gpu, model, images, job, monkeypatch):
    batches = TensorBatches(images.x, images.y, 10, 2, CUDA)
    # Collectives of the CPU carry text, and fake tensors no numbers.
    monkeypatch.setattr(sharded_runner, "run_unevenly", lambda workers, task, work, stop: work(lambda: None))
    gpu.waits.clear()
    execution = Execution(EqualWorkers(1), Progress(shown=False), None)
    sharded_runner.run_sharded(PgdAccuracy(job.evaluation, "linf", 0), batches, model, job, execution)
    of_batches = Counter({"evaluation.sharded_runner.measure_own: tolist": 2, COLUMN: 4})
    # Logits and gradients of the folded network are checked once.
    checks = Counter({"attacks.folding.check: number": 2})
    assert gpu.waits == of_batches + ONE_START + ONE_START + checks


@pytest.mark.parametrize("over", ["eps", "steps"])
@pytest.mark.parametrize(
    "kind, asked, of_each",
    [
        ("plain", "evaluation.sweep._plain: number", ONE_START),
        # The images that are left, their labels and, with more radii, their points and where these go.
        ("accumulating", "evaluation.sweep._accumulating: number", Counter({MASK: 2})),
    ],
)
def test_a_sweep_waits_for_what_is_left_at_each_value(gpu, model, images, job, over, kind, asked, of_each):
    Sweep(over, [0.1, 0.2] if over == "eps" else [1, 2], job.evaluation, "linf", 0, kind).measure(
        model, *images, 0
    )
    expected = Counter({asked: 2, COLUMN: 2}) + of_each + of_each
    if kind == "accumulating" and over == "eps":
        expected.update({MASK: 1, "evaluation.sweep._accumulating: mask": 2})
    assert gpu.waits == expected


def test_certification_waits_once_for_an_image_and_once_for_its_label(gpu, model, images):
    settings = Certification(n0=8, n=20, batch_size=10)
    Sampling(0.25, settings, 10, 0).measure(model, images.x[:1], images.y[:1], 0)
    assert gpu.waits == {
        "evaluation.certification.smoothed_classifier.certify: tolist": 1,
        "evaluation.certification.certifier.measure: number": 1,
    }


@pytest.mark.parametrize("augmentation", ["none", "pad-crop"])
def test_the_device_loader_waits_for_nothing(gpu, job, augmentation):
    pixels = np.zeros((10, 8, 8, 1), np.uint8)
    images = Images([""] * 10, np.zeros(10, np.int64), ["a", "b"], pixels)
    data = job.data.model_copy(update={"augmentation": augmentation})
    loader = DeviceLoader(images, data, training=True, device=CUDA)
    gpu.waits.clear()
    for x, y in loader.read([np.arange(4), np.arange(0), np.arange(4, 10)], seed=0):
        assert (x.device, y.device) == (CUDA, CUDA)
    assert not gpu.waits


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixing_waits_for_nothing(gpu, job, images, mixing):
    mixed = mix(images, job.data.model_copy(update={"mixing": mixing, "mixing_alpha": 1.0}), 10, 0)
    assert (mixed.x.device, mixed.y.device) == (CUDA, CUDA)
    assert not gpu.waits


def test_averages_of_statistics_wait_for_nothing(gpu, model):
    workers = EqualWorkers(2)
    statistics = BatchNormStatistics(model, workers, {"clean": 1, "adversarial": 0})
    statistics.count(4)
    statistics.average()
    check_sent(workers)
    assert not gpu.waits


@pytest.mark.parametrize("setting", ["averaging.ema=0.9", "averaging.swa_from=1"])
def test_averages_of_weights_wait_for_nothing(gpu, model, setting):
    averages = AveragedWeights(model, read_job(DEMO, [setting]).averaging)
    for _ in range(2):
        averages.after_update()
    averages.end_epoch(1)
    with averages.in_model():
        assert all(t.is_cuda for t in averages.state().values())
    assert not gpu.waits
