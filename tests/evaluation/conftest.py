"""A trained model, for everything that looks at one."""

import pytest

from hpcdat.data import find_images
from hpcdat.evaluation.sharding import Subject
from hpcdat.models import build_model_for
from hpcdat.record import RunFolder


@pytest.fixture
def load(trained, tmp_path):
    """The trained model and some test images of each class, with settings of one's own."""

    def load(*settings, images=40):
        job = RunFolder(trained).read_job([f"data.test_images={images}", *settings])
        _, test_images = find_images(job.data)
        model = build_model_for(job, len(test_images.classes))
        model.load_state_dict(RunFolder(trained).newest_checkpoint().model)
        return Subject(model.eval(), job, tmp_path / "evaluation"), test_images

    return load
