"""Lists of encoded images: packed names, parts of them, what is sent, and that they are read ahead."""

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.config.sections import Data
from hpcdat.data import find_images
from hpcdat.data.encoded_images import READERS, Files, PackedStrings
from hpcdat.data.image_file import Unusable
from hpcdat.data.listing import find_together
from hpcdat.data.read_ahead import BATCHES_AHEAD, ReadAhead
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.errors import InputError

# As os.fsdecode gives them: bytes that are no text are lone surrogates.
NAMES = st.lists(
    st.binary(max_size=9)
    .filter(lambda name: b"\0" not in name)
    .map(lambda b: b.decode(errors="surrogateescape"))
)


@given(names=NAMES, data=st.data())
def test_packed_strings_are_the_strings_in_any_order(names, data):
    packed = PackedStrings.of(names)
    assert list(packed) == names and packed[:2] == names[:2]
    indices = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=12)) if names else []
    taken = packed.take(np.array(indices, dtype=np.int64))
    assert list(taken) == [names[i] for i in indices]
    assert list(PackedStrings.joined([taken, packed])) == [*(names[i] for i in indices), *names]


def test_strings_are_taken_in_pieces(monkeypatch):
    monkeypatch.setattr("hpcdat.data.encoded_images.STRINGS_AT_ONCE", 3)
    names = [str(3**n) for n in range(20)]
    order = np.random.default_rng(0).permutation(20)
    assert list(PackedStrings.of(names).take(order)) == [names[i] for i in order]


@given(paths=st.lists(st.text(alphabet="ab/", max_size=8)), more=st.lists(st.text(alphabet="a/", max_size=3)))
def test_files_have_the_paths_that_they_were_given(paths, more):
    files = Files.of(paths)
    assert files == paths and list(Files.joined([files, Files.of(more)])) == [*paths, *more]
    assert Files.from_arrays(files.arrays()) == paths
    order = np.arange(len(paths))[::-1]
    assert files.take(order) == paths[::-1]


def test_a_list_of_imagenets_size_takes_less_than_60_megabytes():
    names = (
        f"/data/imagenet/train/n{n // 1281:08}/n{n // 1281:08}_{n % 1281}.JPEG" for n in range(1_281_000)
    )
    files = Files.of(names)
    labels = 8 * len(files)
    assert sum(array.nbytes for array in files.arrays().values()) + labels < 60e6
    assert files[1_280_999] == "/data/imagenet/train/n00000999/n00000999_1280.JPEG"


def test_one_worker_lists_the_folder_and_all_have_the_list(photos, monkeypatch):
    data, listed = Data(root=photos, train_images=4), []

    def find(*, quiet):
        listed.append(quiet)
        return find_images(data, quiet=quiet)

    alone = find_images(data)
    for found in run_threads(loopback(3), lambda worker: find_together(find, data, worker)):
        for ours, theirs in zip(found, alone, strict=True):
            assert ours.files == theirs.files and ours.labels.tolist() == theirs.labels.tolist()
            assert ours.classes == theirs.classes and ours.signature == theirs.signature
    assert listed == [False]


def test_a_node_without_the_images_is_named(photos, monkeypatch):
    data = Data(root=photos)

    def program(worker):
        elsewhere = data.model_copy(update={"root": photos / "none"}) if worker.rank == 2 else data
        with pytest.raises(InputError) as refused:
            find_together(lambda quiet: find_images(data, quiet=quiet), elsewhere, worker)
        return str(refused.value)

    told = run_threads(loopback(3), program)
    assert told[0] == told[1] == told[2]
    assert (
        told[0].startswith(f"{photos}/none: there is no such folder on this node") and "worker 2" in told[0]
    )


def test_what_cannot_be_listed_is_reported_by_all(tmp_path):
    data = Data(root=tmp_path / "nothing")

    def program(worker):
        with pytest.raises(InputError, match="No such file or directory"):
            find_together(lambda quiet: find_images(data, quiet=quiet), data, worker)

    run_threads(loopback(2), program)


class Slow(Files):
    """Files of a file system that takes its time."""

    seconds = 0.05

    def read(self, index):
        time.sleep(self.seconds)
        if index == 3:
            raise Unusable("damaged")
        return b"x" * (index + 1)


def read_all(reader, files, batches):
    return [[future.result() for future in batch] for batch in reader.read(files, batches)]


def test_images_come_in_order_and_with_what_is_wrong():
    reader, files = ReadAhead(), Slow.of(map(str, range(8)))
    batches = [np.array([2, 0]), np.array([], dtype=np.int64), np.array([3, 7])]
    (two, one), nothing, (reason, eight) = read_all(reader, files, batches)
    assert (two, one, nothing, eight) == (b"xxx", b"x", [], b"x" * 8) and str(reason) == "damaged"


def test_many_files_are_read_at_once():
    running, most, lock = 0, 0, threading.Lock()

    class Counted(Files):
        def read(self, index):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            barrier.wait(10)
            with lock:
                running -= 1
            return b""

    barrier = threading.Barrier(READERS)
    files = Counted.of(map(str, range(2 * READERS)))
    read_all(ReadAhead(), files, [np.arange(READERS), np.arange(READERS, 2 * READERS)])
    assert most == READERS


@pytest.mark.parametrize(("size", "ahead"), [(1, BATCHES_AHEAD), (2**20, 1)])
def test_what_is_read_ahead_is_bounded(monkeypatch, size, ahead):
    """By batches, and of large images by bytes: of these, one batch is read ahead of that at hand."""
    monkeypatch.setattr("hpcdat.data.read_ahead.BYTES_AHEAD", 2**20)
    begun = []

    class Sized(Files):
        def read(self, index):
            begun.append(index)
            return b"x" * size

    files = Sized.of(map(str, range(40)))
    reader = ReadAhead()
    batches = [np.arange(at, at + 2) for at in range(0, 40, 2)]
    for number, batch in enumerate(reader.read(files, batches)):
        for future in batch:
            future.result()
        time.sleep(0.02)
        if number == 5:
            # The third part of the way, when sizes are known.
            assert max(begun) // 2 - number == ahead
            break


def test_an_epoch_that_is_left_reads_no_more():
    files = Slow.of(map(str, range(4000)))
    reader = ReadAhead()
    epoch = reader.read(files, [np.arange(at, at + 100) for at in range(0, 4000, 100)])
    next(epoch)
    epoch.close()
    start = time.monotonic()
    again = read_all(reader, files, [np.array([5])])
    assert again == [[b"x" * 6]] and time.monotonic() - start < 1


def test_a_signature_changes_with_a_file_and_not_with_the_place_of_the_folder(photos, tmp_path):
    ours = find_images(Data(root=photos))[0]
    moved = shutil.copytree(photos, tmp_path / "elsewhere")
    theirs = find_images(Data(root=moved))[0]
    assert ours.signature == theirs.signature
    with Path(theirs.files[0]).open("ab") as file:
        file.write(b" ")
    again = find_images(Data(root=moved))[0]
    assert again.signature != ours.signature
