"""Pseudo-labels of a trained model."""

import numpy as np
import pytest
import torch

from hpcdat.commands.pseudo_label import pseudo_label
from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.data import find_images
from hpcdat.data.pseudo_labelled import read_pseudo_labelled, write_pseudo_labelled
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, Stopped
from hpcdat.models import build_model_for
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, Never


@pytest.fixture
def source(trained, tmp_path):
    """Some test images of the run, as an array of all of them."""
    from PIL import Image

    _, images = find_images(RunFolder(trained).read_job(["data.test_images=30"]).data)
    pixels = np.stack([np.asarray(Image.open(file))[..., None] for file in images.files])
    np.save(tmp_path / "images.npy", pixels)
    return tmp_path / "images.npy"


def test_labels_are_the_models_own(trained, source, tmp_path):
    found = pseudo_label(trained, source, tmp_path / "out.npz", [], SingleProcess(), Never())
    run = RunFolder(trained)
    checkpoint = run.newest_checkpoint()
    images = read_pseudo_labelled(tmp_path / "out.npz", checkpoint.classes)
    model = build_model_for(run.read_job([]), 10)
    model.load_state_dict(checkpoint.model)
    pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        assert images.labels.tolist() == model.eval()(pixels).argmax(1).tolist()
    assert list(found.values()) == np.bincount(images.labels, minlength=10).tolist()


@pytest.mark.parametrize("out", ["nowhere/out.npz", "."])
def test_a_file_that_cannot_be_written_is_reported_before_the_images_are_read(trained, tmp_path, out):
    missing = tmp_path / "images.npy"
    with pytest.raises(InputError, match=rf"{tmp_path / out}: cannot be written \(.*\): choose"):
        pseudo_label(trained, missing, tmp_path / out, [], SingleProcess(), Never())
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_is_not_replaced(trained, source, tmp_path):
    (tmp_path / "photo.npz").write_bytes(b"x")
    np.savez(tmp_path / "own.npz", images=np.zeros(1))
    for name in ("photo.npz", "own.npz"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match=f"{name}: exists and holds no pseudo-labels: choose another"):
            pseudo_label(trained, source, tmp_path / name, [], SingleProcess(), Never())
        assert (tmp_path / name).read_bytes() == before
    for _ in range(2):
        pseudo_label(trained, source, tmp_path / "out.npz", [], SingleProcess(), Never())


class OneOfTwo(SingleProcess):
    """The other worker, which has finished its share, requests a stop."""

    def iall_reduce(self, tensors, name):
        if name == "whether all have done their share":
            tensors[0] += torch.tensor([1, 0, 1])
        return super().iall_reduce(tensors, name)


def test_a_stop_of_one_worker_ends_all(trained, source, tmp_path):
    with pytest.raises(Stopped):
        pseudo_label(trained, source, tmp_path / "out.npz", [], OneOfTwo(), Never())
    assert not (tmp_path / "out.npz").exists()


def mixed_job(tmp_path, count, *more):
    """A job of 50 labelled images and so many others."""
    settings = ["method=plain", "epochs=1", "batch_size=25", "data.train_images=50", "data.test_images=30"]
    settings += [f"run_dir={tmp_path / 'run'}", "evaluation.steps=1", f"data.unlabelled={tmp_path / 'x.npz'}"]
    job = read_job(DEMO, [*settings, *more])
    images = find_images(job.data)[1].equal_part(count)
    write_pseudo_labelled(tmp_path / "x.npz", images, np.array(images.labels))
    return job


@pytest.mark.parametrize("last_batch, images, left_out", [("short", 96, 0), ("drop", 75, 11)])
def test_a_job_trains_on_as_many_of_them_as_of_its_own_to_the_image(tmp_path, last_batch, images, left_out):
    job = mixed_job(tmp_path, 30, f"data.last_batch={last_batch}")
    train(job, SingleProcess(), Never())
    (epoch,) = RunFolder(job.run_dir).metrics("epoch")
    # 13, 13, 13 and 11 of its own, with 12, 12, 12 and 10 of them: no batch is larger than 25.
    assert (epoch["images"], epoch["left_out_images"]) == (images, left_out)


class FirstOfTwoNodes(SingleProcess):
    """The first of two nodes, without the other one."""

    def __init__(self):
        super().__init__()
        self.size = self.nodes = 2
        self.node_of = [0, 1]


def test_too_few_for_the_nodes_are_refused_before_the_run_is_fixed(tmp_path, monkeypatch):
    # The other node does not answer.
    monkeypatch.setattr("hpcdat.commands.train.check_images", lambda *arguments: None)
    with pytest.raises(InputError, match="1 images are too few for 2 nodes"):
        train(mixed_job(tmp_path, 1, "data.split=nodes"), FirstOfTwoNodes(), Never())
    job = mixed_job(tmp_path, 1)
    train(job, SingleProcess(), Never())
    assert RunFolder(job.run_dir).metrics("finished")
