"""Which lists of images are the same."""

import os
import shutil
from dataclasses import replace

import numpy as np

from hpcdat.data.encoded_images import Files
from hpcdat.data.images import Images


def test_files_are_the_same_until_one_is_written_again(tmp_path):
    folder = tmp_path / "test" / "cat"
    folder.mkdir(parents=True)
    files = [folder / "a.png", folder / "b.png"]
    for file in files:
        file.write_bytes(b"1234")
        os.utime(file, (1e9, 1e9))
    before = Images(Files.of(map(str, files)), [0, 0], ["cat"]).signature
    shutil.move(tmp_path / "test", tmp_path / "elsewhere")
    moved = [tmp_path / "elsewhere" / "cat" / file.name for file in files]
    images = Images(Files.of(map(str, moved)), [0, 0], ["cat"])
    assert images.signature == before
    moved[1].write_bytes(b"1235")
    changed = replace(images).signature
    assert changed != before
    moved[1].unlink()
    assert replace(images).signature not in (before, changed)


def test_pixels_in_memory_are_told_apart_by_one_of_them():
    images = Images(["a", "b"], [0, 1], ["cat", "dog"], np.zeros((2, 4, 4, 3), np.uint8))
    other = images.pixels.copy()
    other[1, 3, 3, 2] = 1
    assert images.signature == replace(images, pixels=images.pixels.copy()).signature
    assert images.signature != replace(images, pixels=other).signature
    assert images.signature != replace(images, labels=[1, 0]).signature
