"""Copies of images on a node's own disk: made once, read instead of the images, and never wrong."""

import json
import shutil
import subprocess
import threading

import numpy as np
import pytest

from hpcdat.config.job_file import read_job
from hpcdat.config.sections import Data
from hpcdat.data import find_images, staging
from hpcdat.data.digits import write_digits
from hpcdat.data.encoded_images import Files
from hpcdat.data.image_file import Unusable
from hpcdat.data.staging import remove_copies, stage_folder, stage_images
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, Stopped
from hpcdat.progress import Progress
from tests.conftest import DEMO, Never, run_here

QUIET = Progress(shown=False)


@pytest.fixture
def root(photos, tmp_path):
    """Photographs of one's own, which a test may change."""
    return shutil.copytree(photos, tmp_path / "photos")


def stage(images, data, workers, wanted=None, stop=None):
    wanted = np.arange(len(images)) if wanted is None else wanted
    folder = stage_folder(data.stage, images, wanted, workers)
    return stage_images(images, wanted, folder, workers, stop or Never(), QUIET)


def read_all(images):
    return [images.encoded.read(index) for index in range(len(images))]


def test_the_workers_of_each_node_copy_what_the_node_reads(root, tmp_path):
    """Three workers on two nodes, of which each has a part of its own."""
    data = Data(root=root, stage=tmp_path / "scratch")
    images = find_images(data)[0]
    before = read_all(images)
    parts = [np.array([0, 2, 4]), np.array([1, 3])]

    def program(worker):
        own = parts[worker.node_of[worker.rank]]
        return own, stage(images, data, worker, own)

    staged = run_threads(loopback(3, node_of=[0, 0, 1]), program)
    for _, copied in staged:
        assert read_all(copied) == before
        assert copied.files == images.files and copied.signature == images.signature
        some = np.array([4, 1, 2])
        assert read_all(copied.subset(some)) == [before[index] for index in some]
        assert copied.subset(some).files == images.subset(some).files
    shutil.rmtree(root / "train")
    for own, copied in staged:
        assert [copied.encoded.read(index) for index in own] == [before[index] for index in own]
        for index in set(range(5)) - set(own.tolist()):
            with pytest.raises(Unusable, match="No such file"):
                copied.encoded.read(index)
    assert len(list((tmp_path / "scratch").rglob("*.images"))) == 3


def test_a_later_run_finds_the_copies_until_an_image_changes(root, tmp_path, monkeypatch):
    data = Data(root=root, stage=tmp_path / "scratch")
    images, reads, read = find_images(data)[0], [], Files.read
    monkeypatch.setattr(Files, "read", lambda self, index: reads.append(index) or read(self, index))
    stage(images, data, SingleProcess())
    assert len(reads) == 5
    stage(images, data, SingleProcess())
    assert len(reads) == 5
    file = root / "train" / "cat" / "b.jpg"
    changed = file.read_bytes() + b"more"
    file.write_bytes(changed)
    staged = stage(find_images(data)[0], data, SingleProcess())
    assert len(reads) == 10 and changed in read_all(staged)


def test_a_copy_that_is_damaged_or_cut_is_named_or_made_again(root, tmp_path):
    data = Data(root=root, stage=tmp_path / "scratch")
    images = find_images(data)[0]
    staged = stage(images, data, SingleProcess())
    (file,) = (tmp_path / "scratch").rglob("*.images")
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    with pytest.raises(Unusable, match=rf"its copy in {file} is damaged \(checksum\): remove that file"):
        staged.encoded.read(0)
    file.write_bytes(content[:-512])
    assert read_all(stage(images, data, SingleProcess())) == read_all(images)


def test_an_image_that_cannot_be_read_has_no_copy_and_keeps_its_complaint(root, tmp_path):
    images = find_images(Data(root=root))[0]
    (root / "train" / "dog" / "a.png").unlink()
    data = Data(root=root, stage=tmp_path / "scratch")
    staged = stage(images, data, SingleProcess())
    (gone,) = [index for index, file in enumerate(images.files) if file.endswith("a.png")]
    for index in range(5):
        if index == gone:
            with pytest.raises(Unusable, match="No such file"):
                staged.encoded.read(index)
        else:
            assert staged.encoded.read(index) == images.encoded.read(index)


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_copied(root, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2000}))
    data = Data(root=root, stage=tmp_path / "scratch")
    with pytest.raises(InputError, match="scratch has 2e-06 GB free, and the images of this node"):
        stage(find_images(data)[0], data, SingleProcess())
    assert not list((tmp_path / "scratch").rglob("*.*"))


def test_a_disk_that_fills_up_meanwhile(root, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True)
    if done.returncode:
        pytest.skip(f"NO FULL DISK HERE: {done.stderr.decode().strip()}")
    try:
        monkeypatch.setattr(staging, "_check_space", lambda *_: None)
        data = Data(root=root, stage=disk)
        with pytest.raises(InputError, match=r"data.stage: .*: No space left on device after .* GB of "):
            stage(find_images(data)[0], data, SingleProcess())
        assert not [file for file in disk.rglob("*") if file.suffix in (".part", ".images", ".npz")]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_made_is_named(root, tmp_path):
    (tmp_path / "file").touch()
    data = Data(root=root, stage=tmp_path / "file" / "scratch")
    with pytest.raises(InputError, match=r"data.stage: .*file/scratch.*: Not a directory"):
        stage(find_images(data)[0], data, SingleProcess())


def test_a_stop_leaves_nothing_half_done_and_a_later_run_continues(root, tmp_path, monkeypatch):
    data = Data(root=root, stage=tmp_path / "scratch")
    images, read = find_images(data)[0], Files.read
    begun = []

    class OnceItCopies:
        @property
        def requested(self):
            return bool(begun)

    def never(self, index):
        begun.append(index)
        stopped.wait(20)
        return read(self, index)

    stopped = threading.Event()
    monkeypatch.setattr(Files, "read", never)
    with pytest.raises(Stopped, match=r"rerun the same command to copy the images to data\.stage"):
        stage(images, data, SingleProcess(), stop=OnceItCopies())
    stopped.set()
    monkeypatch.setattr(Files, "read", read)
    assert not list((tmp_path / "scratch").rglob("*.part"))
    assert read_all(stage(images, data, SingleProcess())) == read_all(images)


def test_copies_are_removed_from_the_node(root, tmp_path):
    data = Data(root=root, stage=tmp_path / "scratch")
    images = find_images(data)[0]
    stage(images, data, SingleProcess())
    remove_copies(stage_folder(data.stage, images, np.arange(5), SingleProcess()), SingleProcess())
    assert list((tmp_path / "scratch").iterdir()) == []


def test_training_from_copies_gives_the_same_weights(tmp_path):
    """And removes them at its end, if the job says so."""
    write_digits(tmp_path / "digits")
    common = ["data.source=folder", f"data.root={tmp_path / 'digits'}", "data.train_images=300"]
    small = ["epochs=1", "attack.steps=1", "evaluation.steps=1", "data.test_images=20"]
    weights = {}
    for name, settings in {
        "plain": [],
        "staged": [f"data.stage={tmp_path / 'scratch'}", "data.split=own"],
        "own": ["data.split=own"],
        "removed": [f"data.stage={tmp_path / 'other'}", "data.stage_keep=false"],
    }.items():
        done = run_here("train", DEMO, "--set", *common, *small, f"run_dir={tmp_path / name}", *settings)
        assert done.returncode == 0, done.stderr
        weights[name] = json.loads((tmp_path / name / "result.json").read_text())["weights"]
    assert weights["plain"] == weights["removed"] and weights["staged"] == weights["own"]
    assert list((tmp_path / "scratch").rglob("*.images")) and not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["data.stage=/tmp/x"], "data.stage: not allowed with data.source: digits"),
        (["data.source=folder", "data.root=/x", "data.stage=/tmp/x", "data.loader=device"], "loader device"),
        (["data.stage_keep=false"], "data.stage_keep: not allowed without data.stage"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        read_job(DEMO, settings)
