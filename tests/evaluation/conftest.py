"""A trained model to evaluate."""

from pathlib import Path
from typing import NamedTuple

import pytest
from torch import nn

from hpcdat.config.job import Job
from hpcdat.data import find_images
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.models import build_model_for
from hpcdat.progress import Progress
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import Never


class Calls(nn.Module):
    """Counts the images that pass a network."""

    def __init__(self, network):
        super().__init__()
        self.network, self.images = network, 0

    def forward(self, x):
        self.images += len(x)
        return self.network(x)


class Loaded(NamedTuple):
    """A trained model in evaluation mode, its job, and a folder for outcomes."""

    model: nn.Module
    job: Job
    folder: Path


def execution(stop=None, workers=None):
    """One worker, without progress output."""
    return Execution(workers or SingleProcess(), Progress(shown=False), stop or Never())


@pytest.fixture
def load(trained, tmp_path):
    """Loads the trained model and some test images of each class, with the given settings."""

    def load(*settings, images=40):
        job = RunFolder(trained).read_job([f"data.test_images={images}", *settings])
        _, test_images = find_images(job.data)
        model = build_model_for(job, len(test_images.classes))
        model.load_state_dict(RunFolder(trained).newest_checkpoint().model)
        return Loaded(model.eval(), job, tmp_path / "evaluation"), test_images

    return load
