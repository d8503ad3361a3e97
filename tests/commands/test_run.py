"""Commands on one worker."""

import pytest
import torch

from hpcdat.commands.certify import certify
from hpcdat.commands.evaluate import evaluate
from hpcdat.commands.pseudo_label import pseudo_label
from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.evaluation.attack_text import in_pixel_units
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, Never, python_threads


def test_trades_whose_divergence_weighs_nothing_is_plain_training(tmp_path):
    """Bit for bit, running statistics included: also the attack leaves no trace."""
    few = ["epochs=1", "schedule.decay_epochs=[]", "data.train_images=60", "data.test_images=10"]
    few += ["data.last_batch=short"]
    states = {}
    for name, own in {
        "plain": ["method=plain"],
        "beta = 0": ["attack.steps=1", "objective.regulariser=trades", "objective.beta=0"],
        "beta = 1": ["attack.steps=1", "objective.regulariser=trades", "objective.beta=1"],
    }.items():
        job = read_job(DEMO, [f"run_dir={tmp_path / name}", "evaluation.every=0", *few, *own])
        train(job, SingleProcess(), Never())
        states[name] = RunFolder(job.run_dir).newest_checkpoint().model
    plain, nothing, something = (
        torch.cat([t.flatten().double() for t in state.values()]) for state in states.values()
    )
    assert torch.equal(plain, nothing) and not torch.allclose(plain, something)


@pytest.mark.parametrize("eps, text", [(0.2, "0.2"), (8 / 255, "8/255"), (0.0123456, "0.01235")])
def test_radii_are_written_as_people_do(eps, text):
    assert in_pixel_units(eps) == text


@pytest.mark.parametrize(
    "use",
    [
        lambda run, settings, place: evaluate(run, settings, EvaluationRequest(), SingleProcess(), Never()),
        lambda run, settings, place: certify(run, settings, SingleProcess(), Never()),
        lambda run, settings, place: pseudo_label(
            run, place, place / "x.npz", settings, SingleProcess(), Never()
        ),
    ],
    ids=["evaluate", "certify", "pseudo-label"],
)
def test_settings_of_another_model_are_wrong_input(trained, tmp_path, use):
    with pytest.raises(InputError) as failure:
        use(trained, ["model.name=preact-resnet18", "model.width=0.1"], tmp_path)
    assert str(failure.value) == (
        f"{trained}: the settings describe another model than the one that was trained: "
        "do not change method, model and data.channels"
    )


def test_training_leaves_no_thread_that_holds_the_model(tmp_path):
    settings = ["epochs=1", "attack.steps=1", "evaluation.steps=1", "evaluation.every=0", "exchange.bits=8"]
    settings += ["data.train_images=100", "schedule.decay_epochs=[]", "exchange.protocol=allgather"]
    job = read_job(DEMO, [f"run_dir={tmp_path / 'run'}", *settings])
    before = python_threads()
    run_threads(loopback(2, node_of=[0, 1]), lambda workers: train(job, workers, Never()))
    started = python_threads() - before
    for thread in started:
        thread.join(10)
    assert not [thread.name for thread in started if thread.is_alive()]
