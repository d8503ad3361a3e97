"""Pseudo-labelled images: files that are read, files that are refused, and batches they are mixed into."""

import io
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.data.encoded_images import Files
from hpcdat.data.images import DataError, Images
from hpcdat.data.pseudo_labelled import find_unlabelled, joined, read_pseudo_labelled, write_pseudo_labelled
from hpcdat.data.sampler import training_shares, with_unlabelled
from hpcdat.errors import InputError

CLASSES = ["cat", "dog", "owl"]
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 1, 0, 2, 2])


def test_what_was_written_is_read(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS)
    found = find_unlabelled(tmp_path / "images.npy", CLASSES, 3)
    write_pseudo_labelled(tmp_path / "labels.npz", found, LABELS)
    read = read_pseudo_labelled(tmp_path / "labels.npz", CLASSES)
    assert np.array_equal(read.pixels, PIXELS) and read.labels.tolist() == LABELS.tolist()
    files = Images(Files.of(f"/some where/é{i}.png" for i in range(7)), [0] * 7, CLASSES)
    write_pseudo_labelled(tmp_path / "files.npz", files, LABELS)
    read = read_pseudo_labelled(tmp_path / "files.npz", CLASSES)
    assert read.files == files.files and read.labels.tolist() == LABELS.tolist() and read.pixels is None


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("as_list", [False, True], ids=["arrays", "list and Fortran order"])
def test_the_pickle_of_carmon_et_al_is_read(tmp_path, protocol, as_list):
    labels, pixels = (LABELS.tolist(), np.asfortranarray(PIXELS)) if as_list else (LABELS, PIXELS)
    file = tmp_path / "ti_500K_pseudo_labeled.pickle"
    file.write_bytes(pickle.dumps({"data": pixels, "extrapolated_targets": labels}, protocol))
    read = read_pseudo_labelled(file, CLASSES)
    assert np.array_equal(read.pixels, PIXELS) and read.labels.tolist() == LABELS.tolist()


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hpcdat-was-here",)


class Pickled:
    """What a pickle makes with a function, and the state it then gives it."""

    def __init__(self, function, *arguments, state):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def objects_by_address():
    """An array whose bytes are the addresses of objects; its data type claims not to hold any."""
    dtype = Pickled(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))
    addresses = b"".join(id(name).to_bytes(8, sys.byteorder) for name in CLASSES)
    made = np.arange(3).__reduce__()
    return Pickled(made[0], *made[1], state=(1, (3,), dtype, False, addresses))


def npz(save=np.savez, **arrays):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def damaged(content):
    """The same but for its first compressed bytes."""
    start = content.index(b".npy") + 40
    return content[:start] + bytes(40) + content[start + 40 :]


@pytest.mark.parametrize(
    "content, told",
    [
        (pickle.dumps(Hostile()), "asks for posix.mkdir"),
        (pickle.dumps({"data": PIXELS, "extrapolated_targets": Hostile()}), "asks for posix.mkdir"),
        (pickle.dumps({"data": np.array([Hostile()]), "extrapolated_targets": LABELS}), "of .O8., not of"),
        (pickle.dumps({"data": objects_by_address(), "extrapolated_targets": LABELS}), "of .O8., not of"),
        (pickle.dumps({"classes": objects_by_address()}), "of .O8., not of numbers"),
        (pickle.dumps({"data": PIXELS, "extrapolated_targets": [[0, 1], [2]]}), "targets are not numbers"),
        (pickle.dumps({"data": PIXELS[0, 0, 0, 0], "extrapolated_targets": LABELS}), "asks for"),
        (npz(images=np.array([Hostile()], dtype=object), labels=LABELS), "not an .npz or"),
        (damaged(npz(np.savez_compressed, images=PIXELS, labels=LABELS)), "not an .npz or"),
        (npz(images=np.array(1), labels=LABELS), "as many images"),
        (npz(files=np.array("a.png"), labels=LABELS), "as many images"),
        (npz(images=PIXELS, labels=LABELS, classes=np.array("cat")), "other classes"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "codec rot13"),
        (b"", "not an .npz or a pickle"),
        (pickle.dumps([1, 2]), "expected a dictionary"),
        (pickle.dumps({"data": PIXELS}), "no array of labels"),
        (npz(images=PIXELS, labels=LABELS.astype(float)), "no array of labels"),
        (npz(images=PIXELS, labels=LABELS + 1), "labels from 1 to 3 for 3 classes"),
        (npz(images=PIXELS, labels=LABELS - 1), "labels from -1"),
        (npz(images=PIXELS[:0], labels=LABELS[:0]), "contains no images"),
        (npz(images=PIXELS[:6], labels=LABELS), "as many images"),
        (npz(labels=LABELS), "as many images"),
        (npz(images=PIXELS / 255, labels=LABELS), "of uint8, not .* of float64"),
        (npz(images=PIXELS[..., 0], labels=LABELS), "expected images"),
        (npz(images=PIXELS, labels=LABELS, classes=np.array(["a", "b", "c"])), "other classes"),
    ],
)
def test_anything_else_is_refused(tmp_path, monkeypatch, content, told):
    monkeypatch.chdir(tmp_path)
    file, made = tmp_path / "file", tmp_path / "hpcdat-was-here"
    file.write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_pseudo_labelled(file, CLASSES)
    assert not made.exists()


def test_only_images_of_one_kind_are_joined():
    ours = Images(["a", "b"], [0, 1], CLASSES, PIXELS[:2])
    both = joined(ours, Images([str(i) for i in range(5)], [2] * 5, CLASSES, PIXELS[2:]))
    assert len(both) == 7 and both.unlabelled == 5 and np.array_equal(both.pixels, PIXELS)
    assert both.labels.tolist() == [0, 1, 2, 2, 2, 2, 2]
    for other in (Images(Files.of(["x"]), [0], CLASSES), Images(["x"], [0], CLASSES, PIXELS[:1, :2])):
        with pytest.raises(DataError, match="one shape"):
            joined(ours, other)


def test_folders_are_searched_through_links_and_found_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "a.PNG").write_bytes(b"")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    assert find_unlabelled(Path("set"), CLASSES, 3).files == [str(tmp_path / "set/link/deep/a.PNG")]


def test_each_folder_is_searched_once_however_many_links_lead_there(tmp_path):
    """Two links to the folder itself would else be followed for hours."""
    source = tmp_path / "set"
    (source / "b" / "deep").mkdir(parents=True)
    (source / "b" / "deep" / "x.png").write_bytes(b"")
    (source / "y.png").write_bytes(b"")
    for link in ("b/up", "b/deep/up"):
        (source / link).symlink_to(source)
    assert find_unlabelled(source, CLASSES, 3).files == [f"{source}/b/deep/x.png", f"{source}/y.png"]
    (source / "a").symlink_to(source / "b")
    (tmp_path / "other").symlink_to(source)
    found = find_unlabelled(tmp_path / "other", CLASSES, 3).files
    assert found == [f"{tmp_path}/other/a/deep/x.png", f"{tmp_path}/other/y.png"]


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, told",
    [
        (None, "contains no images"),
        (b"x", "neither a folder"),
        (npy(PIXELS[:0]), "contains no images"),
        (npy(PIXELS[..., :1]), "images have 1 channels, the model expects 3"),
    ],
)
def test_sources_without_images_for_the_model_are_told(tmp_path, content, told):
    source = tmp_path / "source"
    source.mkdir() if content is None else source.write_bytes(content)
    with pytest.raises(DataError, match=told):
        find_unlabelled(source, CLASSES, 3)


def all_mixed(labelled, unlabelled, batch, groups, mixture, epoch=1, last_batch="short"):
    """The shares of every worker."""
    places = [{"rank": n, "groups": groups, "seed": 3, "epoch": epoch} for n in range(len(groups))]
    return [
        with_unlabelled(
            training_shares(labelled, batch, last_batch=last_batch, **place),
            labelled,
            unlabelled,
            mixture=mixture,
            **place,
        )
        for place in places
    ]


def test_nodes_that_would_have_no_unlabelled_images_are_told_of():
    with pytest.raises(InputError, match=r"data\.unlabelled: 1 images are too few for 2 nodes"):
        all_mixed(8, 1, 2, [0, 1], (2, 2))


@given(
    labelled=st.integers(1, 60),
    unlabelled=st.integers(1, 60),
    batch=st.integers(1, 10),
    places=st.integers(1, 4),
    more=st.integers(1, 10),
)
def test_every_batch_has_its_share_of_unlabelled_images(labelled, unlabelled, batch, places, more):
    def mixed(places, batch, more):
        return all_mixed(labelled, unlabelled, batch, [0] * places, (batch, more))

    steps = list(zip(*mixed(places, batch, more), strict=True))
    seen = []
    for shares in steps:
        together = np.concatenate([share.indices for share in shares])
        assert len(together) == shares[0].global_size
        extra = [i for i in together.tolist() if i >= labelled]
        of_own = len(together) - len(extra)
        assert len(extra) == round(of_own * more / batch)
        # No worker gets more than its loader has room for.
        assert max(len(s.indices) for s in shares) <= batch + more
        assert max(len(s.indices) for s in shares) - min(len(s.indices) for s in shares) <= 2
        seen += extra
    # None comes again before all have come.
    whole = len(seen) // unlabelled * unlabelled
    counts = np.bincount(np.array(seen[:whole], dtype=int), minlength=labelled + unlabelled)[labelled:]
    assert (counts == whole // unlabelled).all() and all(i < labelled + unlabelled for i in seen)
    # One worker with the global batch sees the same.
    one = mixed(1, batch * places, more * places)[0]
    for shares, share in zip(steps, one, strict=True):
        assert sorted(np.concatenate([s.indices for s in shares])) == sorted(share.indices)


def test_without_a_short_batch_all_batches_are_full():
    """A hundredth of DAT's Table 3, twelve workers: three steps, and 68 labelled images are left."""
    workers = all_mixed(500, 5000, 12, [0] * 12, (12, 12), last_batch="drop")
    assert {len(shares) for shares in workers} == {3}
    assert {(len(s.indices), s.global_size) for shares in workers for s in shares} == {(24, 288)}


def test_each_node_keeps_its_own_part_of_the_unlabelled_images_too():
    """Three nodes, of which the first has two workers; two epochs, each more than a pass."""
    groups, seen = [0, 0, 1, 2], [set(), set(), set()]
    for epoch in (0, 1):
        for group, shares in zip(groups, all_mixed(60, 40, 5, groups, (5, 5), epoch), strict=True):
            extra = [int(i) for share in shares for i in share.indices if i >= 60]
            seen[group] |= set(extra)
        assert [len(part) for part in seen] == [20, 10, 10]
    assert set.union(*seen) == set(range(60, 100))
