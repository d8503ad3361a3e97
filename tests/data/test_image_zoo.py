"""All loaders decide alike about files of every kind, and read the same pixels, in whole and in crops."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hpcdat.config.sections import Data
from hpcdat.data import open_loader
from hpcdat.data.augmentation import view_of
from hpcdat.data.encoded_images import Files
from hpcdat.data.image_file import inspect
from hpcdat.data.image_folder import IMAGE_SUFFIXES
from hpcdat.data.images import Images
from hpcdat.data.pixels import apply_view
from hpcdat.data.torchvision_loader import BatchReader, Wanted
from tests.data import image_zoo as zoo

SIZE = 32


def by_pillow(specimen):
    """A damaged file of a format that only Pillow decodes: with the pixels that it reads, if any."""
    try:
        with Image.open(io.BytesIO(specimen.content)) as image:
            return specimen._replace(pixels=np.array(image.convert("RGB")))
    except Exception:
        return specimen


def all_specimens():
    jpegs, pngs, tiffs, others = (
        list(made()) for made in (zoo.whole_jpegs, zoo.whole_pngs, zoo.whole_tiffs, zoo.whole_others)
    )
    yield from (*jpegs, *pngs, *tiffs, *others, *zoo.no_images())
    for specimen in (*jpegs, *pngs):
        if specimen.name not in ("jpeg trailer", "mpo"):
            yield from zoo.damaged(specimen)
    for specimen in (*tiffs[:1], *others):
        if specimen.name != "pgm 16":
            yield from map(by_pillow, zoo.damaged(specimen))


@pytest.fixture(scope="module")
def specimens():
    return list(all_specimens())


@pytest.fixture(scope="module")
def images(specimens, tmp_path_factory):
    """Their files, each under two names; the label of an image is its position."""
    folder = tmp_path_factory.mktemp("zoo")
    files = []
    for number, specimen in enumerate(specimens):
        for copy in (0, 1):
            suffix = IMAGE_SUFFIXES[(5 * number + 3 * copy) % len(IMAGE_SUFFIXES)]
            files.append(folder / f"{number}-{copy}{suffix}")
            files[-1].write_bytes(specimen.content)
    return Images(Files.of(map(str, files)), list(range(len(files))), ["a"])


def read_by_dali(images, settings, training, seed, capsys, batch_size=12):
    """The images that DALI's loader reads, by position, and its complaints.

    ``capsys`` leaves out what DALI's libraries write to the terminal, in the middle of our lines at times.
    """
    reader = open_loader(images, settings, training=training, batch_size=16, device=torch.device("cpu"))
    batches = np.array_split(np.arange(len(images)), len(images) // batch_size)
    seen = {}
    for x, labels in reader.read(batches, seed):
        seen |= {int(label): image.mul(255).round() for image, label in zip(x.clone(), labels, strict=True)}
    return seen, sorted(capsys.readouterr().err.splitlines())


def read_by_torchvision(images, settings, training, seed):
    everything = np.arange(len(images))
    pixels, complaints = BatchReader(None, settings, training)(Wanted(everything, seed, images.encoded))
    readable = [index for index in everything.tolist() if index not in complaints]
    seen = dict(zip(readable, pixels.permute(0, 3, 1, 2).float(), strict=True))
    return seen, sorted(f"hpcdat: {answer}; it is left out" for answer in complaints.values())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "crops"])
def test_loaders_agree_on_every_file(specimens, images, channels, training, capsys):
    settings = Data(
        root="x", image_size=SIZE, channels=channels, augmentation="crop-flip", corrupt="skip", threads=1
    )
    for seed in (1, 2) if training else (0,):
        dali, told_by_dali = read_by_dali(images, settings, training, seed, capsys)
        torchvision, told_by_torchvision = read_by_torchvision(images, settings, training, seed)
        assert told_by_dali == told_by_torchvision
        for position in range(len(images)):
            specimen = specimens[position // 2]
            name = f"{specimen.name}, seed {seed}"
            if specimen.pixels is None:
                assert position not in dali and position not in torchvision, name
                continue
            pixels = zoo.grey_of(specimen.pixels)[..., None] if channels == 1 else specimen.pixels
            pixels = np.dstack([pixels] * 3) if channels == 3 and pixels.ndim == 2 else pixels
            stored = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
            view = view_of(*pixels.shape[:2], position, settings, training=training, seed=seed)
            expected = apply_view(stored, view, SIZE).float()
            assert torch.equal(torchvision[position], expected), name
            apart = (dali[position] - expected).abs()
            # Decoders of JPEG round differently.
            assert apart.max() <= 2 * specimen.lossy and apart.mean() < 0.5, name


@pytest.mark.parametrize("channels", [1, 3])
def test_images_on_the_device_are_those_of_the_other_loaders(specimens, images, channels, capsys):
    """Of the files that are images of one size, and those that are none."""
    size = (zoo.HEIGHT, zoo.WIDTH)
    some = [n for n, s in enumerate(specimens) if s.pixels is None or s.pixels.shape[:2] == size]
    listed = images.subset(2 * np.array(some))
    settings = Data(root="x", loader="device", image_size=SIZE, channels=channels, corrupt="skip", threads=1)
    reader = open_loader(listed, settings, training=False, batch_size=9, device=torch.device("cpu"))
    told = sorted(capsys.readouterr().err.splitlines())
    torchvision, told_by_torchvision = read_by_torchvision(listed, settings, False, 0)
    assert told == told_by_torchvision
    ((x, _),) = reader.read([np.arange(len(listed))], 0)
    assert len(torchvision) > 50 and torch.equal(x.mul(255).round(), torch.stack([*torchvision.values()]))


@pytest.mark.parametrize("training, batch_size", [(False, 12), (True, 12), (True, 1)])
def test_damage_inside_a_file_is_decided_alike(tmp_path, training, batch_size, capsys):
    """Where its checksums, if it has any, or its decoder find it, and where neither does."""
    random = np.random.default_rng(0)
    bases = [*zoo.whole_jpegs(), *zoo.whole_pngs(), *zoo.whole_tiffs(), *zoo.whole_others()]
    files = []
    for number, specimen in enumerate(bases + list(zoo.whole_jpegs())):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(zoo.damaged_inside(specimen, random).content)
    images = Images(Files.of(map(str, files)), list(range(len(files))), ["a"])
    settings = Data(root="x", image_size=SIZE, augmentation="crop-flip", corrupt="skip", threads=1)
    dali, told_by_dali = read_by_dali(images, settings, training, 1, capsys, batch_size)
    torchvision, told_by_torchvision = read_by_torchvision(images, settings, training, 1)
    assert dali.keys() == torchvision.keys() and told_by_dali == told_by_torchvision
    assert 20 < len(dali) < len(images) - 20
    assert all((dali[position] - torchvision[position]).abs().max() <= 2 for position in dali)


def test_complaints_say_what_was_found_and_what_is_accepted(specimens, images):
    settings = Data(root="x", image_size=SIZE)
    reader = BatchReader(None, settings, training=False)
    _, complaints = reader(Wanted(np.arange(len(images)), 0, images.encoded))
    told = {s.name: complaints[2 * n] for n, s in enumerate(specimens) if s.pixels is None}
    for name, what in {
        "nothing": "found an empty file; accepted are JPEG, PNG, GIF, BMP, PNM, TIFF and WebP",
        "html": "found an HTML, XML or SVG page; accepted are",
        "heic": "found an HEIC, AVIF or video file (brand 'heic'); accepted are",
        "pointer": "found a Git LFS pointer (`git lfs pull` fetches the image)",
        "jpeg 2000": "found a JPEG 2000 image; accepted are",
        "jpeg cut at 97 %": "found a JPEG file without its end, as after a copy or download that was interr",
        "png cut at 97 %": "found a PNG file without its end",
        "huge png": "found an image of 65535 x 65535 pixels; accepted are up to 178 million",
        "tiff float": "found a TIFF image with pixels of another type (Pillow's mode F), in which no white",
    }.items():
        assert f": cannot be read as an image: {what}" in told[name], told[name]
    assert all("\n" not in one and "0x" not in one for one in told.values())


def test_only_complete_files_are_plain(specimens):
    """Of what DALI decodes, nothing is left for it to decide."""
    plain = [
        specimen.name
        for specimen in specimens
        if specimen.pixels is not None and inspect(specimen.content).plain
    ]
    assert {"jpeg", "jpeg grey", "jpeg progressive", "mpo", "png", "png grey", "png metadata"} < set(plain)
    assert not {"jpeg cmyk", "jpeg rgb", "png 16", "png palette", "png alpha", "gif"} & set(plain)
    with_text = next(specimen for specimen in specimens if specimen.name == "png metadata")
    assert inspect(with_text.content).encoded == zoo.png(zoo.COLOUR, 2, 8)
