"""Data sets of the library datasets: the same pixels as those of a folder, and no network."""

import os
import re
import shutil
import socket

import numpy as np
import pytest
import torch

from hpcdat.config.sections import Data
from hpcdat.data import find_images, open_loader
from hpcdat.data.item_reader import Place, as_pixels
from hpcdat.errors import InputError

datasets = pytest.importorskip("datasets")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def away_from_everything(tmp_path_factory):
    """No connections, and a cache that belongs to these tests."""

    connect = socket.socket.connect

    def refuse(*_):
        raise AssertionError("a connection to the network")

    def locally(self, *address):
        # Of the fork server's processes.
        return connect(self, *address) if self.family == socket.AF_UNIX else refuse()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", locally)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "0")
        yield


@pytest.fixture(scope="module")
def kinds(photos, tmp_path_factory):
    """The photographs in all forms that the library reads."""
    root = tmp_path_factory.mktemp("forms")
    whole = datasets.load_dataset("imagefolder", data_dir=str(photos))
    for split, rows in whole.items():
        (root / "parquet" / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(root / "parquet" / "data" / f"{split}-00000-of-00001.parquet")
    whole.save_to_disk(root / "saved")
    return {"imagefolder": photos, "parquet": root / "parquet", "saved": root / "saved"}


def settings(root, **other):
    given = {"loader": "torchvision", "image_size": 24, "augmentation": "crop-flip", "threads": 1}
    return Data(source="huggingface", root=root, **given | other)


def read(images, settings):
    loader = open_loader(images, settings, training=True, batch_size=8, device=CPU)
    try:
        ((x, y),) = loader.read([np.array([4, 1, 0, 3, 2])], seed=7)
    finally:
        loader.close()
    return x.clone(), y


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "saved"])
def test_images_are_those_of_the_folder_byte_by_byte(kinds, photos, kind):
    wanted = settings(kinds[kind])
    folder = find_images(wanted.model_copy(update={"source": "folder", "root": photos}))
    for ours, theirs in zip(find_images(wanted, quiet=True), folder, strict=True):
        assert ours.classes == theirs.classes == ["cat", "dog"]
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert [ours.stored(i, 3, 0) for i in range(5)] == [theirs.stored(i, 3, 0) for i in range(5)]
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
    assert datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_loaders_see_them_as_they_see_files(kinds, photos, loader):
    """To the bit, with both loaders, as the same bytes are decoded in the same way."""
    wanted = settings(kinds["parquet"], loader=loader)
    folder = wanted.model_copy(update={"source": "folder", "root": photos})
    (ours, _), (theirs, _) = find_images(wanted, quiet=True), find_images(folder)
    assert all(torch.equal(*pair) for pair in zip(read(ours, wanted), read(theirs, folder), strict=True))


def rows(root, features=None, **columns):
    """A saved data set with one split, train."""
    made = datasets.Dataset.from_dict(columns, features=features and datasets.Features(features))
    datasets.DatasetDict({"train": made}).save_to_disk(root)
    return root


IMAGE = {"image": datasets.Image()}
PIXELS = [np.full((4, 4, 3), n, np.uint8) for n in (0, 50, 100, 150)]
INTEGER, TEXT = datasets.Value("int64"), datasets.Value("string")


@pytest.mark.parametrize(
    "features, other, wrong",
    [
        (
            {},
            {"test_fraction": None},
            "has no split test, only train: set data.test to one of them, or data",
        ),
        ({}, {"train": "training"}, "has no split training, only train: set data.train to one of them$"),
        ({"label": TEXT}, {}, r"no column holds labels \(its columns: image, label\); set data.label_column"),
        (
            {"label": TEXT},
            {"label_column": "label"},
            "data.label_column: label holds string; expected whole",
        ),
        ({"fine": INTEGER, "coarse": INTEGER}, {}, "may be the labels: fine, coarse; set data.label_column"),
        (
            {"label": INTEGER},
            {"label_column": "y"},
            "data.label_column: there is no column y, only image",
        ),
        ({"label": INTEGER}, {"image_column": "label"}, "data.image_column: label holds no images"),
        (
            {"label": INTEGER, "other": datasets.Image()},
            {},
            "may be the images: image, other; set data.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, features, other, wrong):
    features = features or {"label": INTEGER}
    values = {"int64": [0, 1, 0, 1], "string": list("abab")}
    columns = {key: values.get(getattr(kind, "dtype", ""), PIXELS) for key, kind in features.items()}
    root = rows(tmp_path / "set", IMAGE | features, image=PIXELS, **columns)
    with pytest.raises(InputError, match=wrong) as refused:
        find_images(settings(root, **{"test_fraction": 0.5} | other), quiet=True)
    assert "\n" not in str(refused.value)


def test_wrong_labels_and_folders_are_refused(tmp_path):
    def find(root, **other):
        return find_images(settings(root, test_fraction=0.5, **other), quiet=True)

    with pytest.raises(InputError, match="no such folder; expected image folders, Parquet files or a saved"):
        find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: the library datasets cannot read it: .*; accepted are"):
        find(tmp_path / "empty")
    (tmp_path / "empty" / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="empty: found data of the kind csv; accepted are image folders"):
        find(tmp_path / "empty")
    features = IMAGE | {"label": datasets.ClassLabel(names=["a", "b"])}
    root = rows(tmp_path / "unlabelled", features, image=PIXELS, label=[0, 1, -1, 1])
    with pytest.raises(InputError, match="unlabelled: train item 2 has label -1; expected 0 to 1"):
        find(root)
    root = rows(tmp_path / "none", features, image=PIXELS, label=[0, 1, 1, None])
    with pytest.raises(InputError, match="none: train item 3 has no label"):
        find(root)
    with pytest.raises(InputError, match=r"cannot read it: .*; data.download: true fetches it from"):
        find(None, hub="nobody/nothing")


def test_a_set_is_recognised_when_it_is_opened_again_and_not_with_another_image(tmp_path):
    signatures = []
    for name, level in (("one", 0), ("other", 1)):
        pixels = [*PIXELS[:3], PIXELS[3] + np.uint8(level)]
        root = rows(tmp_path / name, image=pixels, label=[0, 1, 0, 1], features=IMAGE | {"label": INTEGER})
        for _ in range(2):
            train, test = find_images(settings(root, test_fraction=0.5), quiet=True)
            signatures.append(train.signature + test.signature)
    assert signatures[0] == signatures[1] != signatures[2] == signatures[3]


def test_an_image_that_is_damaged_is_named(kinds, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(kinds["imagefolder"], root)
    (file,) = root.glob("train/*/a.png")
    file.write_bytes(file.read_bytes()[:100])
    train, _ = find_images(settings(root), quiet=True)
    complaints = [read for i in range(5) if isinstance(read := as_pixels(train, 3, Place(i, 0)), str)]
    assert len(complaints) == 1
    assert re.match(r"photos: train item \d: cannot be read as an image: found a PNG file", complaints[0])
