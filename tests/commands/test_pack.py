"""Folders of images packed into shards: what is written, resumption, and what is refused."""

import json
import shutil
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hpcdat.cli.pack import read_size
from hpcdat.commands import pack as pack_module
from hpcdat.commands.pack import pack
from hpcdat.data.encoded_images import Files
from hpcdat.data.image_folder import list_images
from hpcdat.data.images import DataError, Images
from hpcdat.data.packing import Plan
from hpcdat.data.shard_folder import open_shards
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, Stopped
from tests.conftest import Never, run_here

SPLITS = ["train", "test"]
SMALL = 40_000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two splits of two classes, with images of several formats and sizes, below sub-folders too."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 9)):
        for number in range(count):
            folder = root / split / ("cat.v2", "dog")[number % 2] / ("", "below")[number % 3 == 0]
            folder.mkdir(parents=True, exist_ok=True)
            size = 8 + number
            image = Image.fromarray(generator.integers(0, 256, (size, 32, 3), dtype=np.uint8))
            image.save(folder / f"{number}.x.{('png', 'jpg', 'gif')[number % 3]}")
    # What a file holds is decided by its content.
    image.save(root / "train" / "dog" / "wrong.jpg", "PNG")
    return root


def packed(root, out, *, corrupt="stop", size=SMALL, workers=None, stop=None):
    return pack(root, out, SPLITS, size, corrupt, workers or SingleProcess(), stop or Never())


def contents(out):
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_shards_hold_the_images_in_the_order_of_the_folder(root, tmp_path):
    done = packed(root, tmp_path / "out")
    assert [(one.images, one.left_out) for one in done] == [(31, 0), (9, 0)] and done[0].shards > 2
    for split, one in zip(SPLITS, done, strict=True):
        folder, images = tmp_path / "out" / split, list_images(root / split)
        index = open_shards(folder, quiet=True)
        shards = index.shards
        assert index.classes == images.classes and index.labels.tolist() == images.labels.tolist()
        assert sum(file.stat().st_size for file in folder.glob("*.tar")) == one.size
        assert len(list(folder.glob("*.tar"))) == one.shards and not list(folder.glob(f"{split}-*.npz"))
        for number, file in enumerate(images.files):
            inside = file.removeprefix(f"{root / split}/")
            assert shards[number].startswith(f"{folder}/{split}-") and shards[number].endswith(f"/{inside}")
            assert shards.read(number) == Path(file).read_bytes()
            assert shards.checksums[number] == zlib.crc32(shards.read(number))
        assert (folder / "classes.txt").read_text() == "cat.v2\ndog\n"


def test_members_have_webdatasets_names(root, tmp_path):
    packed(root, tmp_path / "out")
    images, seen = list_images(root / "train"), set()
    for tar in sorted((tmp_path / "out" / "train").glob("*.tar")):
        assert tar.stat().st_size <= SMALL
        with tarfile.open(tar) as opened:
            members = opened.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key, _, suffix = image.name.partition(".")
                number = int(key)
                content = opened.extractfile(image).read()
                with Image.open(Path(images.files[number])) as held:
                    assert suffix == {"PNG": "png", "JPEG": "jpg", "GIF": "gif"}[held.format]
                assert label.name == f"{key}.cls" and content == Path(images.files[number]).read_bytes()
                assert int(opened.extractfile(label).read()) == images.labels[number]
                seen.add(number)
            assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {
                (946684800, 0, 0, "", 0o644)
            }
    assert seen == set(range(31))


def test_any_number_of_workers_writes_the_same_bytes(root, tmp_path):
    packed(root, tmp_path / "one")
    run_threads(loopback(3), lambda worker: packed(root, tmp_path / "three", workers=worker))
    ours, theirs = contents(tmp_path / "one"), contents(tmp_path / "three")
    for lock in (".lock",):
        ours.pop(lock), theirs.pop(lock)
    assert ours == theirs and len(ours) > 8


@given(sizes=st.lists(st.integers(0, 30_000), min_size=1, max_size=60), size=st.integers(20_000, 80_000))
def test_every_image_is_in_one_shard_and_shards_are_full(sizes, size):
    images = Images(Files.of([f"/r/a/{n}" for n in range(len(sizes))]), [0] * len(sizes), ["a"])
    plan = Plan(images, Path("/r"), np.array(sizes), size)
    assert sorted(np.concatenate(plan.members).tolist()) == list(range(len(sizes)))
    for number, members in enumerate(plan.members):
        blocks = [-(-sizes[i] // 512) + 3 for i in members]
        assert 512 * sum(blocks) + 10_240 == plan.bytes_of(number)
        assert plan.bytes_of(number) <= size or len(members) == 1
        if number + 1 < len(plan.members):
            following = -(-sizes[plan.members[number + 1][0]] // 512) + 3
            assert plan.bytes_of(number) + 512 * following > size


class After:
    """A stop that is requested after so many shards have been written."""

    def __init__(self, folder, shards):
        self.folder, self.shards = folder, shards

    @property
    def requested(self):
        return len(list(self.folder.glob("*.npz"))) >= self.shards


def test_a_stop_keeps_complete_shards_and_the_same_call_resumes(root, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Stopped, match="rerun the same command to pack the images"):
        packed(root, out, stop=After(out / "train", 2))
    kept = {file: file.stat().st_mtime_ns for file in (out / "train").glob("*.tar")}
    assert 2 <= len(kept) < len(list((root / "train").rglob("*.*")))
    # As a call that was killed would leave it.
    (out / "train" / ".train-000009.tar-x7").write_bytes(b"half")
    with pytest.raises(DataError, match="`hpcdat pack` has not finished: call it again"):
        open_shards(out / "train", quiet=True)
    packed(root, out)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    packed(root, tmp_path / "whole")
    ours, theirs = contents(out), contents(tmp_path / "whole")
    ours.pop(".lock"), theirs.pop(".lock")
    assert ours == theirs
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.*")}
    assert packed(root, out)[0].images == 31
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*.*")} | {
        out / ".lock": before[out / ".lock"]
    }


def test_an_image_that_cannot_be_read_is_named_or_left_out(root, tmp_path, capfd):
    broken = shutil.copytree(root, tmp_path / "broken")
    torn, none = broken / "train" / "dog" / "torn.jpg", broken / "train" / "dog" / "none.gif"
    torn.write_bytes((broken / "train" / "dog" / "wrong.jpg").read_bytes()[:200])
    # The header of a GIF alone: only decoding shows the damage.
    none.write_bytes((broken / "train" / "cat.v2" / "2.x.gif").read_bytes()[:40])
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"cannot be read as an image.*\(--corrupt skip leaves such images"):
        packed(broken, out)
    done = packed(broken, out, corrupt="skip")
    assert (done[0].images, done[0].left_out) == (31, 2)
    told = capfd.readouterr().err
    assert all(told.count(f"{file}: cannot be read as an image") == 1 for file in (torn, none))
    assert "it is left out" in told
    names = {name.rsplit("/", 1)[1] for name in open_shards(out / "train", quiet=True).shards}
    assert not {"torn.jpg", "none.gif"} & names and len(names) == 31
    assert packed(broken, out, corrupt="skip")[0].left_out == 2


def test_a_shard_without_an_image_that_was_skipped_is_packed_again_where_it_may_not_be(root, tmp_path):
    broken = shutil.copytree(root, tmp_path / "broken")
    (broken / "train" / "dog" / "torn.jpg").write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        packed(broken, out, corrupt="skip", stop=After(out / "train", 4))
    with pytest.raises(InputError, match=r"torn\.jpg: cannot be read as an image: found an empty file"):
        packed(broken, out)


def test_a_class_of_which_nothing_is_left_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "train" / name / "0.png")
    (tmp_path / "train" / "b" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match="no image of class b can be read"):
        pack(tmp_path, tmp_path / "out", ["train"], SMALL, "skip", SingleProcess(), Never())


def test_folders_that_hold_something_else_are_refused(root, tmp_path):
    out = tmp_path / "out"
    (out / "train" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds what `hpcdat pack` has not written \(train/cat\)"):
        packed(root, out)
    (out / "train" / "cat").rmdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not written \(notes\.txt\): choose another folder"):
        packed(root, out)
    with pytest.raises(InputError, match="a file: choose a folder"):
        packed(root, out / "notes.txt")
    with pytest.raises(InputError, match="which is to be packed: choose another folder"):
        packed(root, root / "train" / "out")
    (out / "notes.txt").unlink()
    packed(root, out)
    with pytest.raises(InputError, match="shards of other images, or of another --shard-size"):
        packed(root, out, size=SMALL + 1)
    other = shutil.copytree(root, tmp_path / "other")
    Image.new("L", (4, 4)).save(other / "train" / "dog" / "new.png")
    with pytest.raises(InputError, match="shards of other images, or of another --shard-size"):
        packed(other, out)


def test_space_is_checked_before_anything_is_written(root, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=70_000)
    monkeypatch.setattr(pack_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"the shards take .* GB, and 7e-05 GB are free"):
        packed(root, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_the_command_prints_what_it_has_packed(root, tmp_path):
    done = run_here("pack", root, tmp_path / "out", "--shard-size", "40KB", "--splits", "train")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'out' / 'train'}: 31 images in " in done.stdout
    assert json.loads((tmp_path / "out" / "train" / "packing.json").read_text())["images"] == 31
    assert not (tmp_path / "out" / "test").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shard-size", "1"], "--shard-size 1: expected a size such as 500MB, 1GB or 1GiB, at least 20KB"),
        (["--shard-size", "big"], "--shard-size big: expected a size"),
        (["--splits", "../x"], "--splits ../x: expected different paths below"),
        (["--splits", "train,train"], "--splits train,train: expected different paths below"),
        (["--splits", "train,val"], "val: No such file or directory"),
    ],
)
def test_wrong_options_are_one_line(root, tmp_path, arguments, told):
    done = run_here("pack", root, tmp_path / "out", *arguments)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1


def test_sizes_are_read_as_they_are_written():
    assert (read_size("1GB"), read_size("500 MB"), read_size("1GiB")) == (10**9, 5 * 10**8, 2**30)
