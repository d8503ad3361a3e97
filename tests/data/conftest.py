"""Images that several modules of tests read."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Smooth colour images of several sizes and kinds."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, name in enumerate(["a.png", "b.jpg", "c.png", "d.jpeg", "e.png"]):
            folder = root / split / ("cat" if number % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
            size = (40 + 7 * number, 60 - 5 * number)
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return root
