"""The network of a run in a file of its own, and the model card beside it."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml

from hpcdat import models
from hpcdat.commands import export as exporting
from hpcdat.config.job_file import read_job, write_job
from hpcdat.errors import InputError
from hpcdat.models import build_model_for
from hpcdat.models.fingerprint import fingerprint
from hpcdat.storage.checkpoint_format import Checkpoint, save_checkpoint
from hpcdat.storage.evaluated import Evaluated
from hpcdat.storage.run_folder import Result, RunFolder
from hpcdat.training.pretrained import load_pretrained
from tests.conftest import DEMO, run_here

SHUFFLENET = "torchvision:shufflenet_v2_x0_5"
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
OWN = """
import torch

class Net(torch.nn.Module):
    def __init__(self, num_classes, in_channels, width):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, width, 3)
        self.norm = torch.nn.BatchNorm2d(width)
        self.first, self.second = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.head = torch.nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.second(self.first(self.norm(self.conv(x)).mean((2, 3)).relu())))
"""
"""A user's module; two of its layers share a weight."""
CLASSES = ["cat", "dog", 'a "b" |\n`c`']


def finished_run(path, settings, classes=CLASSES, *, finished=True):
    """The folder of a run that looks as if it was trained, and its model.

    Args:
        settings: of its job, in addition to the demo's.
    """
    colour = ["data.channels=3", "data.image_size=32", "model.mean=[0.4,0.5,0.6]", "model.std=[0.2,0.3,0.4]"]
    job = read_job(DEMO, [f"run_dir={path}", "device=cpu", *colour, *settings])
    model = build_model_for(job, len(classes))
    generator = torch.Generator().manual_seed(1)
    for tensor in model[1].state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=generator).abs())
    folder = RunFolder(path)
    folder.checkpoints.folder.mkdir(parents=True)
    folder.job_file.write_text(write_job(job))
    worker = {"device": "a CPU", "cpus": 2, "host": "secret-host"}
    environment = {"python": "3.11", "packages": {"torch": "2.11"}, "nodes": 1, "workers": [worker, worker]}
    folder.environment_file.write_text(json.dumps({**environment, "git_commit": "abc"}))
    folder.log(event="epoch", epoch=29, images=1400)
    if finished:
        folder.log(event="finished")
    checkpoint = {"optimizer": {}, "epoch": 30, "step": 0, "workers": 2, "classes": classes, "images": 1400}
    save_checkpoint(folder.checkpoints.epoch_file, Checkpoint(model=model.state_dict(), **checkpoint))
    row = {"images": 397, "ta": 0.9, "ra": 0.5, "attack": "PGD-20, linf, eps 0.2", "epoch": 30}
    own = {**row, "weights": fingerprint(model), "aa": 0.25, "aa_images": 100, "aa_ta": 0.91, "aa_ra": 0.51}
    own["fast_bound"] = 0.28
    other = Evaluated(**{**row, "ra": 0.3, "attack": "PGD-100, linf, eps 0.2", "weights": fingerprint(model)})
    old = replace(other, ta=0.1234, weights="other")
    training = {
        "method": job.method,
        "seed": 7,
        "p": 1,
        "q": 2,
        "batches": 2,
        "batch": 50,
        "exchange": "ring",
    }
    times = {"communication": 0.1, "total": 1.0, "megabytes": 1.0}
    result = Result(**own, **training, **times, others=(old, other))
    folder.result_file.write_text(json.dumps(asdict(result)))
    return model.eval()


def settings_of(kind, tmp_path):
    """The settings of a run with a network of torchvision, timm or the user's."""
    if kind == "own":
        # A process imports a module of one name once.
        module = f"net_of_{tmp_path.name}"
        (tmp_path / f"{module}.py").write_text(OWN)
        return [f"module_path=['{tmp_path}']", f"model.name={module}:Net", "model.options={width: 5}"]
    if kind == "timm":
        return ["model.name=timm:vit_tiny_patch16_224", f"model.options={json.dumps(VIT)}"]
    grey = ["data.channels=1", "model.mean=[0.4]", "model.std=[0.2]"]
    return [f"model.name={SHUFFLENET}", *(grey if kind == "grey" else [])]


def card_code(card):
    """The Python of a card that loads the file."""
    return re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL).group(1)


def expected_logits(model, size):
    """Normalised images, and the logits of a run's model for their pixels."""
    pixels = torch.rand(4, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model[0](pixels), model(pixels)


LOAD = """
import sys
sys.modules["hpcdat"] = None
sys.path.append(sys.argv[1])
import torch
images = torch.load("images.pt")
for name in sys.argv[2:]:
    found = {}
    exec(open(name + ".py").read(), found)
    if "session" in found:
        logits = torch.from_numpy(found["session"].run(None, {"images": images.numpy()})[0])
    else:
        with torch.no_grad():
            logits = found["model"](images)
    torch.save(logits, name + ".pt")
assert not [name for name in sys.modules if name.startswith("hpcdat.")]
"""
"""Loads files as their cards say; an import of hpcdat fails, wherever it is installed."""


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["torchvision", "grey", "timm", "own"])
def test_exports_are_loaded_without_hpcdat_as_their_cards_say_with_the_same_logits(tmp_path, kind):
    model = finished_run(tmp_path / "run", settings_of(kind, tmp_path))
    names = ["safetensors", "pth", "onnx"]
    for name in names:
        exporting.export(tmp_path / "run", tmp_path / f"as_{name}.{name}")
        (tmp_path / f"{name}.py").write_text(card_code(tmp_path / f"as_{name}.md"))
    images, expected = expected_logits(model, (model[0].mean.numel(), 32, 32))
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, "-I", "-c", LOAD, str(tmp_path), *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for name in names:
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.pt"), expected, rtol=1e-6, atol=1e-6)


def test_the_cards_code_loads_an_export_with_the_same_logits(tmp_path, monkeypatch):
    model = finished_run(tmp_path / "run", settings_of("grey", tmp_path))
    exporting.export(tmp_path / "run", tmp_path / "network.safetensors")
    images, expected = expected_logits(model, (1, 32, 32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hpcdat", None)
    names = {}
    exec(card_code(tmp_path / "network.md"), names)
    with torch.no_grad():
        torch.testing.assert_close(names["model"](images), expected, rtol=1e-6, atol=1e-6)


def test_onnx_takes_pixels_if_asked_in_batches_of_any_size(tmp_path):
    import onnxruntime

    model = finished_run(tmp_path / "run", ["model.name=digits-cnn", "data.image_size=8"])
    exporting.export(tmp_path / "run", tmp_path / "a.onnx", from_pixels=True)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [each.shape for each in session.get_inputs()] == [["batch", 3, 8, 8]]
    pixels = torch.rand(7, 3, 8, 8)
    with torch.no_grad():
        logits = torch.from_numpy(session.run(None, {"images": pixels.numpy()})[0])
        torch.testing.assert_close(logits, model(pixels), rtol=1e-5, atol=1e-5)
    described = json.loads(session.get_modelmeta().custom_metadata_map["hpcdat"])
    assert described == {"classes": CLASSES, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    assert "float32, pixels in [0, 1]" in (tmp_path / "a.md").read_text()


def test_of_split_batch_norm_the_layers_for_clean_images_are_written(tmp_path):
    model = finished_run(
        tmp_path / "run", ["method=conadv", "attack.steps=1", "model.name=preact-resnet18", "model.width=0.1"]
    )
    exporting.export(tmp_path / "run", tmp_path / "a.safetensors")
    state = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert not [name for name in state if "main" in name or "auxiliary" in name or name.startswith("1.")]
    plain = models.MODELS["preact-resnet18"](3, 3, width=0.1)
    plain.load_state_dict(state)
    images, expected = expected_logits(model, (3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(state["norm.weight"], model[1].norm.main.weight)
    assert not torch.equal(state["norm.weight"], model[1].norm.auxiliary.weight)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_pretrained_reads_an_export_unchanged(tmp_path, suffix):
    settings = settings_of("own", tmp_path)
    model = finished_run(tmp_path / "run", settings)
    out = tmp_path / f"a{suffix}"
    exporting.export(tmp_path / "run", out)
    read = torch.load(out, weights_only=True) if suffix == ".pth" else safetensors.torch.load_file(out)
    # A strict load needs both names of a shared weight.
    assert {"first.weight", "second.weight"} <= read.keys()
    again = build_model_for(read_job(RunFolder(tmp_path / "run").job_file, ["seed=5"]), 3)
    loaded = load_pretrained(again, out, CLASSES)
    assert (loaded.fresh, loaded.remarks) == ([], [])
    assert loaded.assumed == ([] if suffix == ".safetensors" else CLASSES)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


def test_the_card_has_the_accuracies_of_these_weights_and_metadata_that_the_hub_reads(tmp_path):
    data = ["data.source=own:load", f"data.options={{file: '{tmp_path}/a.h5', size: 8}}"]
    start = f"model.pretrained={tmp_path}/start.pth"
    finished_run(tmp_path / "run", ["model.name=digits-cnn", start, *data])
    out = tmp_path / "robust.safetensors"
    exporting.export(tmp_path / "run", out, license_id="apache-2.0")
    text = (tmp_path / "robust.md").read_text()
    data = huggingface_hub.ModelCard(text).data
    assert data.license == "apache-2.0" and {"adversarial-robustness", "linf"} <= set(data.tags)
    values = [(one.metric_type, one.metric_value, one.metric_args["images"]) for one in data.eval_results]
    assert values == [
        *[("accuracy", 90.0, 397), ("robust_accuracy", 50.0, 397), ("robust_accuracy", 25.0, 100)],
        ("robust_accuracy", 28.0, 397),
        *[("accuracy", 90.0, 397), ("robust_accuracy", 30.0, 397)],
    ]
    attacked = "Robust accuracy (AA): AutoAttack's standard version, in the ball of PGD-20, linf, eps 0.2"
    assert data.eval_results[2].metric_name == attacked
    assert data.eval_results[2].metric_args["interval"] == [17.55, 34.3]
    assert data.eval_results[3].metric_name.startswith(
        "Robust accuracy (fast bound): margin attack, in the ball"
    )
    assert "| Fast bound (%)" in text and "28.00 [23.8, 32.6]" in text
    assert "12.34" not in text, "an evaluation of other weights"
    for private in ("secret-host", str(tmp_path)):
        assert private not in text
    assert f"classes = {CLASSES}" in text and "mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]" in text
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    assert settings["attack.eps"] == 0.2 and settings["model.pretrained"] == "start.pth"
    assert settings["data.options"] == {"file": "a.h5", "size": 8}
    assert "Needs hpcdat" in text and "| initial weights       | start.pth" in text


def test_the_cards_recipe_has_what_changes_the_images_and_the_cost(tmp_path):
    attack = ["method=dat-fgsm", "attack.name=n-fgsm", "attack.steps=1"]
    data = ["data.mixing=cutmix", "data.source=huggingface", "data.hub=somebody/birds"]
    finished_run(tmp_path / "run", ["model.name=digits-cnn", "objective.regulariser=trades", *attack, *data])
    exporting.export(tmp_path / "run", tmp_path / "a.pth")
    text = (tmp_path / "a.md").read_text()
    recipe = dict(re.findall(r"^\| (\S.*?) +\| (.*?) +\|$", text, re.MULTILINE))
    assert recipe["attack in training"] == "n-fgsm, 1 step, linf, eps 0.2"
    assert (recipe["objective"], recipe["augmentation"]) == ("TRADES, beta 6", "cutmix")
    assert "classes of somebody/birds, trained with dat-fgsm" in text


def test_averaged_weights_are_written_if_asked(tmp_path):
    model = finished_run(tmp_path / "run", ["model.name=digits-cnn", "averaging.ema=0.9"])
    checkpoints = RunFolder(tmp_path / "run").checkpoints
    stored = checkpoints.newest(print)
    average = {name: t + 1 if t.is_floating_point() else t for name, t in stored.model.items()}
    save_checkpoint(checkpoints.epoch_file, replace(stored, averaged=average))
    for averaged, state in [(False, model.state_dict()), (True, average)]:
        exporting.export(tmp_path / "run", tmp_path / "a.pth", averaged=averaged, overwrite=True)
        written = torch.load(tmp_path / "a.pth", weights_only=True)
        assert all(torch.equal(t, state[f"1.{name}"]) for name, t in written.items())
        text = (tmp_path / "a.md").read_text()
        assert ("; averaged weights." in text) == ("Not measured with these weights." in text) == averaged
        assert "| averaged weights      | EMA, 0.9" in text


def test_wrong_input_is_refused_in_one_line_and_writes_nothing(tmp_path):
    run, stopped, out = tmp_path / "run", tmp_path / "stopped", tmp_path / "a.pth"
    finished_run(run, ["model.name=digits-cnn"])
    finished_run(stopped, ["model.name=digits-cnn"], finished=False)
    (tmp_path / "taken.pth").write_text("mine")
    (tmp_path / "card.md").write_text("mine")
    for arguments, expected in [
        ((run, tmp_path / "a.pt"), "a.pt: expected a file name that ends in .safetensors, .pth, .onnx"),
        ((run, tmp_path / "no" / "a.pth"), "cannot be written (No such file or directory)"),
        ((run, tmp_path / "taken.pth"), "taken.pth: exists: choose another name"),
        ((run, tmp_path / "card.pth"), "card.md: exists: choose another name"),
        ((run, out, "--from-pixels"), "--from-pixels: only with .onnx"),
        ((run, out, "--averaged"), "the run averaged no weights: train with averaging.ema"),
        ((tmp_path, out), "is not the folder of a run"),
        ((stopped, out), "the training has not ended: epoch 29 of 30 is done; `hpcdat train"),
    ]:
        done = run_here("export", *arguments)
        assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr
    RunFolder(run).checkpoints.epoch_file.unlink()
    done = run_here("export", run, out)
    assert done.returncode == 2 and "there is no checkpoint" in done.stderr
    assert (tmp_path / "taken.pth").read_text() == (tmp_path / "card.md").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["card.md", "run", "stopped", "taken.pth"]


def test_an_existing_file_is_replaced_only_if_asked_and_a_full_disk_leaves_it(tmp_path, monkeypatch):
    finished_run(tmp_path / "run", ["model.name=digits-cnn"])
    out = tmp_path / "a.safetensors"
    assert run_here("export", tmp_path / "run", out).returncode == 0
    done = run_here("export", tmp_path / "run", out, "--overwrite")
    assert done.returncode == 0 and done.stdout == f"written: {out}\nwritten: {tmp_path / 'a.md'}\n"
    before = out.read_bytes()

    def full(path, write):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(exporting, "write_atomically", full)
    with pytest.raises(InputError, match=r"a.safetensors: cannot be written \(No space left on device\)"):
        exporting.export(tmp_path / "run", out, overwrite=True)
    assert out.read_bytes() == before


def test_a_network_that_onnx_cannot_express_is_refused_and_wrong_logits_are_found(tmp_path, monkeypatch):
    from hpcdat.commands import onnx_export

    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)

    with pytest.raises(InputError, match=r"^odd cannot be written as ONNX: .*: export it as .safetensors$"):
        onnx_export.to_onnx("odd", Odd(), (1, 2, 2), {})
    true = onnx_export._convert
    monkeypatch.setattr(
        onnx_export, "_convert", lambda network, x: true(torch.nn.Sequential(network, torch.nn.ReLU()), x)
    )
    with pytest.raises(
        InputError, match=r"^flat: as ONNX its logits differ from torch's by .*, by more than 0.0001"
    ):
        onnx_export.to_onnx("flat", torch.nn.Flatten(), (1, 2, 2), {})
