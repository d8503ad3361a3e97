"""Tar files made by other programs: their labels, the index made of them, and what is refused."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from hpcdat.config.sections import Data
from hpcdat.data import find_images, shard_folder
from hpcdat.data.image_check import check_images
from hpcdat.data.images import DataError
from hpcdat.data.shard_folder import open_shards
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.doctor.checks import check_images as checked_by_doctor
from hpcdat.doctor.facts import _count_classes
from hpcdat.progress import Progress


def image(number, kind="PNG"):
    held = io.BytesIO()
    Image.fromarray(np.full((6, 6), number % 256, np.uint8)).save(held, kind)
    return held.getvalue()


def write(tar, members, form=tarfile.PAX_FORMAT):
    """A tar file of members (name, content), or (name, how to change its header)."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w", format=form) as opened:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if callable(content):
                content(member)
                opened.addfile(member)
            else:
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))
    return tar


def samples(count, start=0, label=lambda n: ("cls", str(n % 3).encode())):
    for number in range(start, start + count):
        suffix, content = label(number)
        yield f"{number:05}.png", image(number)
        yield f"{number:05}.{suffix}", content


def found(folder):
    index = open_shards(folder, quiet=True)
    names = [name.removeprefix(f"{folder}/") for name in index.shards]
    assert not index.shards.inspected
    return names, index.labels.tolist(), index.classes


@pytest.mark.parametrize(
    "label",
    [
        lambda n: ("cls", str(n % 3).encode()),
        lambda n: ("cls", b"%d\n" % (n % 3)),
        lambda n: ("json", json.dumps({"label": n % 3, "text": "x"}).encode()),
        lambda n: ("json", json.dumps({"cls": n % 3}).encode()),
    ],
    ids=["cls", "line", "json-label", "json-cls"],
)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_labels_are_those_of_webdatasets_members(tmp_path, label, form):
    write(tmp_path / "b-1.tar", samples(4, 4, label), form)
    write(tmp_path / "b-0.tar", samples(4, 0, label), form)
    names, labels, classes = found(tmp_path)
    assert names == [f"b-{n // 4}.tar/{n:05}.png" for n in range(8)]
    assert labels == [n % 3 for n in range(8)] and classes == ["0", "1", "2"]
    shards = open_shards(tmp_path, quiet=True).shards
    assert [shards.read(n) for n in range(8)] == [image(n) for n in range(8)]


def test_folders_are_classes_where_there_are_no_labels(tmp_path):
    long = "x" * 150
    members = [(f"./{name}/{long}.v2.{n}.JPG", image(n)) for n, name in enumerate(["dog", "cat", "dog"])]
    members.insert(1, ("./cat", lambda member: setattr(member, "type", tarfile.DIRTYPE)))
    members += [("README.txt", b"hello"), ("cat/._hidden.jpg", b"x")]
    write(tmp_path / "a.tar", members)
    names, labels, classes = found(tmp_path)
    assert (labels, classes) == ([1, 0, 1], ["cat", "dog"])
    assert names[0] == f"a.tar/dog/{long}.v2.0.JPG"


def test_classes_have_the_names_in_classes_txt(tmp_path):
    write(tmp_path / "train" / "a.tar", samples(3))
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\ndog\n")
    assert found(tmp_path / "train")[2] == ["ant", "bee", "cow", "dog"]
    (tmp_path / "train" / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match=r"00002\.png: label 2, but the classes are 2, numbered from 0"):
        found(tmp_path / "train")


def test_test_images_have_the_classes_of_the_training_images(tmp_path):
    write(tmp_path / "train" / "a.tar", samples(6))
    write(tmp_path / "test" / "a.tar", samples(2))
    train, test = find_images(Data(source="shards", root=tmp_path), quiet=True)
    assert train.classes == test.classes == ["0", "1", "2"] and len(test) == 2
    write(tmp_path / "test" / "a.tar", samples(4, label=lambda n: ("cls", b"%d" % n)))
    with pytest.raises(DataError, match="other classes than in training: 3"):
        find_images(Data(source="shards", root=tmp_path), quiet=True)


@pytest.fixture
def scans(monkeypatch):
    """The names of the folders whose tar files are read to be indexed."""
    done, index_tars = [], shard_folder.index_tars

    def counted(folder, *rest):
        done.append(folder.name)
        return index_tars(folder, *rest)

    monkeypatch.setattr(shard_folder, "index_tars", counted)
    return done


def test_an_index_is_used_until_the_tar_files_change(tmp_path, scans):
    tar = write(tmp_path / "one" / "a.tar", samples(3))
    first = found(tmp_path / "one")
    assert found(tmp_path / "one") == first and scans == ["one"]
    assert (tmp_path / "one" / "index.npz").exists()
    os.utime(tar, ns=(1, 1))
    assert found(tmp_path / "one") == first and len(scans) == 2
    write(tmp_path / "one" / "b.tar", samples(3, 3))
    assert len(found(tmp_path / "one")[0]) == 6 and len(scans) == 3
    (tmp_path / "one" / "classes.txt").write_text("a\nb\nc\n")
    assert found(tmp_path / "one")[2] == ["a", "b", "c"] and len(scans) == 4
    assert found(tmp_path / "one")[2] == ["a", "b", "c"] and len(scans) == 4


def test_the_index_of_a_folder_that_cannot_be_written_is_in_the_users_cache(tmp_path, scans, monkeypatch):
    write(tmp_path / "two" / "a.tar", samples(3))

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shard_folder, "check_writable", refuse)
    first = found(tmp_path / "two")
    assert found(tmp_path / "two") == first and scans == ["two"]
    assert [file.name for file in (tmp_path / "two").iterdir()] == ["a.tar"]


def sparse(member):
    member.type = tarfile.GNUTYPE_SPARSE


def link(member):
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"


def hard_link(member):
    member.type, member.linkname = tarfile.LNKTYPE, "00000.png"


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([*samples(2), ("7.png", image(0))], r"some images have a label .*, others have none"),
        (
            [("7.png", image(0)), ("8.png", image(1))],
            r"7\.png: no label; expected its label in a member 7\.cls",
        ),
        (
            [("a/7.png", image(0)), ("a/8.png", image(1))],
            r"a/7\.png: no label; expected .* two or more classes",
        ),
        ([*samples(3), ("7.cls", b"1")], r"a\.tar: 7: expected one image and its label; found no image"),
        (
            [("7.png", image(0)), ("7.jpg", image(0)), ("7.cls", b"1")],
            r"a\.tar: 7: expected one image and its label; found images 7\.png, 7\.jpg with a label",
        ),
        ([("7.png", image(0)), ("7.cls", b"cat")], r"7\.cls: expected a label, a number from 0, not 'cat'"),
        ([("7.png", image(0)), ("7.cls", b"-1")], r"7\.cls: expected a label, a number from 0, not '-1'"),
        ([("7.png", image(0)), ("7.json", b'{"label": "x"}')], r"7\.json: expected a label, a number from 0"),
        ([("7.png", image(0)), ("7.json", b"{")], r"7\.json: no JSON"),
        ([("7.png", image(0)), ("7.json", b"[" * 10**5)], r"7\.json: no JSON"),
        (
            [*samples(3, label=lambda n: ("cls", b"%d" % (n + 1)))],
            r"no image has label 0: labels count from 0",
        ),
        (
            [*samples(3, label=lambda n: ("cls", b"%d" % (999_999_999 * n // 2)))],
            r"labels up to 999999999, but no image has label 1: labels count from 0",
        ),
        ([*samples(3), ("7.png", link)], r"7\.png: a link; expected images and their labels"),
        ([*samples(3), ("7.png", hard_link)], r"7\.png: a link; expected images and their labels"),
        ([*samples(3), ("7.png", sparse)], r"7\.png: a sparse file, of which not all bytes are stored"),
        ([("a.txt", b"x")], r"no images in its tar files"),
        ([], r"no images in its tar files"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, members, told):
    write(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=told) as refused:
        found(tmp_path)
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)
    assert not (tmp_path / "index.npz").exists()


def test_labels_in_some_tar_files_only_are_refused(tmp_path):
    write(tmp_path / "a.tar", samples(3))
    write(tmp_path / "b.tar", [("x/7.png", image(0)), ("y/7.png", image(0))])
    with pytest.raises(DataError, match=r"a\.tar has labels \(KEY\.cls or KEY\.json\), b\.tar has none"):
        found(tmp_path)


def test_tar_files_that_are_compressed_damaged_or_none_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no tar files\. Expected .* as `hpcdat pack` writes them"):
        found(tmp_path)
    tar = write(tmp_path / "a.tar", samples(40))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:5000])
    with pytest.raises(DataError, match=r"a\.tar: "):
        found(tmp_path)
    # The second header, and a tar file after the end of another.
    for content in (whole[:1024] + b"x" * 512 + whole[1536:], whole + whole):
        tar.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tar: damaged at byte [\d,]+, or several tar files in one"):
            found(tmp_path)
    tar.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(DataError, match=r"a\.tar: cannot be read as a tar file"):
        found(tmp_path)
    (tmp_path / "b.tar.gz").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"b\.tar\.gz: images in compressed tar files cannot be read at random"
    ):
        found(tmp_path)


def test_images_that_nobody_has_inspected_are_checked_before_training(tmp_path, monkeypatch):
    write(tmp_path / "train" / "a.tar", samples(6))
    bad = [*samples(3), ("7.png", image(0)[:50]), ("7.cls", b"0")]
    write(tmp_path / "test" / "a.tar", bad)
    data = Data(source="shards", root=tmp_path)
    train, test = find_images(data, quiet=True)
    with pytest.raises(DataError, match=r"test/a\.tar/7\.png: cannot be read as an image: found a PNG file"):
        check_images(train, [test], data, SingleProcess(), None, Progress(shown=False))


def test_the_doctor_leaves_the_indexing_to_a_run(tmp_path):
    write(tmp_path / "train" / "a.tar", samples(6))
    write(tmp_path / "test" / "a.tar", samples(6))
    data = Data(source="shards", root=tmp_path)
    assert _count_classes(data) is None
    (finding,) = checked_by_doctor([], data)
    assert finding.found == f"not checked: a run first indexes the tar files in {tmp_path}"
    find_images(data, quiet=True)
    assert _count_classes(data) == 3
