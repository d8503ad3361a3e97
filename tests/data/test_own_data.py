"""Data sets of the user's own: read as folders are, the same everywhere, and checked at the start."""

import itertools
import random
import re
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from hpcdat.config.job_file import parse_job
from hpcdat.config.sections import Data
from hpcdat.data import find_images, open_loader
from hpcdat.data.image_folder import list_images
from hpcdat.data.images import DataError
from hpcdat.data.sampler import training_shares
from hpcdat.doctor.facts import _count_classes
from hpcdat.errors import InputError
from hpcdat.performance.network_bytes import count_classes
from tests.conftest import CHECKOUT

CPU = torch.device("cpu")
LOADERS = ["dali", "torchvision"]
NUMBERS = itertools.count()
HEADER = """
import random
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

class Held(Dataset):
    def __init__(self, images, of_items, **attributes):
        self.images, self.of_items = images, of_items
        vars(self).update(attributes)
    def __len__(self):
        return len(self.of_items)
    def __getitem__(self, index):
        return self.images[index], self.of_items[index]

def grey(count=4, size=6):
    return [np.full((size, size), 10 * n, np.uint8) for n in range(count)]
"""
FOLDER = """
from torchvision.datasets import ImageFolder

def load(root):
    # It cannot be pickled, and need not.
    return tuple(ImageFolder(root / split, transform=lambda image: image) for split in ("train", "test"))
"""
RANDOM = """
class Noise(Held):
    def __getitem__(self, index):
        image = torch.randint(0, 100, (1, 6, 6)) + int(np.random.randint(100)) + random.randrange(56)
        return image.to(torch.uint8), self.of_items[index]

def load():
    return Noise(None, [0, 1] * 8, targets=[0, 1] * 8), Noise(None, [0, 1], targets=[0, 1])
"""


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Write a module with a name of its own, and return its ``data`` section."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text, **settings):
        name = f"own_data_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(HEADER + textwrap.dedent(text))
        given = {"loader": "torchvision", "image_size": 6, "channels": 1, "threads": 1}
        return Data(source=f"{name}:load", **given | settings)

    yield write
    for name in [each for each in sys.modules if each.startswith("own_data_")]:
        del sys.modules[name]


@pytest.fixture
def find(tmp_path):
    return lambda settings, **other: find_images(settings, folders=[tmp_path], quiet=True, **other)


def read(images, settings, batches, seed=0, training=False):
    """All images of the batches, and their labels."""
    loader = open_loader(images, settings, training=training, batch_size=8, device=CPU)
    try:
        pairs = [(x.clone(), y) for x, y in loader.read([np.array(batch) for batch in batches], seed)]
    finally:
        loader.close()
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@pytest.mark.parametrize("loader", LOADERS)
def test_items_are_seen_as_the_files_of_a_folder(photos, write_module, find, loader):
    """To the bit, in training too; DALI's own decoder of JPEG rounds differently."""
    settings = write_module(
        FOLDER, root=photos, loader=loader, image_size=24, channels=3, augmentation="crop-flip", threads=2
    )
    own, folder = find(settings)[0], find_images(Data(root=photos))[0]
    assert (own.labels.tolist(), own.classes) == (folder.labels.tolist(), folder.classes) and len(own) == 5
    batches = [[3, 1], [], [4, 0, 2]]
    (x, y), (expected, labels) = (read(images, settings, batches, 3, True) for images in (own, folder))
    assert torch.equal(y, labels)
    exact = [loader == "torchvision" or folder.files[i].endswith("png") for i in itertools.chain(*batches)]
    assert sum(exact) >= 3 and torch.equal(x[exact], expected[exact])


@pytest.mark.parametrize("loader", [*LOADERS, "device"])
def test_data_sets_with_random_numbers_give_the_same_whoever_reads_them(write_module, find, loader):
    """In any order and number of processes, from any place of an epoch; in each epoch others."""
    settings = write_module(RANDOM, loader=loader, threads=2)
    train, _ = find(settings)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    whole = read(train, settings, [range(8), range(8, 16)], seed=5)[0]
    rest = read(train, settings.model_copy(update={"threads": 1}), [[15, 9], [8]], seed=5)[0]
    assert torch.equal(rest, whole[[15, 9, 8]]) and len(torch.unique(whole, dim=0)) == 16
    part = train.subset(np.array([9, 15]))
    assert torch.equal(read(part, settings, [[1, 0]], seed=5)[0], whole[[15, 9]])
    if loader != "device":
        assert not torch.equal(read(train, settings, [range(8)], seed=6)[0], whole[:8])
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(torch.get_rng_state(), states[2])


def test_two_workers_read_each_image_once_and_as_one_worker_does(write_module, find):
    settings = write_module(RANDOM)
    seen = []
    for rank, groups in ((0, [0]), (0, [0, 0]), (1, [0, 0])):
        train = find(settings)[0]
        size = 16 // len(groups) // 2
        shares = training_shares(len(train), size, rank=rank, groups=groups, seed=3, epoch=1)
        batches = [share.indices for share in shares]
        seen.append(
            dict(zip(np.concatenate(batches).tolist(), read(train, settings, batches)[0], strict=True))
        )
    alone, *both = seen
    assert sorted([*both[0], *both[1]]) == sorted(alone) == list(range(16))
    assert all(torch.equal(image, alone[i]) for i, image in (both[0] | both[1]).items())


def test_a_random_division_is_the_same_everywhere(write_module, find):
    settings = write_module(
        """
        def load():
            labels = [n % 2 for n in range(20)]
            whole = Held(grey(20), labels, targets=torch.tensor(labels), classes=["a", "b"])
            return torch.utils.data.random_split(whole, [15, 5])
        """
    )
    train, test = find(settings)
    torch.rand(3)
    again = find(settings)[0]
    assert train.labels.tolist() == again.labels.tolist() and train.classes == ["a", "b"]
    seen = [read(images, settings, [range(len(images))])[0] for images in (train, again, test)]
    assert torch.equal(seen[0], seen[1])
    levels = [set((images[:, 0, 0, 0] * 25.5).round().int().tolist()) for images in (seen[0], seen[2])]
    assert levels[0] | levels[1] == set(range(20)) and len(levels[0]) == 15


def test_labels_are_taken_from_where_they_are(write_module, tmp_path, capsys):
    text = "def load(where='', dtype='int64'):\n    labels = [0, 1, 1, 0]\n"
    text += (
        "    given = {where: getattr(np, dtype)(labels) if dtype != 'list' else labels} if where else {}\n"
    )
    text += "    made = Held(grey(), [torch.tensor(1) if n == 1 else np.int32(n) for n in labels], **given)\n"
    text += "    return made, made"
    settings = write_module(text)
    for where, dtype in [("targets", "list"), ("targets", "uint8"), ("labels", "int64"), ("", "list")]:
        options = {"options": {"where": where, "dtype": dtype}}
        found = find_images(settings.model_copy(update=options), folders=[tmp_path])
        assert [images.labels.tolist() for images in found] == [[0, 1, 1, 0]] * 2 and found[0].classes == [
            "0",
            "1",
        ]
        said = capsys.readouterr().out
        assert ("training data: reading all 4 items for their labels; give" in said) == (where == "")


ITEM = "training item 0"
WRONG = {
    "return Held(grey(), [0, 1, 0, 1])": "returned a Held; expected two data sets, for training and test",
    "return (two(), two(), two())": "returned 3 values; expected two data sets",
    "return None": "returned a NoneType; expected two data sets",
    "return 3, two()": "the training data are of type int, which has no __getitem__; expected a map-style",
    "return two(), iter([1])": "the test data are of type list_iterator, which has no __getitem__",
    "return {0: 1}.__class__, two()": "the training data have no length: TypeError: ",
    "return Unsized(), two()": "the training data are of type Unsized, which has no __len__; expected a map-",
    "return Stream(), two()": r"iterable-style \(Stream\); expected a map-style data set, with __getitem__",
    "return two(), []": "the test data are empty",
    "return 1 / 0": r":load failed: .*\.py:\d+: ZeroDivisionError: division by zero",
    "return items([1]), two()": f"{ITEM}: found type int; expected a pair",
    "return items([dict(image=1, label=0)]), two()": f"{ITEM}: found a mapping with image, label; expected a",
    "return items([(1, 2, 3)]), two()": f"{ITEM}: found 3 parts; expected a pair",
    "return two(), items([('a.png', 0)])": "test item 0: its image is of type str; expected a PIL image, an",
    "return image(np.zeros((6, 6), np.int64)), two()": f"{ITEM}: its image is of dtype int64; expected uint8",
    "return image(np.zeros((6, 6), bool)), two()": f"{ITEM}: its image is of dtype bool; expected uint8",
    "return image(np.full((6, 6), -2.0)), two()": r"floats from -2 to -2; .* Leave out a normalisation",
    "return image(np.full((6, 6), 200.0)), two()": "floats from 200 to 200; .*: divide it by 255",
    "return image(np.full((6, 6), np.nan)), two()": r"floats from nan to nan; expected floats in \[0, 1\]",
    "return image(torch.zeros(6, 6, 3)), two()": r"a tensor of shape \(6, 6, 3\); expected \(1 or 3, H, W\)",
    "return image(torch.zeros(6, 6)), two()": r"a tensor of shape \(6, 6\); expected \(1 or 3, H, W\)",
    "return image(torch.zeros(4, 6, 6)), two()": r"a tensor of shape \(4, 6, 6\); expected \(1 or 3, H, W\)",
    "return image(np.zeros((3, 6, 6), 'u1')), two()": r"an array of shape \(3, 6, 6\); expected \(H, W\) or",
    "return image(np.zeros((0, 6), 'u1')), two()": r"its image has no pixels \(shape \(0, 6\)\)",
    "return image(Image.new('I', (6, 6))), two()": "PIL image with pixels of another type .Pillow's mode I.",
    "return label(1.0), two()": f"{ITEM}: its label is 1.0, of type float; expected a whole number",
    "return label('cat'), two()": f"{ITEM}: its label is 'cat', of type str; expected a whole number",
    "return label(True), two()": f"{ITEM}: its label is True, of type bool; expected a whole number",
    "return Held(grey(), [-1] * 4), two()": f"{ITEM} has label -1; expected 0 or more",
    "return label(torch.tensor(1.0)), two()": f"{ITEM}: its label is of dtype float32; expected a whole",
    "return label(np.array([0, 1])), two()": rf"{ITEM}: its label is of shape \(2,\); expected a whole",
    "return label(-1), two()": f"{ITEM} has label -1; expected 0 to ",
    "return two(), label(7)": r"test item 0 has label 7; expected 0 to 1 \(the training labels end there\)",
    "return two(classes=['a', 'b']), label(2)": r"test item 0 has label 2; .* \(the data set names 2 ",
    "return Held(grey(), [1, 2, 1, 2]), two()": "training data: no item has label 0; expected 0 to 2, each",
    "return Held(grey(), [0] * 4), two()": "training data have a single class",
    "return two(classes=['a', 'b']), two(classes=['b', 'a'])": "different `classes`: 2 and 2 names, or in",
    "return two(classes=['a', 'a']), two()": "a name is twice in `classes`",
    "return two(classes=2), two()": "`classes` is a int; expected a list of names",
    "return two(targets=[0, 1]), two()": r"`targets` is a list of 2 \(int\); expected .* of 4 whole numbers",
    "return two(targets=np.eye(4)), two()": r"`targets` is a ndarray of shape \(4, 4\), float64; expected",
    "return two(targets=[1, 0, 0, 1]), two()": "training item 0 has label 0, but `targets` .* says 1: they",
    "return Failing(grey(), [0, 1, 0, 1]), two()": r"training item 0: cannot be read .*\.py:\d+: KeyError:",
    "return Drawing(grey(), [0, 1, 0, 1]), two()": "item 0 differs when it is read again with the same",
}
MAKERS = """
def two(**attributes):
    return Held(grey(), [0, 1, 0, 1], **attributes)
def items(made):
    return made
def image(pixels):
    return [(pixels, 0)] * 2
def label(which):
    return Held(grey(), [which, 1, 0, 1])
class Unsized(Dataset):
    def __getitem__(self, index):
        return 1
class Stream(IterableDataset):
    def __len__(self):
        return 3
    def __iter__(self):
        return iter([1])
class Failing(Held):
    def __getitem__(self, index):
        raise KeyError("x")
class Drawing(Held):
    generator = np.random.default_rng(0)
    def __getitem__(self, index):
        return self.generator.integers(0, 256, (6, 6), dtype=np.uint8), 0
def load():
    %s
"""


@pytest.mark.parametrize("made", WRONG)
def test_a_wrong_data_set_is_refused_in_one_sentence(write_module, find, made):
    with pytest.raises(InputError, match=WRONG[made]) as refused:
        find(write_module(MAKERS % made))
    assert "\n" not in str(refused.value)


def test_items_that_cannot_be_read_are_left_out_where_the_job_says_so(write_module, find, capsys):
    text = """
        class Sometimes(Held):
            def __getitem__(self, index):
                if index in (2, 12):
                    raise OSError("gone")
                return super().__getitem__(index)
        def load():
            labels = [n % 2 for n in range(16)]
            return Sometimes(grey(16), labels, targets=labels), Held(grey(), [0, 1, 0, 1])
    """
    for loader in [*LOADERS, "device"]:
        settings = write_module(text, loader=loader, corrupt="skip")
        train, _ = find(settings)
        assert len(train) == 16
        x, y = read(train, settings, [[0, 2], [12], [13, 1, 2]])
        assert y.tolist() == [0, 1, 1] and (x[:, 0, 0, 0] * 25.5).round().tolist() == [0, 13, 1]
        said = capsys.readouterr().err
        assert all(said.count(f"training item {n}: cannot be read as an image: ") == 1 for n in (2, 12))
        assert said.count(": OSError: gone; it is left out") == 2
        with pytest.raises(DataError, match=r"item 2: cannot be read as an image: .*\.py:\d+: OSError: gone"):
            find(settings.model_copy(update={"corrupt": "stop"}))
    unlabelled = write_module(text.replace(", targets=labels", ""), corrupt="skip")
    assert [len(images) for images in find(unlabelled)] == [14, 4]


def test_grey_and_colour_become_what_the_job_asks_for(write_module, find):
    """In all forms of an image, with the weights of files."""
    settings = write_module(
        """
        def load():
            colour = Image.effect_noise((6, 6), 90).convert("RGB")
            colour.putpixel((0, 0), (255, 0, 0))
            pixels = np.array(colour)
            tensor = torch.from_numpy(pixels).permute(2, 0, 1)
            images = [colour, pixels, tensor, tensor / 255, pixels / np.float32(255), (tensor / 255).half()]
            made = Held(images, [0, 1] * 3)
            return made, made
        """
    )
    for channels in (1, 3):
        for loader in LOADERS:
            wanted = settings.model_copy(update={"channels": channels, "loader": loader})
            x, _ = read(find(wanted)[0], wanted, [range(6)])
            assert x.shape == (6, channels, 6, 6) and all(torch.equal(x[0], image) for image in x)
            expected = [76 / 255] if channels == 1 else [1, 0, 0]
            assert x[0, :, 0, 0].tolist() == pytest.approx(expected)


def test_a_signature_changes_with_items_arguments_and_module(write_module, find, tmp_path):
    """And with nothing else; of many items a sample is read, which is said."""
    text = "def load(level=0, label=0):\n    images = grey(8)\n    images[5] += np.uint8(level)\n"
    text += "    made = Held(images, [0, 1, 0, 1, 0, 1, label, 1])\n    return made, made"
    settings = write_module(text)

    def signature(**options):
        return find(settings.model_copy(update={"options": options}))[1].signature

    first = signature()
    assert signature() == first and len({first, signature(level=1), signature(label=1)}) == 3
    images = find(settings)[1]
    assert images.subset(np.arange(4)).signature != first
    (module,) = tmp_path.glob("*.py")
    module.write_text(module.read_text() + "\n# changed")
    assert find(settings)[1].signature != first


def test_a_share_of_a_single_data_set_is_the_test(write_module, find):
    settings = write_module(
        "def load(): return Held(grey(20), [n % 2 for n in range(20)])",
        test_fraction=0.3,
        train_images=6,
    )
    train, test = find(settings)
    assert (len(train), len(test), sum(train.labels), sum(test.labels)) == (6, 6, 3, 3)
    assert not set(train.files) & set(test.files)
    x, y = read(test, settings, [range(6)])
    assert ((x[:, 0, 0, 0] * 25.5).round() % 2).tolist() == y.tolist()
    settings = write_module("def load(): return grey(), grey()", test_fraction=0.3)
    with pytest.raises(DataError, match=r"returned 2 values; expected one data set, as data.test_fraction"):
        find(settings)


def test_the_examples_of_the_documentation_read_the_same_images(photos, tmp_path, monkeypatch):
    """Those of docs/start/own-images.md, on a folder of photographs."""
    pytest.importorskip("datasets")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    text = (CHECKOUT / "docs" / "start" / "own-images.md").read_text()
    text = text[text.index("## A data set in Python") :]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    sections = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_data.py").write_text(code)
    (tmp_path / "photos").symlink_to(photos)
    found = []
    for section in sections:
        text = f"run_dir: run\nmethod: plain\nepochs: 1\nbatch_size: 2\noptimizer: {{lr: 0.1}}\n{section}"
        job = parse_job(text, str(tmp_path / "job.yaml"), ["data.test=test"])
        found.append(find_images(job.data, folders=job.module_path or (), quiet=True)[0])
    own, theirs = found
    del sys.modules["my_data"]
    assert (own.labels.tolist(), own.classes) == (theirs.labels.tolist(), theirs.classes)
    with Image.open(list_images(photos / "train").files[0]) as image:
        expected = np.array(image.convert("RGB").resize((24, 24)))
    assert np.array_equal(own.decoded(0, 3, 0), expected)


def test_plan_and_doctor_count_the_classes_of_such_data(write_module, tmp_path):
    settings = write_module("def load(): return [Held(grey(), [0, 1, 2, 0])] * 2")
    assert count_classes(settings, [tmp_path]) == _count_classes(settings, [tmp_path]) == 3
    with pytest.raises(InputError, match=r"there is no lead in .*; did you mean load\?"):
        count_classes(settings.model_copy(update={"source": settings.source[:-4] + "lead"}), [tmp_path])


@pytest.mark.parametrize(
    "data, wrong",
    [
        (
            "{source: cifar10, options: {a: 1}}",
            "data.options: not allowed with data.source: cifar10, only",
        ),
        ("{source: 'a:b', hub: x/y}", "data.hub: not allowed with data.source: a:b, only with huggingface"),
        ("{source: 'a:b', unlabelled: x.npz}", "data.unlabelled: not allowed with data.source: a:b"),
        ("{source: 'a:b', download: true}", "data.download: expected false: only CIFAR and data.hub can be"),
        (
            "{source: huggingface}",
            "data.root: expected a folder with image folders, Parquet files or a saved",
        ),
    ],
)
def test_settings_that_do_not_go_with_a_source_are_refused(data, wrong):
    text = f"{{run_dir: run, method: plain, epochs: 1, batch_size: 2, optimizer: {{lr: 0.1}}, data: {data}}}"
    with pytest.raises(InputError, match=wrong):
        parse_job(text, "job.yaml")
