"""All loaders read the same pixels, whole epochs, and name what they cannot read."""

import gc
import hashlib
import itertools
import pickle
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from hpcdat.config.sections import Data
from hpcdat.data import find_images, open_loader
from hpcdat.data.digits import write_digits
from hpcdat.data.encoded_images import Files
from hpcdat.data.image_folder import list_images
from hpcdat.data.images import DataError, Images
from hpcdat.data.pixels import to_pixels
from hpcdat.data.torchvision_loader import BatchReader, Wanted
from tests.conftest import python_threads

CPU = torch.device("cpu")
LOADERS = ["dali", "torchvision"]
ALL_LOADERS = [*LOADERS, "device"]


def loader_of(images, settings, training=False, batch_size=4):
    return open_loader(images, settings, training=training, batch_size=batch_size, device=CPU)


@pytest.mark.parametrize("loader", ALL_LOADERS)
def test_digits_come_back_as_they_are_in_scikit_learn(tmp_path, loader):
    settings = Data(source="digits", root=tmp_path / "digits", loader=loader, image_size=8, channels=1)
    train, test = find_images(settings)
    assert (len(train), len(test)) == (1400, 397) and train.classes == [str(n) for n in range(10)]
    batches = [np.array([3, 1396, 7]), np.array([], dtype=np.int64), np.array([0])]
    read = list(loader_of(train, settings).read(batches, seed=0))
    digits = load_digits()
    for indices, (x, y) in zip(batches, read, strict=True):
        assert x.shape == (len(indices), 1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
        for index, image, label in zip(indices, x, y, strict=True):
            number = int(train.files[index].rsplit("/", 1)[1].removesuffix(".png"))
            assert label == digits.target[number]
            expected = np.rint(digits.images[number] * 255 / 16) / 255
            np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-7)


def test_digits_are_split_by_class_and_do_not_overlap(tmp_path):
    write_digits(tmp_path / "digits")
    train, test = (list_images(tmp_path / "digits" / split) for split in ("train", "test"))
    names = [{file.rsplit("/", 1)[1] for file in images.files} for images in (train, test)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 1797
    assert np.bincount(test.labels).min() >= 38


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_serves_epoch_after_epoch_in_any_order(photos, loader):
    settings = Data(root=photos, loader=loader, image_size=16)
    train, _ = find_images(settings)
    reader = loader_of(train, settings)
    orders = [[[0, 1, 2, 3], [4]], [[4, 3, 2, 1], [0]], [[2]]]
    by_index = {}
    for order in orders:
        batches = [np.array(batch) for batch in order]
        for batch, (x, y) in zip(batches, reader.read(batches, seed=1), strict=True):
            for index, image, label in zip(batch, x, y, strict=True):
                assert label == train.labels[index]
                assert torch.equal(by_index.setdefault(index, image.clone()), image)
    assert len(by_index) == 5


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("batches_read", [0, 1, 3], ids=["begun", "left", "read"])
def test_a_closed_loader_leaves_no_thread_and_no_memory(photos, loader, batches_read):
    """A process may train several jobs: the seeds of one, for example."""
    images = list_images(photos / "train")
    before = python_threads()
    reader = loader_of(images, Data(root=photos, loader=loader, image_size=24), training=True)
    epoch = reader.read([np.arange(2)] * 3, seed=0)
    for _ in range(batches_read):
        next(epoch)
    reader.close()
    reader.close()
    unused = weakref.ref(reader)
    del reader, epoch
    gc.collect()
    assert unused() is None
    # Threads end a moment after their pool.
    deadline = time.monotonic() + 20
    while python_threads() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not python_threads() - before


@pytest.mark.parametrize("loader", LOADERS)
def test_an_epoch_left_in_the_middle_does_not_spoil_the_next(photos, loader):
    settings = Data(root=photos, loader=loader, image_size=16)
    train, _ = find_images(settings)
    reader = loader_of(train, settings)
    first = next(reader.read([np.array([0]), np.array([1]), np.array([2])], seed=0))[0]
    again = list(reader.read([np.array([3]), np.array([0])], seed=0))
    assert len(again) == 2 and torch.equal(again[1][0], first)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("augmentation", ["none", "crop-flip", "pad-crop"])
def test_dali_and_torchvision_see_the_same(photos, augmentation, training):
    """The same pixels are read; decoders of JPEG round differently, by a grey level or two."""
    read = {}
    for loader in LOADERS:
        settings = Data(root=photos, loader=loader, image_size=24, augmentation=augmentation)
        _, test = find_images(settings)
        reader = loader_of(test, settings, training=training, batch_size=5)
        ((read[loader], labels),) = reader.read([np.arange(5)], seed=3)
        assert labels.tolist() == test.labels.tolist()
    apart = (read["dali"] - read["torchvision"]).abs() * 255
    assert apart.max() < 2.5 and apart.mean() < 0.5
    lossless = [file.endswith(".png") for file in test.files]
    assert sum(lossless) == 3 and not apart[lossless].any()


@pytest.mark.parametrize("loader", LOADERS)
def test_random_crops_differ_between_seeds_and_repeat_with_one(photos, loader):
    settings = Data(root=photos, loader=loader, image_size=16, augmentation="crop-flip")
    train, _ = find_images(settings)
    reader = loader_of(train, settings, training=True, batch_size=5)
    a, b, again = (next(reader.read([np.arange(5)], seed=s))[0].clone() for s in (1, 2, 1))
    assert torch.equal(a, again) and not torch.equal(a, b)
    assert a.min() >= 0 and a.max() <= 1


@pytest.mark.parametrize("loader", ALL_LOADERS)
@pytest.mark.parametrize("augmentation", ["none", "pad-crop"])
def test_pixels_in_memory_are_seen_as_those_of_files(photos, tmp_path, loader, augmentation):
    settings = Data(root=photos, loader=loader, image_size=24, augmentation=augmentation)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    files = Images(Files.of(str(tmp_path / f"{i}.png") for i in range(5)), [0, 1, 2, 1, 0], ["a", "b", "c"])
    memory = Images([f"image {i}" for i in range(5)], files.labels, files.classes, pixels)
    order = [np.array([3, 1, 4]), np.array([0, 2])]
    read = [
        list(loader_of(images, settings, training=True).read(order, seed=3)) for images in (files, memory)
    ]
    for (x, y), (in_memory, labels) in zip(*read, strict=True):
        assert torch.equal(x, in_memory) and torch.equal(y, labels)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("height, width, size", [(24, 24, 24), (18, 30, 24)])
def test_images_that_live_on_the_device_are_seen_as_torchvision_sees_them(height, width, size, training):
    """To the bit, resized ones too, epoch after epoch, in batches of any size."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, height, width, 3), dtype=np.uint8)
    images = Images([f"image {i}" for i in range(40)], [i % 3 for i in range(40)], ["a", "b", "c"], pixels)
    settings = Data(root="x", loader="device", image_size=size, augmentation="pad-crop")
    reader, theirs = loader_of(images, settings, training), BatchReader(images, settings, training)
    epochs = []
    for seed, widths in ((1, [16, 0, 23, 1]), (2, [40])):
        order = np.random.default_rng(seed).permutation(40)
        batches = np.split(order, np.cumsum(widths)[:-1])
        read = list(reader.read(batches, seed))
        assert [len(x) for x, _ in read] == widths
        for indices, (x, y) in zip(batches, read, strict=True):
            seen, _ = theirs(Wanted(indices, seed, None))
            assert seen is None or torch.equal(x, to_pixels(seen, CPU))
            assert y.tolist() == [images.labels[i] for i in indices]
        epochs.append(torch.cat([x for x, _ in read])[order.argsort()])
    assert torch.equal(*epochs) != training
    assert list(reader.read([], seed=0)) == []


def test_the_device_holds_images_of_one_size_alone(photos, tmp_path, capsys):
    settings = Data(root=photos, loader="device", image_size=16)
    train, _ = find_images(settings)
    with pytest.raises(DataError, match=r"of one size: .*b\.jpg has 55 x 47 pixels, .*d\.jpeg 45 x 61"):
        loader_of(train, settings)
    good = train.files[0]
    (tmp_path / "torn.jpg").write_bytes(Path(good).read_bytes()[:200])
    images = Images(Files.of([good, str(tmp_path / "torn.jpg"), good]), [0, 1, 2], [])
    with pytest.raises(DataError, match=r"torn\.jpg: cannot be read as an image"):
        loader_of(images, settings)
    ((x, y),) = loader_of(images, settings.model_copy(update={"corrupt": "skip"})).read([np.arange(3)], 0)
    assert len(x) == 2 and y.tolist() == [0, 2]
    assert "torn.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("loader", LOADERS)
def test_images_that_cannot_be_read_are_left_out_where_the_job_says_so(photos, tmp_path, loader, capsys):
    """In any place of a batch, alone in one, and known from then on."""
    good = list_images(photos / "train").files
    bad = [tmp_path / "torn.jpg", tmp_path / "empty.png", tmp_path / "gone.png"]
    bad[0].write_bytes(Path(good[0]).read_bytes()[:200])
    bad[1].write_bytes(b"")
    files = [good[1], str(bad[0]), good[2], str(bad[1]), good[3], str(bad[2])]
    images = Images(Files.of(files), range(6), [])
    settings = Data(root=photos, loader=loader, image_size=16, corrupt="skip")
    reader = loader_of(images, settings)
    order = [np.array([0, 1, 2]), np.array([3]), np.array([4, 5]), np.array([2])]
    for seed in (0, 1):
        read = list(reader.read(order, seed))
        assert [labels.tolist() for _, labels in read] == [[0, 2], [], [4], [2]]
        assert [len(x) for x, _ in read] == [2, 0, 1, 1]
        assert torch.equal(read[0][0][1], read[3][0][0])
    told = capsys.readouterr().err
    assert all(told.count(f"{file}: cannot be read as an image") == 1 for file in bad)


@pytest.mark.parametrize("loader", LOADERS)
def test_decoders_agree_on_what_an_image_is(photos, tmp_path, loader, capsys):
    """CMYK, and a PNG with another name, but not a JPEG whose tail is cut off."""
    files = [tmp_path / name for name in ("cmyk.jpg", "png.jpg", "cut.jpg")]
    with Image.open(photos / "train" / "dog" / "a.png") as image:
        image.convert("CMYK").save(files[0], quality=95)
        image.save(files[1], "PNG")
        image.save(files[2])
    files[2].write_bytes(files[2].read_bytes()[:-100])
    settings = Data(root=photos, loader=loader, image_size=16, corrupt="skip")
    reader = loader_of(Images(Files.of(map(str, files)), [0, 1, 2], []), settings)
    ((x, labels),) = reader.read([np.arange(3)], seed=0)
    assert labels.tolist() == [0, 1]
    torch.testing.assert_close(x[0], x[1], rtol=0, atol=0.05)
    assert capsys.readouterr().err.count(f"{files[2]}: cannot be read as an image") == 1


def fake_cifar(root, monkeypatch, name):
    """Official batches in miniature, with their checksums."""
    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    key = "labels" if name == "cifar10" else "fine_labels"

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    lists = []
    for files in (dataset.train_list, dataset.test_list):
        lists.append([])
        for file, _ in files:
            data = generator.integers(0, 256, (6, 3072), dtype=np.uint8)
            lists[-1].append(write(file, {"data": data, key: [0, 1, 1, 0, 0, 1]}))
    classes = {dataset.meta["key"]: ["cat", "dog"]}
    meta = dataset.meta | {"md5": write(dataset.meta["filename"], classes)[1]}
    monkeypatch.setattr(dataset, "train_list", lists[0])
    monkeypatch.setattr(dataset, "test_list", lists[1])
    monkeypatch.setattr(dataset, "meta", meta)
    return folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_official_cifar_batches_are_read_and_others_never_opened(tmp_path, monkeypatch, name):
    settings = Data(source=name, root=tmp_path, image_size=32)
    with pytest.raises(DataError, match=r"not there, or their checksums are not right; unpack .*download"):
        find_images(settings)
    folder = fake_cifar(tmp_path, monkeypatch, name)
    train, test = find_images(settings)
    assert len(train) == (30 if name == "cifar10" else 6) and len(test) == 6
    assert train.classes == ["cat", "dog"] and train.labels[:6].tolist() == [0, 1, 1, 0, 0, 1]
    first = pickle.loads(next(folder.glob("*train*" if name == "cifar100" else "data_batch_1")).read_bytes())
    ((x, _),) = loader_of(train, settings).read([np.array([2])], seed=0)
    np.testing.assert_allclose(x[0].numpy(), first["data"][2].reshape(3, 32, 32) / 255, atol=1e-7)
    part, _ = find_images(settings.model_copy(update={"train_images": 4}))
    assert sorted(part.labels) == [0, 0, 1, 1] and part.pixels.shape == (4, 32, 32, 3)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    next(iter(folder.glob("*test*"))).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match="checksums are not right"):
        find_images(settings)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_file_that_is_no_image_is_named(photos, tmp_path, loader):
    for split, name in itertools.product(("train", "test"), ("cat", "dog")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / split / name / "fine.png")
        (tmp_path / split / name / "torn.jpg").write_bytes(b"\xff\xd8 not a picture")
    settings = Data(root=tmp_path, loader=loader, image_size=16)
    train, _ = find_images(settings)
    with pytest.raises(DataError, match=r"torn\.jpg: cannot be read as an image"):
        list(loader_of(train, settings).read([np.array([0, 1])], seed=0))


def test_folders_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(DataError, match=r"No such file"):
        find_images(Data(root=tmp_path / "nowhere"))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"holds no folders, one for each class. Expected train/CLASS"):
        find_images(Data(root=tmp_path))
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir()
    with pytest.raises(DataError, match=r"classes without images: cat, dog; expected files that end in .jpg"):
        find_images(Data(root=tmp_path))
    for place in ("train/cat", "train/dog", "test/cat", "test/wolf"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "a.png")
    with pytest.raises(DataError, match=r"other classes than in training: dog, wolf"):
        find_images(Data(root=tmp_path))


def test_without_dali_torchvision_reads_and_dali_is_refused(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert Data().loader == "torchvision" and Data(loader="dali").loader == "dali"
    with pytest.raises(
        DataError, match=r"^data\.loader: dali: DALI is not installed: .* data\.loader: torch"
    ):
        loader_of(photos, Data(loader="dali"))
