"""The fast bound beside RA and AA on trained networks."""

import pytest
import torch
from torch import nn

from hpcdat.commands.evaluate import evaluate
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.evaluation.autoattack import AutoAttack
from hpcdat.evaluation.fast_bound import CANDIDATES, STARTS, STEPS, TARGETS, FastBound
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation.results import Results, read_evaluations
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, Never
from tests.evaluation.conftest import Calls
from tests.evaluation.test_autoattack import batch


@pytest.fixture
def of_some(run_dir):
    """The result of an evaluation of 20 test images, with the settings of its evaluation file."""

    def measure(*settings, **requested):
        few = ["data.test_images=20", "evaluation.batch_size=12", "evaluation.steps=5", *settings]
        result = evaluate(run_dir, few, EvaluationRequest(**requested), SingleProcess(), Never())
        (last,) = result.others
        (stored,) = [
            one
            for one in read_evaluations(RunFolder(run_dir).evaluation_file)
            if tuple(one["changed"]) == last.changed
        ]
        return last, stored["sections"], RunFolder(run_dir).table_file.read_text()

    return measure


@pytest.mark.parametrize("norm, eps", [("linf", 0.2), ("l2", 1.0)])
def test_its_stages_only_break_images(load, norm, eps):
    loaded, images = load()
    x, y = batch(loaded, images)
    found = FastBound(eps, norm, 7).measure(loaded.model, x, y, 3)
    again = FastBound(eps, norm, 7).measure(loaded.model, x, y, 3, folded=None)
    correct, targeted, robust = found.columns.values()
    assert list(found.columns) == ["correct", "targeted", "robust"]
    assert (targeted <= correct).all() and (robust <= targeted).all()
    assert 0 < robust.sum() < correct.sum() <= 40
    assert found.to_json() == again.to_json()


def test_the_network_as_it_is_gives_the_verdicts(load):
    """A network that is attacked in its place and calls everything broken at once breaks nothing."""
    loaded, images = load()
    x, y = batch(loaded, images)

    class Wrong(nn.Module):
        def forward(self, x):
            return (x.flatten(1) * 0).sum(1, keepdim=True) + nn.functional.one_hot((y[: len(x)] + 1) % 10, 10)

    found = FastBound(1e-6, "linf", 0).measure(loaded.model, x, y, 0, folded=Wrong())
    assert found.count("robust") == found.count("correct")


def test_few_classes_have_fewer_targets(generator):
    torch.manual_seed(0)
    model = Calls(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    x = torch.rand(5, 1, 4, 4, generator=generator)
    y = model(x).argmax(1)
    model.images = 0
    assert FastBound(1e-6, "linf", 0).measure(model, x, y, 0).count("robust") == 5
    assert model.images == 5 * (2 + (1 + STARTS) * (STEPS + 1))


def test_a_class_that_is_reached_only_when_it_is_the_target(generator):
    """Its clean logit is the smallest, and those above it do not depend on the image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
    with torch.no_grad():
        model[1].weight.zero_()[5] = 1.0
        model[1].bias.copy_(torch.tensor([0.0, -0.1, -0.1, -0.1, -0.1, -9.0]))
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    assert FastBound(0.05, "linf", 0).measure(model, x, y, 0).count("robust") == 4
    assert FastBound(0.07, "linf", 0).measure(model, x, y, 0).count("targeted") == 0


def test_it_stands_in_file_and_table_and_is_not_called_aa(of_some):
    result, sections, table = of_some(fast_bound=True)
    section = sections["fast-bound"]
    assert section["robust"] == result.fast_bound <= section["targeted"] <= section["correct"] == result.ta
    assert section["attack"] == {
        **{"norm": "linf", "eps": 0.2, "steps": STEPS, "relaxation": 2.0},
        **{"candidates": CANDIDATES, "targets": TARGETS, "starts": STARTS},
    }
    assert result.aa is None and section["warnings"] == []
    header, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    place = [cell.strip() for cell in header.split("|")].index("Fast bound (%)")
    assert f"{100 * result.fast_bound:.2f} [" in rows[-1].split("|")[place] and "AA (%)" not in header
    assert "Fast bound: share that withstands a margin attack" in table


def test_it_is_kept_while_weights_and_ball_are_the_same(of_some):
    bound = of_some(fast_bound=True)[0].fast_bound
    assert bound is not None and of_some()[0].fast_bound == bound


def test_that_of_another_ball_is_not_taken():
    settings = read_job(DEMO, ["evaluation.eps=0.2"]).evaluation
    section = {"robust": 0.5, "attack": {"norm": "linf", "eps": 0.2}}
    found = Results({}, Accuracy(20, 18, 10), {"fast-bound": section})
    assert found.fast_bound(settings, "linf") == 0.5 and found.fast_bound(settings, "l2") is None
    assert found.fast_bound(settings.model_copy(update={"eps": 0.1}), "linf") is None


def test_a_radius_of_0_is_refused(run_dir):
    with pytest.raises(InputError, match=r"evaluation\.fast_bound: evaluation\.eps must be above 0"):
        evaluate(
            *(run_dir, ["evaluation.eps=0", "data.test_images=10"]),
            *(EvaluationRequest(fast_bound=True), SingleProcess(), Never()),
        )


@pytest.mark.full
def test_it_is_near_aa_for_a_twentieth_of_the_forward_passes(load):
    loaded, images = load()
    x, y = batch(loaded, images)
    models = Calls(loaded.model), Calls(loaded.model)
    bound = FastBound(0.2, "linf", 0).measure(models[0], x, y, 0)
    aa = AutoAttack(0.2, "linf", 10, 0).measure(models[1], x, y, 0)
    assert 0 < aa.count("square") < aa.count("correct")
    assert abs(bound.count("robust") - aa.count("square")) <= 1
    assert models[0].images * 20 <= models[1].images
