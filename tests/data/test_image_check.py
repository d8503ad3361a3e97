"""Images are checked before training starts: which ones, by which worker, and what comes of it."""

import threading

import numpy as np
import pytest
from PIL import Image

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.config.sections import Data
from hpcdat.data import find_images, image_check
from hpcdat.data.encoded_images import Files
from hpcdat.data.image_check import check_images
from hpcdat.data.images import DataError, Images
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import Stopped
from hpcdat.progress import Progress
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO, Never

GREY = {"image_size": 8, "channels": 1}


@pytest.fixture
def root(tmp_path):
    """Two classes of four training and three test images."""
    for split, count in (("train", 4), ("test", 3)):
        for name in "ab":
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), 30 * number).save(tmp_path / "set" / split / name / f"{number}.png")
    return tmp_path / "set"


def check(data, workers=None, stop=None):
    training, test = find_images(data)
    workers = workers or SingleProcess()
    check_images(training, [test, test], data, workers, stop, Progress(shown=workers.is_rank0))


@pytest.fixture
def checked(monkeypatch):
    """The files that are checked."""
    files, read = [], Files.read

    def spied(self, index):
        files.append(self.name(index))
        return read(self, index)

    monkeypatch.setattr(Files, "read", spied)
    return files


@pytest.mark.parametrize("loader", ["dali", "torchvision", "device"])
def test_a_test_image_that_cannot_be_read_is_found_before_the_first_step(root, monkeypatch, loader):
    (root / "test" / "b" / "1.png").write_bytes(b"GIF89a that is none")
    monkeypatch.setattr(Algorithm1, "step", None)
    settings = [f"run_dir={root}/run", "data.source=folder", f"data.root={root}", f"data.loader={loader}"]
    with pytest.raises(DataError, match=r"test/b/1.png: cannot be read as an image: .*data.corrupt: skip"):
        train(read_job(DEMO, [*settings, "batch_size=2"]), SingleProcess(), Never())


def test_workers_check_each_image_once_and_all_learn_what_was_found(root, checked):
    for file in ("train/a/2.png", "test/a/0.png", "test/b/0.png", "test/b/2.png"):
        (root / file).write_bytes(b"")
    data = Data(root=root, **GREY)

    def program(worker):
        with pytest.raises(DataError) as refused:
            check(data, worker)
        return str(refused.value)

    told = run_threads(loopback(3), program)
    assert told[0] == told[1] == told[2] and told[0].startswith(f"{root}/train/a/2.png: cannot be read as ")
    assert told[0].endswith(
        "and 1 more of 14 images checked before training (data.corrupt: skip leaves such images out)"
    )
    assert "\n" not in told[0]
    assert len(checked) == len(set(checked)) == 14


def test_of_many_training_images_a_sample_of_all_classes_is_checked(root, checked, monkeypatch):
    monkeypatch.setattr(image_check, "TRAINING_IMAGES_CHECKED", 2)
    data = Data(root=root, **GREY)
    run_threads(loopback(2), lambda worker: check(data, worker))
    of_training = sorted(file for file in checked if "/train/" in file)
    assert of_training == [f"{root}/train/{name}/{number}.png" for name in "ab" for number in (0, 2)]
    assert len(checked) == 4 + 6


def test_test_images_are_decoded_unless_there_are_very_many(root, monkeypatch):
    file = root / "test" / "a" / "1.jpg"
    Image.effect_noise((64, 64), 50).save(file, progressive=True)
    content = bytearray(file.read_bytes())
    scan = content.rindex(b"\xff\xda")
    content[scan + 5 : scan + 9] = b"\xee\xee\xee\xee"
    file.write_bytes(content)
    data = Data(root=root, **GREY)
    with pytest.raises(DataError, match=r"1\.jpg: cannot be read as an image: found a damaged JPEG file"):
        check(data)
    monkeypatch.setattr(image_check, "IMAGES_DECODED", 6)
    check(data)


def test_images_that_are_skipped_are_counted_before_training(root, capfd, checked):
    data = Data(root=root, corrupt="skip", **GREY)
    check(data)
    assert len(checked) == 6 and capfd.readouterr().out == ""
    (root / "train" / "a" / "0.png").write_bytes(b"")
    (root / "test" / "a" / "0.png").write_bytes(b"")
    check(data)
    told = capfd.readouterr().out
    assert "1 of 6 test images cannot be read and will be left out (data.corrupt: skip); " in told
    for file in (root / "test").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 6 test images can be read: .*: found an empty file"):
        check(data)


def test_images_in_memory_or_on_the_device_are_not_checked(root, checked):
    check(Data(root=root, loader="device", **GREY))
    memory = Images(["x"], [0], ["a"], np.zeros((1, 8, 8, 1), np.uint8))
    check_images(memory, [memory], Data(root="x"), SingleProcess(), None, Progress(shown=False))
    assert checked == []


def test_a_stop_is_heard_while_a_file_system_does_not_answer(root, monkeypatch):
    hangs, answered = threading.Event(), threading.Event()

    def never(self, index):
        hangs.set()
        answered.wait(60)
        return b""

    class OnceItHangs:
        @property
        def requested(self):
            return hangs.is_set()

    monkeypatch.setattr(Files, "read", never)
    try:
        with pytest.raises(Stopped, match="rerun the same command to check the images"):
            check(Data(root=root, **GREY), stop=OnceItHangs())
        assert not answered.is_set()
    finally:
        answered.set()
