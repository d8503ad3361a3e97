"""The doctor reads images as training does."""

from pathlib import Path

import pytest

from hpcdat.config.job_file import read_job
from hpcdat.config.sections import Data
from hpcdat.data import find_images
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.doctor import storage
from tests.conftest import DEMO, Never


def test_images_are_read_as_in_training(photos, monkeypatch):
    monkeypatch.setattr(storage, "_needed", lambda *_: 7.0)
    monkeypatch.setattr(storage, "SECONDS", 0.0)
    settings = ["data.source=folder", f"data.root={photos}", "data.train_images=3"]
    (node,) = storage.measure_storage(read_job(DEMO, settings), SingleProcess(), Never())
    assert node.needed == 7 and node.images > 0
    files = list(find_images(Data(root=photos, train_images=3))[0].files)
    mean = sum(Path(file).stat().st_size for file in files) / 3
    assert node.bytes / node.images == pytest.approx(mean)
    for without in ("data.source=digits", f"data.root={photos}/none"):
        assert storage.measure_storage(read_job(DEMO, [*settings, without]), SingleProcess(), Never()) == []
