"""Measurements with folded batch norm: the same outcomes, by verdicts of the network as it is."""

import pytest
import torch
from torch import nn

from hpcdat.attacks.folding import fold
from hpcdat.commands.pseudo_label import Labelling
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.evaluation.accuracy import CheckedAccuracy, PgdAccuracy
from hpcdat.evaluation.autoattack import AutoAttack
from hpcdat.evaluation.certification.certifier import Sampling
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.sharded_runner import open_store, run_sharded
from hpcdat.evaluation.sweep import Sweep
from tests.conftest import DEMO
from tests.evaluation.conftest import Calls, execution

PLAIN = "evaluation.fold_batch_norm=false"


def short(autoattack):
    autoattack.settings["attacks"] = ["apgd-ce"]
    return autoattack


MEASUREMENTS = {
    "accuracy": lambda job: CheckedAccuracy(job.evaluation, "linf", job.seed),
    "sweep": lambda job: Sweep("eps", [0.1, 0.2], job.evaluation, "linf", job.seed, "accumulating"),
    "autoattack": lambda job: short(AutoAttack(0.2, "linf", 10, job.seed)),
    "certification": lambda job: Sampling(0.25, job.certification, 10, job.seed),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_outcomes_are_those_of_the_network_as_it_is(load, name):
    few = ["evaluation.steps=10", "certification.n0=10", "certification.n=200"]
    loaded, images = load(*few, images=20)
    found = []
    for job in (loaded.job, read_job_with(loaded.job, False)):
        batches = ImageBatches(images, job.data, 1 if name == "certification" else 20, torch.device("cpu"))
        outcomes = run_sharded(MEASUREMENTS[name](job), batches, loaded.model, job, execution())
        found.append([outcome.to_json() for outcome in outcomes.values()])
    assert found[0] == found[1]


def read_job_with(job, folds):
    evaluation = job.evaluation.model_copy(update={"fold_batch_norm": folds})
    return job.model_copy(update={"evaluation": evaluation})


def test_the_folded_network_is_attacked_and_the_network_as_it_is_decides(load):
    """Of 20 images it sees the clean ones, and the ends of the attacks on those that are correct."""
    loaded, images = load("evaluation.steps=7", images=20)
    job, (model, _, _) = loaded.job, loaded
    batches = ImageBatches(images, job.data, 20, torch.device("cpu"))
    ((x, y),) = batches.loader.read([batches.batches[0]], seed=0)
    plain, folded = Calls(model), Calls(fold(model, x).network.refreshed())
    outcome = PgdAccuracy(job.evaluation, "linf", job.seed).measure(plain, x, y, 0, folded=folded)
    correct = outcome.count("correct")
    assert (plain.images, folded.images) == (20 + correct, 7 * correct)


def test_a_wrong_folded_network_breaks_no_image(load):
    """It has other gradients and verdicts; those of the network count."""
    loaded, images = load("evaluation.steps=1", "evaluation.step_size=0", images=20)
    batches = ImageBatches(images, loaded.job.data, 20, torch.device("cpu"))
    ((x, y),) = batches.loader.read([batches.batches[0]], seed=0)
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    pgd = PgdAccuracy(loaded.job.evaluation.model_copy(update={"random_start": False}), "linf", 0)
    outcome = pgd.measure(loaded.model, x, y, 0, folded=wrong)
    assert outcome.count("robust") == outcome.count("correct") > 0


def test_stored_outcomes_of_folded_and_plain_networks_are_kept_apart(load, tmp_path):
    """Those of networks as they are have the key that they had before there was the setting."""
    loaded, images = load(images=20)
    batches = ImageBatches(images, loaded.job.data, 20, torch.device("cpu"))

    def key(measurement, folds):
        job = read_job_with(loaded.job, folds)
        return open_store(tmp_path, measurement, batches, loaded.model, job, SingleProcess()).key

    pgd = PgdAccuracy(loaded.job.evaluation, "linf", 0)
    assert key(pgd, True) == {**key(pgd, False), "fold_batch_norm": True}
    assert "fold_batch_norm" not in key(pgd, False)
    assert key(Labelling(), True) == key(Labelling(), False)


def test_the_setting_folds_unless_it_is_false():
    assert read_job(DEMO).evaluation.fold_batch_norm
    assert not read_job(DEMO, [PLAIN]).evaluation.fold_batch_norm
