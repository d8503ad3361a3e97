"""Images read from shards: the same as from the folder they were packed from, and what is wrong is named."""

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.commands.certify import certify
from hpcdat.commands.evaluate import evaluate
from hpcdat.commands.pack import pack
from hpcdat.commands.train import train
from hpcdat.config.job_file import JobError, read_job
from hpcdat.config.sections import Data
from hpcdat.data import find_images, find_test_images, image_check, open_loader, shard_files
from hpcdat.data.digits import write_digits
from hpcdat.data.encoded_images import PackedStrings
from hpcdat.data.image_check import check_images
from hpcdat.data.image_file import Unusable
from hpcdat.data.images import DataError
from hpcdat.data.listing import find_together
from hpcdat.data.shards import Shards, with_common_beginnings
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.doctor.facts import _count_classes
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.performance.network_bytes import count_classes
from hpcdat.progress import Progress
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, Never

CPU = torch.device("cpu")
LOADERS = ["dali", "torchvision"]
NAMES = st.text(alphabet="ab/é", min_size=1, max_size=8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """scikit-learn's digits as files, and packed into several shards; not to be written to."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(root / "files")
    pack(root / "files", root / "shards", ["train", "test"], 300_000, "stop", SingleProcess(), Never())
    return root


@pytest.fixture
def copy(digits, tmp_path):
    """A copy of the shards, which may be damaged."""
    return shutil.copytree(digits / "shards", tmp_path / "shards")


def data_of(digits, **settings):
    return [
        Data(source=source, root=root, image_size=8, channels=1, **settings)
        for source, root in (("folder", digits / "files"), ("shards", digits / "shards"))
    ]


def inside(files):
    return [file.rsplit("/", 2)[1:] for file in files]


@pytest.mark.parametrize(
    "settings", [{}, {"train_images": 99, "test_images": 40}, {"test_fraction": 0.3, "test_seed": 2}]
)
def test_every_choice_of_images_is_that_of_the_folder(digits, settings):
    ours, theirs = (find_images(data) for data in data_of(digits, **settings))
    for shards, files in zip(ours, theirs, strict=True):
        assert inside(shards.files) == inside(files.files) and shards.classes == files.classes
        assert shards.labels.tolist() == files.labels.tolist()
        for index in (0, len(files) - 1):
            assert shards.encoded.read(index) == files.encoded.read(index)


def test_the_test_images_of_given_weights_need_no_training_images(digits, copy):
    shutil.rmtree(copy / "train")
    folder, _ = data_of(digits)
    packed = Data(source="shards", root=copy, test_images=20)
    expected = find_test_images(folder.model_copy(update={"test_images": 20}))
    assert inside(find_test_images(packed).files) == inside(expected.files)


JOB = """
epochs=1 schedule.decay_epochs=[] batch_size=30 attack.steps=1 evaluation.steps=1 evaluation.every=1
data.train_images=240 data.test_images=40 data.test_fraction=0.1 data.split=nodes data.augmentation=pad-crop
early_stopping.held_out=30 early_stopping.best_weights=true
certification.n0=2 certification.n=10 certification.every=20
"""


@pytest.mark.parametrize("loader", LOADERS)
def test_training_evaluation_and_certification_are_those_of_the_folder(digits, tmp_path, loader):
    """To the bit; two nodes keep their parts, images are held out, and a fraction is for the test."""
    states, measured = [], []
    for data in data_of(digits):
        run = tmp_path / data.source
        own = [f"run_dir={run}", f"data.source={data.source}", f"data.root={data.root}"]
        job = read_job(DEMO, [*own, *JOB.split(), f"data.loader={loader}"])
        workers = loopback(2, node_of=[0, 1])
        trained, _ = run_threads(workers, lambda worker, job=job: train(job, worker, Never()))
        again = evaluate(run, ["evaluation.steps=2"], EvaluationRequest(), SingleProcess(), Never())
        (certified,) = certify(run, ["certification.sigma=[0.1]"], SingleProcess(), Never())
        measured.append(
            [(one.images, one.ta, one.ra, one.weights) for one in (trained, again, *again.others)]
        )
        measured[-1] += certified.counts
        states.append(RunFolder(run).newest_checkpoint().model)
    assert measured[0] == measured[1] and len(measured[0]) > 4
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(ours, states[1][name]) for name, ours in states[0].items())


@pytest.mark.parametrize("loader", LOADERS)
def test_each_shard_is_opened_once(digits, monkeypatch, loader):
    """By the loader dali in this process; the processes of torchvision share the code, which is run here."""
    opened = []
    monkeypatch.setattr(shard_files, "_open", type(shard_files._open)())

    def counted(path, *rest, **more):
        opened.append(path)
        return real(path, *rest, **more)

    real = os.open
    monkeypatch.setattr(shard_files.os, "open", counted)
    train_images, _ = find_images(data_of(digits, loader=loader)[1])
    batches = np.split(np.random.default_rng(0).permutation(1400), 14)
    if loader == "dali":
        reader = open_loader(train_images, data_of(digits)[1], training=True, batch_size=100, device=CPU)
        for _ in reader.read(batches, seed=0):
            pass
        reader.close()
    else:
        for batch in batches:
            of_batch = pickle.loads(pickle.dumps(train_images.encoded.take(batch)))
            with ThreadPoolExecutor(32) as threads:
                list(threads.map(of_batch.read, range(100)))
    tars = [path for path in opened if str(path).endswith(".tar")]
    assert len(tars) == len(set(tars)) == len(list((digits / "shards" / "train").glob("*.tar"))) > 5


def test_a_shard_is_not_closed_while_it_is_read(digits, monkeypatch):
    """With room for one, threads that read two of them in turn get what they ask for."""
    monkeypatch.setattr(shard_files, "_open", type(shard_files._open)())
    monkeypatch.setattr(shard_files, "MOST_OPEN", 1)
    shards = find_images(data_of(digits)[1])[0].encoded
    assert shards is not None
    with ThreadPoolExecutor(16) as threads:
        # Each is compared with its checksum.
        assert all(threads.map(shards.read, list(range(0, 1400, 3)) * 2))
    assert len(shard_files._open) == 1
    before = len(list(Path("/proc/self/fd").iterdir()))
    shard_files._open.clear()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1


def damage(copy, index=5):
    """The shard of a training image and where the image lies in it."""
    shards = find_images(Data(source="shards", root=copy))[0].encoded
    tar = Path(shards.shards[int(shards.shard_of[index])])
    return shards, tar, int(shards.offsets[index]) * 512


def test_what_is_wrong_with_a_shard_is_named(copy):
    shards, tar, at = damage(copy)
    content = bytearray(tar.read_bytes())
    content[at + 20] ^= 1
    tar.write_bytes(content)
    with pytest.raises(Unusable, match=r"the shard is damaged: the checksum of the image differs"):
        shards.read(5)
    tar.write_bytes(content[: at + 20])
    shard_files._open.clear()
    with pytest.raises(
        Unusable, match=r"the shard is truncated: it ends \d+ bytes before the end of the image"
    ):
        shards.read(5)
    tar.unlink()
    shard_files._open.clear()
    with pytest.raises(Unusable, match=r"the shard cannot be read: No such file or directory"):
        shards.read(5)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_damaged_shard_is_named_with_the_image_by_every_loader(copy, loader, capfd):
    images = find_images(Data(source="shards", root=copy))[0]
    shards, tar, at = damage(copy)
    with tar.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    name = shards[5]
    assert name.startswith(f"{tar}/0/") and name.endswith(".png")
    data = Data(source="shards", root=copy, loader=loader, image_size=8, channels=1)
    reader = open_loader(images, data, training=False, batch_size=8, device=CPU)
    with pytest.raises(DataError) as refused:
        list(reader.read([np.arange(8)], seed=0))
    reader.close()
    assert str(refused.value).startswith(f"{name}: cannot be read as an image: the shard is damaged")
    skipping = data.model_copy(update={"corrupt": "skip"})
    reader = open_loader(images, skipping, training=False, batch_size=8, device=CPU)
    ((pixels, _),) = reader.read([np.arange(8)], seed=0)
    reader.close()
    assert len(pixels) == 7 and f"{name}: cannot be read as an image" in capfd.readouterr().err


def test_shards_that_are_missing_truncated_or_unknown_are_named_at_the_start(copy):
    data = Data(source="shards", root=copy)
    tar = copy / "test" / "test-000001.tar"
    shutil.copy(tar, copy / "test" / "test-000009.tar")
    with pytest.raises(DataError, match=r"tar files that are not in its index\.npz: test-000009\.tar"):
        find_images(data)
    (copy / "test" / "test-000009.tar").unlink()
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-512])
    with pytest.raises(DataError, match=r"test-000001\.tar: truncated: 296,448 bytes, but 296,960 when it"):
        find_images(data)
    tar.unlink()
    with pytest.raises(DataError, match=r"shards missing that are in its index\.npz: test-000001\.tar"):
        find_images(data)
    tar.write_bytes(whole)
    index = copy / "test" / "index.npz"
    content = index.read_bytes()
    index.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"index\.npz: damaged"):
        find_images(data)
    with pytest.raises(
        DataError, match=r"none: No such file or directory. Expected none/\*\.tar in data\.root"
    ):
        find_images(data.model_copy(update={"test": "none"}))


def test_signatures_need_no_shard_and_follow_contents(digits, copy):
    ours = find_images(data_of(digits)[1])[0]
    theirs = find_images(Data(source="shards", root=copy))[0]
    for tar in (copy / "train").glob("*.tar"):
        tar.unlink()
    assert ours.signature == theirs.signature
    assert ours.equal_part(50).signature != ours.signature
    checksums = ours.encoded.checksums.copy()
    checksums[7] += 1
    changed = Shards.from_arrays(ours.encoded.arrays() | {"checksums": checksums})
    assert changed.signature() != ours.encoded.signature()


def test_a_list_of_imagenets_size_takes_less_than_60_megabytes():
    """A tenth of it takes less than a tenth."""
    count, classes = 128_100, 100
    names = (f"n{n % classes:08}/n{n % classes:08}_{n // classes * 13}.JPEG" for n in range(count))
    numbers = np.arange(count, dtype=np.uint32)
    shards = Shards(
        PackedStrings.of([f"/data/imagenet/train/train-{n:06}.tar" for n in range(15)]),
        (numbers % 15).astype(np.uint8),
        *(numbers, numbers, numbers),
        with_common_beginnings(names),
        np.array([True]),
    )
    assert sum(array.nbytes for array in shards.arrays().values()) + 8 * count < 6e6
    assert shards[1234] == "/data/imagenet/train/train-000004.tar/n00000034/n00000034_156.JPEG"


@given(paths=st.lists(NAMES), data=st.data())
def test_common_beginnings_change_no_path(paths, data):
    files = with_common_beginnings(paths)
    assert files == paths
    if paths:
        order = np.array(data.draw(st.lists(st.integers(0, len(paths) - 1))), dtype=np.int64)
        assert files.take(order) == [paths[i] for i in order]


def test_one_worker_reads_the_index_and_all_have_the_list(digits):
    data = data_of(digits, train_images=100)[1]
    alone = find_images(data)

    def find(*, quiet):
        return find_images(data, quiet=quiet)

    for found in run_threads(loopback(3), lambda worker: find_together(find, data, worker)):
        for ours, theirs in zip(found, alone, strict=True):
            assert ours.files == theirs.files and ours.signature == theirs.signature
            assert ours.encoded.inspected and ours.encoded.read(3) == theirs.encoded.read(3)


def test_test_images_that_were_inspected_when_packed_are_not_read_before_training(digits, monkeypatch):
    data = data_of(digits)[1]
    train_images, test = find_images(data)
    read = []
    monkeypatch.setattr(Shards, "read", lambda shards, index: read.append(shards[index]) or b"")
    monkeypatch.setattr(image_check, "TRAINING_IMAGES_CHECKED", 10)
    with pytest.raises(DataError, match="found an empty file"):
        check_images(train_images, [test, test], data, SingleProcess(), None, Progress(shown=False))
    assert len(read) == 10 and all("/train/" in name for name in read)


def test_classes_are_counted_without_a_run(digits, copy):
    assert _count_classes(Data(source="shards", root=copy)) == 10
    assert count_classes(Data(source="shards", root=copy)) == 10
    assert count_classes(Data(source="shards", root=copy / "none")) == 1000
    _, tar, at = damage(copy, 0)
    with tar.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    with pytest.raises(
        DataError, match=rf"{tar.name}/./.*: cannot be read as an image: the shard is damaged"
    ):
        _count_classes(Data(source="shards", root=copy))


def test_what_does_not_go_with_shards_is_refused(tmp_path):
    with pytest.raises(JobError, match=r"data\.root.*a folder with train/ and test/ in it"):
        read_job(DEMO, ["data.source=shards", "data.root=null"])
    with pytest.raises(JobError, match=r"data\.unlabelled.*with data\.source: shards"):
        read_job(DEMO, ["data.source=shards", "data.root=x", "data.unlabelled=y.npz"])
