"""scikit-learn's handwritten digits, written out as an image folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from hpcdat.data.images import DataError

TEST_IMAGES = 397
"""Digits in the test set; the other 1,400 are for training."""


def write_digits(root: Path) -> None:
    """Write the 1,797 digits (8x8, grey) as PNG files, unless they are there.

    ``root/train`` gets 1,400 of them and ``root/test`` 397, stratified by class. The folder
    appears complete or not at all, so several processes may call this at once.

    Args:
        root: the folder to make.

    Raises:
        DataError: it cannot be written.
    """
    try:
        _write(root)
    except OSError as error:
        raise DataError(
            f"the digits cannot be written to {root}: {error.strerror or error}. Set data.root, or the "
            "environment variable XDG_CACHE_HOME, to a folder that can be written"
        ) from None


def _write(root: Path) -> None:
    if (root / "test").is_dir():
        return
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # The scans have 17 grey levels, 0 to 16.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=TEST_IMAGES, stratify=digits.target, random_state=0
    )
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{root.name}-", dir=root.parent))
    try:
        for split, members in (("train", train), ("test", test)):
            for index in members:
                folder = staging / split / str(digits.target[index])
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[index]).save(folder / f"{index:04d}.png")
        staging.chmod(0o755)
        staging.rename(root)
    except OSError:
        # Another process may have put the same folder there meanwhile.
        if not (root / "test").is_dir():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
