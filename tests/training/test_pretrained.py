"""Weights that a model starts from."""

import decimal
import re
import zipfile

import pytest
import torch

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job, write_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.models import build_model, build_model_for
from hpcdat.models.split_batch_norm import split_batch_norm
from hpcdat.storage.checkpoint_format import Checkpoint, save_checkpoint
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.pretrained import load_pretrained
from hpcdat.training.weight_files import SAVE
from tests.conftest import DEMO, Never


def make(classes=10, name="preact-resnet18", width=0.1, seed=0, split=False):
    size = {"channels": 3, "num_classes": classes, "mean": [0.1 * seed] * 3, "std": [1.0 + seed] * 3}
    model = build_model(name, seed=seed, width=width, **size)
    if split:
        split_batch_norm(model)
    return model


def named(count):
    return [str(number) for number in range(count)]


def kept(model, path, classes):
    checkpoint = Checkpoint(
        model=model.state_dict(), optimizer={}, epoch=1, step=0, workers=1, classes=classes, images=9
    )
    save_checkpoint(path, checkpoint)


def same(ours, theirs, name):
    return torch.equal(ours.state_dict()[name], theirs.state_dict()[name])


@pytest.mark.parametrize("classes", [named(7), [*named(9), "other"]], ids=["fewer", "as many"])
def test_a_run_with_other_classes_gives_all_but_the_head(tmp_path, classes):
    run = RunFolder(tmp_path)
    run.checkpoints.folder.mkdir()
    run.job_file.write_text(write_job(read_job(DEMO, ["early_stopping.patience=1"])))
    source, model = make(seed=1), make(len(classes))
    with torch.no_grad():
        source[1].norm.running_mean += 3
    kept(make(seed=2), run.checkpoints.epoch_file, named(10))
    kept(source, run.checkpoints.best_file, named(10))
    before = model[1].classifier.weight.clone()
    assert load_pretrained(model, tmp_path, classes).fresh == ["1.classifier.weight", "1.classifier.bias"]
    assert torch.equal(model[1].classifier.weight, before)
    for name in model.state_dict():
        assert same(model, source, name) == (name.startswith("1.") and "classifier" not in name), name
    run.checkpoints.best_file.unlink()
    run.checkpoints.epoch_file.rename(run.checkpoints.epoch_before_file)
    run.checkpoints.epoch_file.write_bytes(b"damaged")
    model = make()
    load_pretrained(model, tmp_path, named(10))
    assert same(model, make(seed=2), "1.stem.weight")


def test_both_branches_start_from_the_one_there_is_and_back_again(tmp_path):
    source, model = make(seed=1), make(split=True)
    kept(source, tmp_path / "plain.pt", named(10))
    assert load_pretrained(model, tmp_path / "plain.pt", named(10)).fresh == []
    for part in ("main", "auxiliary"):
        assert torch.equal(getattr(model[1].norm, part).running_var, source[1].norm.running_var)
        assert torch.equal(getattr(model[1].norm, part).weight, source[1].norm.weight)
    with torch.no_grad():
        model[1].norm.auxiliary.weight += 1
    kept(model, tmp_path / "split.pt", named(10))
    plain = make(seed=2)
    assert load_pretrained(plain, tmp_path / "split.pt", named(10)).fresh == []
    assert torch.equal(plain[1].norm.weight, source[1].norm.weight)


def test_a_weight_file_of_torchvision_is_read(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    net = resnet50(weights=None)
    torch.save(net.state_dict(), tmp_path / "resnet50.pth")
    model = make(name="resnet50", width=1.0)
    loaded = load_pretrained(model, tmp_path / "resnet50.pth", named(10))
    assert loaded.fresh == ["1.fc.weight", "1.fc.bias"]
    assert torch.equal(model[1].layer4[2].conv3.weight, net.layer4[2].conv3.weight)
    # Those of before 2018 have no counts of batches.
    old = {name: t for name, t in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    fresh = make(name="resnet50", width=1.0)
    assert load_pretrained(fresh, tmp_path / "old.pth", named(10)).fresh == ["1.fc.weight", "1.fc.bias"]


def wrapped(state, prefix="", *keys):
    """A state dictionary with a prefix of all names, in nested entries, the last one outermost."""
    value = {prefix + name: tensor for name, tensor in state.items()}
    for key in keys:
        value = {key: value, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    return value


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt"])
@pytest.mark.parametrize(
    "prefix, keys, told",
    [
        ("", (), ""),
        ("module.", (), " (without 'module.')"),
        ("_orig_mod.", ("model",), " (in 'model', without '_orig_mod.')"),
        ("module._orig_mod.", ("state_dict",), " (in 'state_dict', without 'module._orig_mod.')"),
        ("model.", ("model_state_dict", "net"), " (in 'net', in 'model_state_dict', without 'model.')"),
    ],
)
def test_wrappers_and_prefixes_of_other_programs_are_taken_off_and_said(tmp_path, name, prefix, keys, told):
    source, model = make(seed=1), make()
    torch.save(wrapped(source[1].state_dict(), prefix, *keys), tmp_path / name)
    loaded = load_pretrained(model, tmp_path / name, named(10))
    assert all(same(model, source, name) for name in model.state_dict() if name.startswith("1."))
    tensors = len(source[1].state_dict())
    # Folders 1 to 10 are in the order 1, 10, 2, ..., and a file seldom says in which order its classes are.
    order = f"{', '.join(named(10)[:4])} and 6 more, in this order"
    assert loaded.describe(tmp_path / name) == (
        f"starting from {tmp_path / name}: {tensors} tensors{told}; its last layer is taken to be for the "
        f"classes {order}"
    )


def test_the_state_of_our_own_model_is_read_with_its_normalisation_layer(tmp_path):
    source, model = make(seed=1, split=True), make()
    for prefix in ("", "module.", "_orig_mod."):
        torch.save(wrapped(source.state_dict(), prefix), tmp_path / "own.pth")
        load_pretrained(model, tmp_path / "own.pth", named(10))
        assert torch.equal(model[1].stem.weight, source[1].stem.weight)
        assert torch.equal(model[1].norm.weight, source[1].norm.main.weight)
        assert not same(model, source, "0.mean")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:Sparse invariant checks")
def test_what_is_no_such_net_is_refused_in_one_line_and_changes_nothing(tmp_path):
    model = make()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state, save = make()[1].state_dict(), SAVE
    nan = {name: t.clone() for name, t in state.items()}
    nan["classifier.bias"][3] = float("nan")
    infinite = {**state, "norm.running_var": state["norm.running_var"] / 0}
    whole = tmp_path / "whole.pth"
    torch.save(state, whole)
    files = {
        "wide.pth": make(width=0.2)[1].state_dict(),
        "other.pth": {"a": torch.ones(1)},
        "more.pth": {**state, "ema.bias": torch.ones(1)},
        "numbered.pth": {0: torch.ones(1)},
        "half.pth": {**state, 0: torch.ones(1), "x" * 300: 1},
        "escape.pth": {**state, "\x1b[31m\nred": torch.ones(1)},
        "list.pth": [1],
        "empty-dict.pth": {"state_dict": {}},
        "objects.pth": {"state_dict": state, "rate": decimal.Decimal(1)},
        "nan.pth": nan,
        "infinite.pth": infinite,
        "integers.pth": {**state, "norm.weight": state["norm.weight"].to(torch.int8)},
        "sparse.pth": {**state, "classifier.weight": state["classifier.weight"].to_sparse()},
    }
    for name, value in files.items():
        torch.save(value, tmp_path / name)
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "program.pt")
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("a.jpg", "x")
    for name, content in {
        "cut.pth": whole.read_bytes()[:5000],
        "text.pth": b"x",
        "text.pt": b"\x1b[31mx\x1b[0m",
        "page.pth": b"\n<!DOCTYPE html><html>Sign in</html>",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "keras.h5": b"\x89HDF\r\n\x1a\n\0\0",
        "void.pth": b"",
        "weights.pth.gz": b"\x1f\x8b\x08",
        "weights.safetensors": b"\x10\0\0\0\0\0\0\0" + b'{"a": 1}',
        "pickled.pth": b"\x80\x02cos\nsystem\n(S'true'\ntR.",
    }.items():
        (tmp_path / name).write_bytes(content)
    for name, told in {
        "wide.pth": r"does not fit this model: stem.weight is \(13, 3, 3, 3\) there and \(6, 3, 3, 3\) here, "
        r".* and \d+ more: set model.width, data.channels and model.name as for the file",
        "other.pth": r"it lacks (\d+) of \1 tensors \(classifier.bias, .* more\); it has 1 others \(a\): "
        "set model.name to the network of the file",
        "more.pth": r"does not fit this model: it has 1 others \(ema.bias\): set",
        "numbered.pth": rf"expected tensors by name, found .*: write the file with {re.escape(save)}$",
        "half.pth": r"expected tensors by name, found other entries \(0: Tensor, x+\.\.\.: int\): write",
        "escape.pth": r"found other entries \('.*x1b.*nred': Tensor\): write",
        "list.pth": "expected tensors by name, found an object of type list: write",
        "empty-dict.pth": "expected tensors by name, found none: write",
        "objects.pth": r"holds other objects than tensors \(decimal.Decimal\), which hpcdat does not "
        rf"load, as that may run code of the file: save the weights alone, with {re.escape(save)}$",
        "nan.pth": "1 of the 10 numbers of classifier.bias are NaN or infinite: take weights from before",
        "infinite.pth": "numbers of norm.running_var are NaN or infinite",
        "integers.pth": "norm.weight is torch.int8 there and torch.float32 here: save the weights as",
        "sparse.pth": r"classifier.weight is sparse",
        "program.pt": "a TorchScript program: load it with torch.jit.load",
        "photos.pth": r"a zip archive of something else \(a.jpg\)",
        "cut.pth": "incomplete, damaged, or not written by torch.save: copy or download it again",
        "text.pth": "neither a checkpoint of hpcdat nor a file of torch.save",
        "text.pt": "neither a checkpoint of hpcdat nor a file of torch.save",
        "page.pth": "an HTML or XML page, not a file of weights: download the weights again",
        "pointer.pth": "a pointer of Git LFS, not a file of weights: fetch the file itself",
        "keras.h5": r"in HDF5 format, not a file of weights: save it with torch\.save",
        "void.pth": "empty: write it with",
        "weights.pth.gz": "compressed by gzip, not a file of weights: unpack it first",
        "weights.safetensors": "an incomplete or damaged safetensors file",
        "pickled.pth": "holds other objects than tensors|incomplete, damaged",
        "none.pth": "there is no such file or folder",
        "none.pt": "there is no such file or folder",
        "": "is not the folder of a run: it has no job.yaml",
    }.items():
        with pytest.raises(InputError, match=told) as refused:
            load_pretrained(model, tmp_path / name, named(10))
        text = str(refused.value)
        assert text.startswith(f"model.pretrained: {tmp_path / name}"), text
        assert "weights_only" not in text and text.isprintable() and len(text) < 600, text
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_weights_that_are_not_finite_are_refused_before_training(tmp_path):
    state = make_demo_state()
    state["classifier.weight"][:] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    few = ["epochs=1", "data.train_images=50", "data.test_images=10", "schedule.decay_epochs=[]"]
    settings = [f"run_dir={tmp_path / 'run'}", f"model.pretrained={tmp_path / 'nan.pth'}"]
    with pytest.raises(InputError, match=r"numbers of classifier.weight are NaN") as refused:
        train(read_job(DEMO, [*few, *settings]), SingleProcess(), Never())
    assert "checkpoint" not in str(refused.value) and not RunFolder(tmp_path / "run").metrics("epoch")


def make_demo_state():
    return build_model_for(read_job(DEMO), 10)[1].state_dict()
