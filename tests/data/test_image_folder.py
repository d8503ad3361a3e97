"""Which files of a folder are the images of which class, and what is reported about the others."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from torchvision.datasets import ImageFolder

from hpcdat.config.job_file import JobError, read_job, write_job
from hpcdat.config.sections import Data
from hpcdat.data import find_images
from hpcdat.data.image_folder import list_folder, list_images
from hpcdat.data.images import DataError
from hpcdat.data.pseudo_labelled import find_unlabelled
from hpcdat.storage.run_folder import RunError, RunFolder
from tests.conftest import DEMO


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two splits of two classes with three images each."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            for number in range(3):
                put(tmp_path / split / name / f"{number}.png")
    return tmp_path


def names(files, root):
    return [str(Path(file).relative_to(root)) for file in files]


def test_images_are_those_of_image_folder_in_its_order(root):
    for file in ("a/b.sub/1.png", "a/b/z.JPG", "a/b/B.png", "b/-/0.webp", "b/1.tif"):
        (root / "train" / file).parent.mkdir(exist_ok=True)
        (root / "train" / file).write_bytes(b"")
    (root / "elsewhere").mkdir()
    put(root / "elsewhere" / "linked.png")
    (root / "train" / "b" / "more").symlink_to(root / "elsewhere")
    theirs = ImageFolder(root / "train")
    images = list_images(root / "train")
    assert list(zip(images.files, images.labels, strict=True)) == theirs.samples
    assert images.classes == theirs.classes and len(images) == 12


def test_thumbnails_and_hidden_files_are_left_out_and_reported_once(root, capfd):
    for file in (
        "a/@eaDir/0.png/SYNOPHOTO_THUMB_M.png",
        "a/.ipynb_checkpoints/0-checkpoint.png",
        "a/deep/Thumbs/0.png",
        "b/._1.png",
        ".cache/a/0.png",
        "@eaDir/x.png",
        "beside.png",
    ):
        put(root / "train" / file)
    for file in ("a/Thumbs.db", "a/.DS_Store", "b/raw.heic", "b/notes.txt"):
        (root / "train" / file).write_bytes(b"x")
    os.mkfifo(root / "train" / "b" / "pipe.png")
    train, test = find_images(Data(root=root))
    assert names(train.files, root) == [f"train/{c}/{i}.png" for c in "ab" for i in range(3)]
    (line,) = capfd.readouterr().err.splitlines()
    start, left_out = line.split(": left out: ")
    assert start == f"hpcdat: {root}/train" and sorted(left_out.split("; ")) == [
        "files without the name of an image: 2 (.heic, .txt)",
        "hidden files: 1 (._1.png)",
        "images in hidden folders or folders of thumbnails: 5 (.cache, .ipynb_checkpoints, @eaDir, Thumbs)",
        "images outside the folders of the classes: 1 (beside.png)",
        "pipes, sockets and devices: 1 (pipe.png)",
    ]
    assert train.classes == test.classes == ["a", "b"]
    find_images(Data(root=root), quiet=True)
    assert capfd.readouterr().err == ""


def test_a_class_may_be_called_thumbs(root):
    put(root / "train" / "thumbs" / "0.png")
    assert list_images(root / "train").classes == ["a", "b", "thumbs"]


def test_a_link_that_leads_back_is_refused_or_followed_once(root):
    (root / "train" / "a" / "itself").symlink_to(".")
    assert len(list_images(root / "train")) == 6
    for link, target in (("a/up", ".."), ("b/up", ".."), ("a/to-b", "../b"), ("c", "a")):
        path = root / "train" / link
        path.symlink_to(target)
        with pytest.raises(DataError, match=r"are the same folder, through a link: .* in two classes, [ab]"):
            list_images(root / "train")
        path.unlink()
    assert len(list_images(root / "train")) == 6


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(root):
    (root / "train" / "a" / "gone.png").symlink_to("nowhere.png")
    assert len(list_images(root / "train")) == 7


def test_a_single_class_is_refused_and_the_message_says_where_the_classes_seem_to_be(root):
    (root / "train" / "images").mkdir()
    for name in "ab":
        (root / "train" / name).rename(root / "train" / "images" / name)
    told = rf"train: holds a single class, images; the folders in {root}/train/images seem to be .* \(a, b\)"
    with pytest.raises(DataError, match=told):
        find_images(Data(root=root))
    train, _ = find_images(Data(root=root, train="train/images"))
    assert train.classes == ["a", "b"]
    put(root / "one" / "only" / "0.png")
    with pytest.raises(DataError, match="single class, only; expected two or more folders"):
        list_images(root / "one")


def test_splits_are_no_classes(root):
    with pytest.raises(DataError, match="its folders test, train look like splits, not like classes"):
        find_images(Data(root=root, train=".", test="."))


@pytest.mark.parametrize("given", [".", "set/train"])
def test_a_root_that_is_a_level_off_is_answered_with_the_right_one(root, given):
    (root / "set").mkdir()
    for split in ("train", "test"):
        (root / split).rename(root / "set" / split)
    with pytest.raises(DataError, match=rf"there is one in {root}/set: set data.root to it"):
        find_images(Data(root=root / given))


def test_images_of_training_and_test_are_reported(root, capfd):
    find_images(Data(root=root))
    assert capfd.readouterr().err == ""
    settings = Data(root=root / "train", train=".", test=".")
    train, test = find_images(settings)
    assert train.files == test.files
    told = capfd.readouterr().err
    assert "6 of the 6 test images are training images, too" in told and "data.test_fraction" in told
    for name in "ab":
        put(root / "both" / name / "own.png")
        (root / "both" / name / "linked").symlink_to(root / "train" / name)
    find_images(Data(root=root, test="both"))
    assert "6 of the 8 test images are training images, too" in capfd.readouterr().err


def test_a_fraction_of_the_training_images_is_held_back_for_the_test(root):
    for number in range(3, 10):
        put(root / "train" / "a" / f"{number}.png")

    def split(**others):
        train, test = find_images(Data(root=root, **{"test_fraction": 0.3, **others}))
        assert train.classes == test.classes and not set(train.files) & set(test.files)
        assert len(train) + len(test) == 13
        return train, test

    train, test = split()
    assert np.bincount(test.labels).tolist() == [3, 1] and np.bincount(train.labels).tolist() == [7, 2]
    assert all(
        file.split("/")[-2] == "ab"[label] for file, label in zip(test.files, test.labels, strict=True)
    )
    assert split()[1].files == test.files
    assert any(split(test_seed=seed)[1].files != test.files for seed in (1, 2, 3))
    (root / "test").rename(root / "moved")
    (root / "train" / "b" / "new.png").write_bytes(b"")
    added = find_images(Data(root=root, test_fraction=0.3))[1]
    assert len({*added.files} ^ {*test.files}) <= 2, "a new file leaves all others where they were, but one"
    with pytest.raises(ValidationError):
        Data(root=root, test_fraction=1)
    put(root / "train" / "c" / "0.png")
    with pytest.raises(DataError, match="class c has one image, which cannot be divided"):
        find_images(Data(root=root, test_fraction=0.3))


@pytest.mark.parametrize(
    "settings, told",
    [
        (["data.test_fraction=0.2"], "data.test_fraction: not allowed with data.source: digits"),
        (["data.source=folder", "data.root=x", "data.test_fraction=0.2", "data.test=val"], "with data.test"),
        (["data.test_seed=1"], "data.test_seed: not allowed without data.test_fraction"),
    ],
)
def test_a_fraction_that_does_not_apply_is_refused(settings, told):
    with pytest.raises(JobError, match=told):
        read_job(DEMO, settings)


def test_images_of_the_training_do_not_become_test_images_afterwards(tmp_path):
    folder = RunFolder(tmp_path)
    own = ["data.source=folder", "data.root=x", f"run_dir={tmp_path}"]
    folder.job_file.write_text(write_job(read_job(DEMO, [*own, "data.test_fraction=0.2"])))
    assert folder.read_job(["seed=1"]).data.test_fraction == 0.2
    assert folder.read_job(["data.test_fraction=null", "data.root=y"]).data.test_fraction is None
    for changed in ("data.test_fraction=0.3", "data.test_seed=1"):
        with pytest.raises(RunError, match="not to be changed after training"):
            folder.read_job([changed])


def test_classes_without_images_are_named_with_what_they_hold(root):
    (root / "train" / "c").mkdir()
    (root / "train" / "c" / "0.heic").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"classes without images: c \(left out: .*: 1 \(\.heic\)\); expected"
    ):
        list_folder(root / "train")


def test_unlabelled_images_are_without_thumbnails_too(root, capfd):
    put(root / "train" / "a" / ".ipynb_checkpoints" / "0.png")
    found = find_unlabelled(root / "train", ["a", "b"], 1)
    assert names(found.files, root) == [f"train/{c}/{i}.png" for c in "ab" for i in range(3)]
    assert "left out: images in hidden folders or folders of thumbnails: 1" in capfd.readouterr().err
