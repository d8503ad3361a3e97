"""TA and RA where they are known."""

import pytest
import torch
from torch import nn

from hpcdat.cluster.workers import Workers
from hpcdat.errors import InputError, WorkerError
from hpcdat.evaluation.accuracy import Evaluator
from hpcdat.job_file import read_job
from hpcdat.progress import Progress
from tests.conftest import DEMO, Never


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above a half; robust as far as it is from it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        score = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], 1)


class Fixed:
    """A loader of given means: images of one grey level each."""

    def __init__(self, greys, labels):
        self.x = torch.tensor(greys).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
        self.y = torch.tensor(labels)

    def read(self, batches, seed):
        for indices in batches:
            yield self.x[indices], self.y[indices]


def evaluated(model, loader, count, job):
    progress = Progress(shown=False)
    return Evaluator(loader, count, job.evaluation, job, Workers(), progress, Never()).measure(model)


def test_robust_images_are_those_right_before_and_after_the_attack():
    """Margins 0.05, 0.15 and 0.25 at eps 0.1; the last two are wrong already."""
    loader = Fixed([0.55, 0.65, 0.75, 0.45, 0.35, 0.9, 0.1], [1, 1, 1, 0, 0, 0, 1])
    job = read_job(DEMO, ["evaluation.eps=0.1", "evaluation.batch_size=3"])
    model = Threshold().train()
    accuracy = evaluated(model, loader, 7, job)
    assert (accuracy.images, accuracy.correct, accuracy.robust) == (7, 5, 3)
    assert accuracy.ta == 5 / 7 and accuracy.ra == 3 / 7
    assert model.training


def test_a_stronger_attack_finds_no_fewer():
    greys = torch.linspace(0, 1, 41).tolist()
    loader = Fixed(greys, [int(g > 0.5) for g in greys])
    robust = []
    for eps in (0.0, 0.05, 0.1, 0.3, 1.0):
        job = read_job(DEMO, [f"evaluation.eps={eps}"])
        robust.append(evaluated(Threshold(), loader, 41, job).robust)
    assert robust == sorted(robust, reverse=True) and robust[0] == 41 and robust[-1] == 0


def test_images_of_which_none_can_be_read_are_told():
    class Unreadable:
        def read(self, batches, seed):
            for _ in batches:
                yield torch.empty(0, 1, 2, 2), torch.empty(0, dtype=torch.int64)

    with pytest.raises(InputError, match="none of its images can be read"):
        evaluated(Threshold(), Unreadable(), 7, read_job(DEMO))


def test_an_evaluation_that_runs_out_of_memory_names_its_own_batch_size():
    class TooLarge(Threshold):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(WorkerError, match=r"a evaluation\.batch_size smaller than 100"):
        evaluated(TooLarge(), Fixed([0.5], [1]), 1, read_job(DEMO))
