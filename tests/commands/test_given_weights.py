"""Given weights, evaluated from a job file: folders, resumption, reports, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from hpcdat.commands.evaluate import evaluate
from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.data.images import Images
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import WorkerError
from hpcdat.evaluation.outcome_store import OutcomeStore
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation.results import evaluate_robustness
from hpcdat.models import build_model
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, Never, run_here
from tests.evaluation.conftest import execution
from tests.evaluation.test_autoattack import Quick

JOB = """\
run_dir: {folder}/evaluation
data: {{source: digits, loader: device, image_size: 8, channels: 1}}
model: {{name: digits-cnn, mean: [{mean}], std: [{std}], pretrained: {folder}/theirs.pth}}
evaluation: {{eps: 0.2, batch_size: 50}}
"""
FEW = ["data.test_images=30", "evaluation.steps=2", "evaluation.batch_size=5"]


@pytest.fixture
def job(trained, tmp_path):
    """A job file for the weights of a run, saved as another program would save them."""
    run = RunFolder(trained)
    state = run.newest_checkpoint().model
    network = {key.removeprefix("1."): value for key, value in state.items() if key.startswith("1.")}
    torch.save({"state_dict": network}, tmp_path / "theirs.pth")
    model = run.read_job([]).model
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(folder=tmp_path, mean=model.mean[0], std=model.std[0]))
    return file


def test_the_weights_of_a_run_are_as_good_as_the_run_and_stand_beside_it_in_reports(job, trained):
    done = run_here("evaluate", job, "evaluation.batch_size=100")
    assert done.returncode == 0, done.stderr
    assert (
        "theirs.pth: 20 tensors (in 'state_dict'); the outputs are taken to be for the classes 0, 1, 2"
        in (done.stdout)
    )
    assert re.search(r"  images are normalised with mean [0-9.]+ and std [0-9.]+ \(model", done.stdout)
    folder, own = RunFolder(job.parent / "evaluation"), RunFolder(trained).read_result()
    result = folder.read_weights_result()
    assert (result.ta, result.ra, result.images, result.attack) == (own.ta, own.ra, own.images, own.attack)
    assert (result.file, result.data, result.epoch) == ("theirs.pth", "digits", None)
    assert "method" not in folder.job_file.read_text()
    row = f"| weights theirs.pth | - | - | - | {100 * own.ta:.2f} ["
    out = job.parent / "report"
    for text in (
        run_here("report", trained, folder.path).stdout,
        run_here("report", trained, folder.path, "--out", out).stdout,
        run_here("report", folder.path, "--out", out).stdout,
    ):
        cells = " ".join(text.split())
        assert row in cells and "| 397 (digits) | - | - | - | - |" in cells
        assert "Rows of weights: given ones" in cells
    assert "seconds per epoch" not in (out / "report.md").read_text(), "of no training"


def test_an_evaluation_that_was_killed_goes_on_with_other_workers(job, monkeypatch):
    whole = evaluate(job, FEW, EvaluationRequest(steps=(1, 3)), SingleProcess(), Never())
    first = job.parent / "evaluation"
    expected = {file.name: file.read_bytes() for file in (first / "evaluation").glob("*.jsonl")}
    append, written = OutcomeStore.append, []

    def append_and_fail(store, number, outcome, rank):
        if len(written) == 4:
            raise OSError("killed")
        append(store, number, outcome, rank)
        written.append(number)

    again = [*FEW, f"run_dir={job.parent}/again"]
    with monkeypatch.context() as patch:
        patch.setattr(OutcomeStore, "append", append_and_fail)
        with pytest.raises(WorkerError, match="killed"):
            evaluate(job, again, EvaluationRequest(steps=(1, 3)), SingleProcess(), Never())
    # The folder itself is enough to go on.
    results = run_threads(
        loopback(3, node_of=[0, 0, 1]),
        lambda workers: evaluate(job.parent / "again", [], EvaluationRequest(steps=(1, 3)), workers, Never()),
    )
    assert results == [whole] * 3
    files = (job.parent / "again" / "evaluation").glob("*.jsonl")
    assert {file.name: file.read_bytes() for file in files} == expected


def test_other_settings_are_rows_of_their_own_and_a_preset_is_named(job):
    few = ["data.test_images=30", "evaluation.steps=2"]
    for settings in (few, [*few, "evaluation.norm=l2"], [*few, "evaluation.norm=l2"]):
        assert run_here("evaluate", job, *settings).returncode == 0
    folder = RunFolder(job.parent / "evaluation")
    result = folder.read_weights_result()
    assert result.attack == "PGD-2, linf, eps 0.2" and not result.changed
    assert [other.conditions for other in result.others] == ["PGD-2, l2, eps 0.2"]
    assert [section["changed"] for section in json.loads(folder.evaluation_file.read_text())["others"]] == [
        ["evaluation.norm: l2"]
    ]


def test_a_folder_is_of_one_training_or_of_one_evaluation(job, run_dir):
    assert run_here("evaluate", job, *FEW).returncode == 0
    folder = job.parent / "evaluation"
    files = {file.name for file in folder.rglob("*")}
    for more in ([], ["--overwrite"]):
        done = run_here("train", DEMO, f"run_dir={folder}", *more)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "holds an evaluation of given weights, not a training run" in done.stderr
    done = run_here("train", folder / "job.yaml")
    assert done.returncode == 2 and "method: missing" in done.stderr
    assert {file.name for file in folder.rglob("*")} == files | {".lock"}
    for source in (job, run_dir / "job.yaml"):
        settings = [f"run_dir={run_dir}", f"model.pretrained={job.parent}/theirs.pth"]
        done = run_here("evaluate", source, *settings)
        assert done.returncode == 2 and f"`hpcdat evaluate {run_dir}`" in done.stderr
    weights = torch.load(job.parent / "theirs.pth", weights_only=True)
    weights["state_dict"]["classifier.bias"][0] += 1
    torch.save(weights, job.parent / "theirs.pth")
    done = run_here("evaluate", job, *FEW)
    assert done.returncode == 2 and "holds an evaluation of other weights" in done.stderr


def test_an_evaluation_that_was_moved_goes_on_where_it_is(job):
    assert run_here("evaluate", job, *FEW).returncode == 0
    moved = shutil.move(job.parent / "evaluation", job.parent / "moved")
    for source in (moved, moved / "job.yaml"):
        done = run_here("evaluate", source)
        assert done.returncode == 0 and "6 of 6 batches are already measured" in done.stdout, done.stderr
    assert not (job.parent / "evaluation").exists()


def test_given_weights_are_certified_and_label_images(job):
    few = ["--n", "20", "--n0", "5", "--sigma", "0.25", "data.test_images=6"]
    done = run_here("certify", job, *few, "evaluation.eps=null")
    assert done.returncode == 0, done.stderr
    assert f"written to {job.parent}/evaluation/certification" in done.stdout
    np.save(job.parent / "images.npy", np.zeros((7, 8, 8, 1), np.uint8))
    done = run_here("pseudo-label", job, job.parent / "images.npy", job.parent / "out.npz")
    assert done.returncode == 0 and "out.npz: 7 images: 0 " in done.stdout, done.stderr


@pytest.mark.parametrize(
    "settings, message",
    [
        (["model.pretrained=null"], "model.pretrained: missing: the file of the weights to evaluate"),
        (["model.pretrained=no.pth"], "model.pretrained: no.pth: there is no such file or folder"),
        (["model.pretrained=no.pth", "data.root=/nowhere", "data.source=folder"], "no.pth: there is no such"),
        (["model.pretrained=job.yaml/no.pth"], "job.yaml/no.pth: cannot be read: Not a directory"),
        (["evaluation.eps=null"], "evaluation.eps: missing: the radius of the attack"),
        (["model.name=resnet50"], "does not fit this model: it lacks"),
        (["epochs=1"], "epochs: not allowed without method"),
        (["data.root=/nowhere", "data.source=folder"], "/nowhere/test"),
        (["model.pretrained=two.pth"], "or has it for other classes than the 10 of the images"),
        (["model.pretrained=less.pth"], "it lacks the last layer (classifier.bias), or has it"),
        (["run_dir=."], "run_dir . contains files that are not an evaluation"),
    ],
)
def test_wrong_input_ends_in_one_sentence(job, monkeypatch, settings, message):
    monkeypatch.chdir(job.parent)
    weights = torch.load("theirs.pth", weights_only=True)["state_dict"]
    bias = weights.pop("classifier.bias")
    torch.save(weights, "less.pth")
    two = {"classifier.bias": bias[:2], "classifier.weight": weights["classifier.weight"][:2]}
    torch.save(weights | two, "two.pth")
    done = run_here("evaluate", "job.yaml", *settings)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert not (job.parent / "evaluation").exists()


def test_a_job_file_in_place_of_a_run_and_a_missing_one_are_explained(tmp_path):
    done = run_here("evaluate", DEMO)
    assert done.returncode == 2
    assert "To evaluate a run of this job, name its folder instead, such as runs/demo" in done.stderr
    for command in ("evaluate", "certify"):
        done = run_here(command, tmp_path / "nowhere")
        assert done.returncode == 2
        assert "nowhere is neither the folder of a run nor a job file: it does not exist" in done.stderr


@pytest.mark.parametrize("preset", ["none", "robustbench-linf"])
def test_under_a_preset_autoattack_takes_the_first_images_of_cifar(tmp_path, monkeypatch, preset):
    """Otherwise equally many of each class."""
    monkeypatch.setattr("pyautoattack.AutoAttack", Quick)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    labels = [0, 0, 0, *range(10), *range(7)]
    images = Images([str(number) for number in range(20)], labels, [*"abcdefghij"], pixels)
    job = EvaluationJob(
        run_dir=tmp_path,
        data={"source": "cifar10", "loader": "device", "image_size": 8},
        evaluation={"preset": preset, "eps": "8/255", "steps": 1},
    ).resolved()
    model = build_model(
        "preact-resnet18", channels=3, num_classes=10, mean=[0.5] * 3, std=[0.5] * 3, seed=0, width=0.1
    ).eval()
    request = EvaluationRequest(autoattack=3)
    results = evaluate_robustness(request, images, model, job, execution(), tmp_path)
    assert results.sections["autoattack"]["images"] == 3
    (file,) = tmp_path.glob("autoattack-*.jsonl")
    key = json.loads(file.read_text().splitlines()[0])
    first = images.subset(images.first(3)).signature
    assert (key["images"]["signature"] == first) == (preset != "none")
    assert key["images"]["signature"] in (first, images.equal_part(3).signature)
