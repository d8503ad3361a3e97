"""Weights that a model starts from."""

import pytest
import torch

from hpcdat.config.job_file import read_job, write_job
from hpcdat.errors import InputError
from hpcdat.models import build_model
from hpcdat.models.split_batch_norm import split_batch_norm
from hpcdat.storage.checkpoint_format import Checkpoint, save_checkpoint
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.pretrained import load_pretrained
from tests.conftest import DEMO


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
    assert load_pretrained(model, tmp_path, classes) == ["1.classifier.weight", "1.classifier.bias"]
    assert torch.equal(model[1].classifier.weight, before)
    for name in model.state_dict():
        assert same(model, source, name) == (name.startswith("1.") and "classifier" not in name), name
    run.checkpoints.best_file.unlink()
    run.checkpoints.epoch_file.rename(run.checkpoints.epoch_before_file)
    run.checkpoints.epoch_file.write_bytes(b"damaged")
    load_pretrained(model, tmp_path, named(10))
    assert same(model, make(seed=2), "1.stem.weight")


def test_both_branches_start_from_the_one_there_is_and_back_again(tmp_path):
    source, model = make(seed=1), make(split=True)
    kept(source, tmp_path / "plain.pt", named(10))
    assert load_pretrained(model, tmp_path / "plain.pt", named(10)) == []
    for part in ("main", "auxiliary"):
        assert torch.equal(getattr(model[1].norm, part).running_var, source[1].norm.running_var)
        assert torch.equal(getattr(model[1].norm, part).weight, source[1].norm.weight)
    with torch.no_grad():
        model[1].norm.auxiliary.weight += 1
    kept(model, tmp_path / "split.pt", named(10))
    plain = make(seed=2)
    assert load_pretrained(plain, tmp_path / "split.pt", named(10)) == []
    assert torch.equal(plain[1].norm.weight, source[1].norm.weight)


def test_a_weight_file_of_torchvision_is_read(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    net = resnet50(weights=None)
    torch.save(net.state_dict(), tmp_path / "resnet50.pth")
    model = make(name="resnet50", width=1.0)
    assert load_pretrained(model, tmp_path / "resnet50.pth", named(10)) == ["1.fc.weight", "1.fc.bias"]
    assert torch.equal(model[1].layer4[2].conv3.weight, net.layer4[2].conv3.weight)
    # Those of before 2018 have no counts of batches.
    old = {name: t for name, t in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    fresh = make(name="resnet50", width=1.0)
    assert load_pretrained(fresh, tmp_path / "old.pth", named(10)) == ["1.fc.weight", "1.fc.bias"]


def test_what_is_no_such_net_is_refused_and_changes_nothing(tmp_path):
    model = make()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    torch.save(make(width=0.2)[1].state_dict(), tmp_path / "wide.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    torch.save({0: torch.ones(1)}, tmp_path / "numbered.pth")
    torch.save({**make()[1].state_dict(), 0: torch.ones(1)}, tmp_path / "half-numbered.pth")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("x")
    (tmp_path / "text.pt").write_text("x")
    for name, told in {
        "wide.pth": r"does not fit this model: stem.weight is \(13, 3, 3, 3\) there and \(6, 3, 3, 3\) here",
        "other.pth": "does not fit this model: .* missing, a unknown",
        "numbered.pth": "expected a state dictionary",
        "half-numbered.pth": "expected a state dictionary",
        "list.pth": "expected a state dictionary",
        "text.pth": "not a file of weights",
        "text.pt": "not an hpcdat checkpoint",
        "none.pth": "no such file",
        "none.pt": "no such checkpoint",
    }.items():
        with pytest.raises(InputError, match=told):
            load_pretrained(model, tmp_path / name, named(10))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
