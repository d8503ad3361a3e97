"""TA and RA where they are known."""

import numpy as np
import pytest
import torch
from torch import nn

from hpcdat.config.job_file import read_job
from hpcdat.data.images import Images
from hpcdat.errors import InputError, WorkerError
from hpcdat.evaluation.accuracy import CheckedAccuracy, PgdAccuracy, measure_accuracy
from hpcdat.evaluation.image_batches import ImageBatches
from tests.conftest import DEMO
from tests.evaluation.conftest import execution


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above a half; robust as far as it is from it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        score = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], 1)


GREYS = [0.55, 0.65, 0.75, 0.95, 0.45, 0.25]
"""Grey levels of images of class 1, 1, 1, 1, 1 (wrong) and 0."""


def grey_images():
    x = torch.tensor(GREYS).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return x, torch.tensor([1, 1, 1, 1, 1, 0])


def settings(*more):
    return read_job(DEMO, ["evaluation.eps=0.1", *more]).evaluation


def flags(outcomes):
    return {
        name: "".join("1" if flag else "0" for flag in column) for name, column in outcomes.columns.items()
    }


class Fixed:
    """A loader of images of one grey level each."""

    def __init__(self, greys, labels):
        self.x = torch.tensor(greys).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
        self.y = torch.tensor(labels)

    def read(self, batches, seed):
        for indices in batches:
            yield self.x[indices], self.y[indices]


def measured(model, greys, labels, job, loader=None):
    pixels = np.zeros((len(greys), 2, 2, 1), np.uint8)
    images = Images([str(i) for i in range(len(greys))], labels, ["0", "1"], pixels)
    batches = ImageBatches(images, job.data, job.evaluation.batch_size, torch.device("cpu"))
    batches.loader = loader or Fixed(greys, labels)
    pgd = PgdAccuracy(job.evaluation, job.attack.norm, job.seed)
    return measure_accuracy(pgd, batches, model, job, execution())


def test_robust_images_are_those_correct_before_and_after_the_attack():
    """Margins 0.05, 0.15 and 0.25 at eps 0.1; the last two are wrong already."""
    job = read_job(DEMO, ["evaluation.eps=0.1", "evaluation.batch_size=3"])
    model = Threshold().train()
    accuracy = measured(model, [0.55, 0.65, 0.75, 0.45, 0.35, 0.9, 0.1], [1, 1, 1, 0, 0, 0, 1], job)
    assert (accuracy.images, accuracy.correct, accuracy.robust) == (7, 5, 3)
    assert accuracy.ta == 5 / 7 and accuracy.ra == 3 / 7
    assert model.training


def test_a_stronger_attack_finds_no_fewer():
    greys = torch.linspace(0, 1, 41).tolist()
    robust = []
    for eps in (0.0, 0.05, 0.1, 0.3, 1.0):
        job = read_job(DEMO, [f"evaluation.eps={eps}"])
        robust.append(measured(Threshold(), greys, [int(g > 0.5) for g in greys], job).robust)
    assert robust == sorted(robust, reverse=True) and robust[0] == 41 and robust[-1] == 0


def test_images_of_which_none_can_be_read():
    class Unreadable:
        def read(self, batches, seed):
            for _ in batches:
                yield torch.empty(0, 1, 2, 2), torch.empty(0, dtype=torch.int64)

    with pytest.raises(InputError, match="accuracy: none of the images can be read"):
        measured(Threshold(), GREYS, [1] * 6, read_job(DEMO), Unreadable())


def test_an_evaluation_that_runs_out_of_memory_names_its_own_batch_size():
    class TooLarge(Threshold):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    model = TooLarge().train()
    with pytest.raises(WorkerError, match=r"a evaluation\.batch_size smaller than 100"):
        measured(model, [0.5], [1], read_job(DEMO))
    assert model.training


def test_accuracy_and_the_columns_of_its_sanity_checks():
    x, y = grey_images()
    found = flags(CheckedAccuracy(settings(), "linf", seed=0).measure(Threshold(), x, y, 0))
    assert (found["correct"], found["robust"], found["gradient"]) == ("111101", "011101", "111111")
    assert all(s >= r for s, r in zip(found["steady"], found["robust"], strict=True)), "noise is weaker"


def test_the_checks_change_nothing_about_ta_and_ra(load):
    loaded, images = load("evaluation.eps=0.1")
    batches = ImageBatches(images, loaded.job.data, 40, torch.device("cpu"))
    ((x, y),) = batches.loader.read(list(batches.batches.values()), seed=0)
    plain, checked = (
        flags(kind(loaded.job.evaluation, "linf", seed=3).measure(loaded.model, x, y, 7))
        for kind in (PgdAccuracy, CheckedAccuracy)
    )
    assert plain.items() < checked.items() and "0" in plain["robust"] and "1" in plain["robust"]


def test_an_image_must_be_robust_from_every_start():
    """One pixel, and an attack that stays where it starts: a tenth of the ball is beyond the threshold."""
    x, y = torch.full((2000, 1, 1, 1), 0.58), torch.ones(2000, dtype=torch.int64)

    def robust(restarts):
        more = ["evaluation.step_size=0", f"evaluation.restarts={restarts}"]
        return PgdAccuracy(settings(*more), "linf", seed=0).measure(Threshold(), x, y, 0).columns["robust"]

    once, often = robust(1), robust(10)
    assert abs(once.mean() - 0.9) < 0.03 and abs(often.mean() - 0.9**10) < 0.04
    assert not (often & ~once).any(), "the first start is the same"
