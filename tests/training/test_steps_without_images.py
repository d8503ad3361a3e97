"""A step of which no image can be read is a step without images: it changes nothing, and the run ends."""

import pytest
import torch
from PIL import Image

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.models import build_model_for
from hpcdat.models.losses import Labelled
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO, Never


@pytest.fixture
def root(tmp_path):
    """Two classes of three training images, four of which cannot be read, and a test image each."""
    for name in "ab":
        for split in ("train", "test"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
        Image.new("L", (8, 8), 90).save(tmp_path / "set" / "test" / name / "0.png")
        Image.new("L", (8, 8), 60).save(tmp_path / "set" / "train" / name / "0.png")
        for number in (1, 2):
            (tmp_path / "set" / "train" / name / f"{number}.png").write_bytes(b"<html>404</html>")
    return tmp_path / "set"


def quick(root, *settings):
    small = ["epochs=2", "schedule.decay_epochs=[]", "batch_size=1", "attack.steps=1", "evaluation.steps=1"]
    small += ["data.source=folder", f"data.root={root}", "data.corrupt=skip"]
    return read_job(DEMO, [f"run_dir={root}/run", *small, *settings])


@pytest.mark.parametrize("loader, size", [("dali", 1), ("dali", 2), ("torchvision", 1)])
def test_a_run_with_such_steps_ends(root, loader, size):
    """With two workers, at least one of the three pairs of images cannot be read at all."""
    job = quick(root, f"data.loader={loader}", "data.threads=1")
    results = run_threads(loopback(size, timeout=60), lambda worker: train(job, worker, Never()))
    assert all(result.images == 2 and result.epoch == 2 for result in results)
    epochs = RunFolder(job.run_dir).metrics("epoch")
    assert [(e["images"], e["skipped_images"], e["skipped_steps"]) for e in epochs] == [(2, 4, 0)] * 2


def test_such_a_step_moves_neither_weights_nor_momentum_nor_statistics(generator):
    job = read_job(DEMO, ["attack.steps=1", "optimizer.weight_decay=0.1"])
    algorithm = Algorithm1(job, build_model_for(job, 10), job.exchange, SingleProcess(), torch.device("cpu"))
    some = Labelled(torch.rand(6, 1, 8, 8, generator=generator), torch.arange(6))
    none = Labelled(some.x[:0], some.y[:0])
    algorithm.model.train()
    first = algorithm.step(Batch(0, 0, 6, {0: some}), None)
    before = [tensor.clone() for tensor in algorithm.model.state_dict().values()]
    momentum = {
        name: value.clone()
        for name, value in next(iter(algorithm.optimizer.state.values())).items()
        if isinstance(value, torch.Tensor)
    }
    outcome = algorithm.step(Batch(0, 1, 6, {0: none}), None)
    assert first.images == 6 and (outcome.images, outcome.correct, outcome.cost) == (0, 0, 0)
    assert outcome.finite
    assert all(map(torch.equal, before, algorithm.model.state_dict().values()))
    after = next(iter(algorithm.optimizer.state.values()))
    assert momentum and all(torch.equal(value, after[name]) for name, value in momentum.items())


def test_an_epoch_of_which_no_image_can_be_read_ends_the_run(root):
    for file in (root / "train").rglob("0.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 6 images of epoch 1 can be read"):
        train(quick(root), SingleProcess(), Never())
