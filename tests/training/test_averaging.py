"""Averages of the weights: closed forms, resuming bit for bit, and which evaluation is of which weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hpcdat.commands.evaluate import evaluate
from hpcdat.commands.train import train
from hpcdat.config.averaging import Averaging
from hpcdat.config.job_file import JobError
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, Stopped, WorkerError
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation.results import read_evaluations
from hpcdat.storage.checkpoint_format import load_checkpoint
from hpcdat.storage.evaluated import AVERAGED
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.early_stopping import History
from hpcdat.training.replicas import check_equal
from hpcdat.training.step import Algorithm1
from hpcdat.training.validation import Validation
from hpcdat.training.weight_averages import AveragedWeights
from tests.conftest import Never
from tests.training.test_resume import AfterPolls, quick

KINDS = {"ema": ["averaging.ema=0.9"], "swa": ["averaging.swa_from=1"]}


class Tied(nn.Module):
    """Two names of one weight, a running statistic, a count, a constant and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight
        self.norm.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(0.1))


def trajectory(model, updates):
    """Change the model as often as asked, as an optimiser and batch norm would."""
    random = torch.Generator().manual_seed(1)
    for _ in range(updates):
        with torch.no_grad():
            for tensor in (model.first.weight, model.norm.weight, model.norm.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=random))
            model.norm.num_batches_tracked += 1
        yield model.first.weight.detach().double().numpy().copy()


def test_the_exponential_average_has_its_closed_form():
    """From the first update on, with the warm-up of the decay: in NumPy and float64."""
    model = Tied()
    averages = AveragedWeights(model, Averaging(ema=0.5))
    assert averages.state() is None
    expected = None
    for t, weights in enumerate(trajectory(model, 30)):
        averages.after_update()
        decay = min(0.5, (1 + t) / (10 + t))
        expected = weights if t == 0 else decay * expected + (1 - decay) * weights
    # The last ten have the decay itself.
    assert decay == 0.5
    state = averages.state()
    np.testing.assert_allclose(state["first.weight"].double().numpy(), expected, rtol=0, atol=1e-6)
    assert state["last.weight"] is state["first.weight"]
    assert state.keys() == model.state_dict().keys()
    assert state["norm.num_batches_tracked"] == 30
    assert torch.equal(state["norm.bias"], model.norm.bias) and torch.equal(state["scale"], model.scale)


def test_without_warm_up_it_is_torchs():
    """A decay below (1 + t) / (10 + t) from the second update on, t = 1."""
    model = Tied()
    averages = AveragedWeights(model, Averaging(ema=2 / 11))
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(2 / 11))
    for _ in trajectory(model, 8):
        averages.after_update()
        torchs.update_parameters(model)
    for name, tensor in torchs.module.named_parameters():
        assert torch.equal(tensor, averages.state()[name]), name


def test_running_statistics_have_the_share_of_their_epochs_updates():
    """Averaged at the ends of epochs only, where the workers agree: d^k of the old, 1 - d^k of the new."""
    model = Tied()
    averages = AveragedWeights(model, Averaging(ema=2 / 11))
    ends = []
    for t, _ in enumerate(trajectory(model, 9), start=1):
        averages.after_update()
        if t in (4, 6):
            averages.end_epoch(t)
            ends.append(model.norm.running_mean.double().numpy().copy())
    first = ends[0]
    second = (2 / 11) ** 2 * first + (1 - (2 / 11) ** 2) * ends[1]
    np.testing.assert_allclose(averages.tensors()["norm.running_mean"].numpy(), second, atol=1e-6)
    now = (2 / 11) ** 3 * second + (1 - (2 / 11) ** 3) * model.norm.running_mean.double().numpy()
    np.testing.assert_allclose(averages.state()["norm.running_mean"].numpy(), now, atol=1e-6)
    # Asking for the state changes nothing.
    np.testing.assert_allclose(averages.tensors()["norm.running_mean"].numpy(), second, atol=1e-6)


def test_swa_is_the_mean_of_the_epochs_weights_and_statistics():
    model = Tied()
    averages = AveragedWeights(model, Averaging(swa_from=3))
    weights, means = [], []
    for epoch, w in enumerate(trajectory(model, 6), start=1):
        averages.after_update()
        averages.end_epoch(epoch)
        assert (averages.state() is None) == (epoch < 3)
        if epoch >= 3:
            weights.append(w)
            means.append(model.norm.running_mean.double().numpy().copy())
    state = averages.state()
    np.testing.assert_allclose(state["first.weight"].double().numpy(), np.mean(weights, 0), atol=1e-6)
    np.testing.assert_allclose(state["norm.running_mean"].double().numpy(), np.mean(means, 0), atol=1e-6)


@pytest.mark.parametrize("settings", [Averaging(swa_from=1), Averaging(ema=2 / 11)])
def test_buffers_are_averaged_that_get_new_tensors(settings):
    """As at the end of an epoch, where workers average them, or in a pass of a network of the user's own."""
    model = Tied()
    averages = AveragedWeights(model, settings)
    values = (0.5, 0.2, 0.9)
    expected = None
    for epoch, value in enumerate(values, start=1):
        model.scale = torch.tensor(value)
        averages.after_update()
        averages.end_epoch(epoch)
        share = 1 / epoch if settings.swa_from else 1 - 2 / 11
        expected = value if expected is None else expected + share * (value - expected)
    assert averages.state()["scale"].item() == pytest.approx(expected, abs=1e-6)
    with averages.in_model():
        assert model.scale.item() == pytest.approx(expected, abs=1e-6)
    assert model.scale.item() == pytest.approx(0.9)


def test_the_model_holds_the_averages_only_inside_the_block():
    model = Tied()
    averages = AveragedWeights(model, Averaging(ema=0.9))
    for _ in trajectory(model, 5):
        averages.after_update()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = {name: t.clone() for name, t in averages.state().items()}
    with averages.in_model():
        assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not torch.equal(before["first.weight"], state["first.weight"])


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


CONADV = ["method=conadv", "optimizer.name=sgd"]


@pytest.mark.parametrize(
    "settings",
    [*KINDS.values(), [*KINDS["ema"], *CONADV], [*KINDS["ema"], "virtual_workers=2", "batch_size=25"]],
    ids=["ema", "swa", "ema, conadv", "ema, virtual workers"],
)
def test_averages_resume_bit_for_bit_in_the_middle_of_an_epoch(tmp_path, settings):
    peace, stopped = (quick(tmp_path / name, *settings) for name in ("in peace", "stopped"))
    train(peace, SingleProcess(), Never())
    for place in ("epoch 1, step 2", "epoch 2, step 0", "epoch 2, step 2"):
        with pytest.raises(Stopped, match=place):
            train(stopped, SingleProcess(), AfterPolls(1))
    train(stopped, SingleProcess(), Never())
    one, other = (RunFolder(job.run_dir).newest_checkpoint() for job in (peace, stopped))
    assert same(one.averaged, other.averaged) and same(one.model, other.model)
    assert one.averaging["updates"] == other.averaging["updates"] == (8 if "ema" in settings[0] else 2)
    results = [RunFolder(job.run_dir).read_result() for job in (peace, stopped)]
    assert results[0].others == results[1].others and len(results[0].others) == 1


def test_swa_of_a_run_is_the_mean_of_its_epochs_checkpoints(tmp_path):
    job = quick(tmp_path / "run", *KINDS["swa"])
    train(job, SingleProcess(), Never())
    kept = RunFolder(job.run_dir).checkpoints
    last, before = load_checkpoint(kept.epoch_file), load_checkpoint(kept.epoch_before_file)
    for name, tensor in last.averaged.items():
        if tensor.is_floating_point():
            mean = (last.model[name].double() + before.model[name].double()) / 2
            torch.testing.assert_close(tensor.double(), mean, rtol=0, atol=1e-6)
    assert same(before.averaged, before.model)


def test_skipped_steps_are_not_averaged(tmp_path, monkeypatch):
    gradient = Algorithm1.local_gradient

    def spoilt(algorithm, now, x_adv):
        cost = gradient(algorithm, now, x_adv)
        if now.step == 1:
            algorithm.parameters[0].grad.fill_(float("nan"))
        return cost

    monkeypatch.setattr(Algorithm1, "local_gradient", spoilt)
    job = quick(tmp_path / "run", *KINDS["ema"])
    train(job, SingleProcess(), Never())
    assert RunFolder(job.run_dir).newest_checkpoint().averaging["updates"] == 6


def test_workers_hold_equal_averages_and_a_difference_is_found(tmp_path):
    job = quick(tmp_path / "run", *KINDS["ema"], "batch_size=25", "data.corrupt=skip")

    def program(workers):
        train(job, workers, Never())
        return True

    assert run_threads(loopback(2), program) == [True, True]

    def differing(workers):
        check_equal(workers, nn.Flatten(), {"w": torch.full((2,), float(workers.rank))})

    with pytest.raises(WorkerError, match="averaged w differ"):
        run_threads(loopback(2), differing)


def accuracies(monkeypatch):
    """The weights' hash and whether they are averaged, of every evaluation at the end of a training."""
    measured, measure = [], Validation._measure

    def recorded(validation, images, *, averaged=False):
        accuracy = measure(validation, images, averaged=averaged)
        measured.append((averaged, accuracy.ta, accuracy.ra))
        return accuracy

    monkeypatch.setattr(Validation, "_measure", recorded)
    return measured


def test_the_result_says_which_weights_are_which(tmp_path, monkeypatch):
    measured = accuracies(monkeypatch)
    job = quick(tmp_path / "run", *KINDS["ema"], "evaluation.every=1")
    folder = RunFolder(job.run_dir)
    result = train(job, SingleProcess(), Never())
    (raw, averaged) = (next(one for one in reversed(measured) if one[0] == which) for which in (False, True))
    (other,) = result.others
    assert (result.ta, result.ra, result.changed) == (*raw[1:], ())
    assert (other.ta, other.ra, other.changed) == (*averaged[1:], (AVERAGED,))
    assert result.weights != other.weights and raw[1:] != averaged[1:]
    assert len(folder.metrics("evaluation")) == 2
    (line,) = folder.metrics("averaged-evaluation")
    assert (line["ta"], line["ra"], line["epoch"]) == (*averaged[1:], 2)
    assert folder.table_file.read_text().count("weights: averaged") == 1
    # The same numbers from the checkpoint, in any order, and both stay in the files.
    for request, expected in ((True, averaged), (False, raw), (True, averaged)):
        again = evaluate(job.run_dir, [], EvaluationRequest(averaged=request), SingleProcess(), Never())
        stored = {one.changed: (one.ta, one.ra) for one in (again, *again.others)}
        assert stored == {(): raw[1:], (AVERAGED,): averaged[1:]}
        found = {tuple(one["changed"]): one["sections"] for one in read_evaluations(folder.evaluation_file)}
        key = (AVERAGED,) if request else ()
        assert (found[key]["accuracy"]["ta"], found[key]["accuracy"]["ra"]) == expected[1:]
    assert found.keys() == {(), (AVERAGED,)}
    other_attack = evaluate(
        job.run_dir, ["evaluation.eps=0"], EvaluationRequest(averaged=True), SingleProcess(), Never()
    )
    assert other_attack.others[-1].changed[0] == AVERAGED and len(other_attack.others) == 2


def test_the_best_checkpoint_has_the_averages_of_its_epoch(tmp_path, monkeypatch):
    """Robust accuracy of the weights themselves decides; here it is made to be highest after epoch 1."""
    job = quick(
        tmp_path / "run", *KINDS["ema"], "evaluation.every=1", "early_stopping.best_weights=true", "epochs=3"
    )
    monkeypatch.setattr(History, "add", best_after_the_first(History.add))
    result = train(job, SingleProcess(), Never())
    best = RunFolder(job.run_dir).checkpoints.best()
    assert best.averaging["updates"] == 4 and result.epoch == 1
    assert [other.epoch for other in result.others] == [1]
    again = evaluate(job.run_dir, [], EvaluationRequest(averaged=True), SingleProcess(), Never())
    assert again.others[0].weights == result.others[0].weights


def best_after_the_first(add):
    return lambda history, epoch, accuracy: epoch == 1 and add(history, epoch, accuracy)


def test_the_guard_goes_back_to_the_averages_of_the_epoch_before(tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "has_overfitted", lambda validation: validation.state.epoch == 2)
    job = quick(tmp_path / "run", *KINDS["ema"], "method=dat-fgsm")
    result = train(job, SingleProcess(), Never())
    checkpoint = RunFolder(job.run_dir).newest_checkpoint()
    assert checkpoint.averaging["updates"] == 4 and result.others[0].epoch == 1
    again = evaluate(job.run_dir, [], EvaluationRequest(averaged=True), SingleProcess(), Never())
    assert again.others[0].weights == result.others[0].weights


def test_a_run_without_averages_has_none_to_evaluate(tmp_path):
    plain, late = quick(tmp_path / "plain"), quick(tmp_path / "late", "averaging.swa_from=2")
    for job in (plain, late):
        with pytest.raises(Stopped):
            train(job, SingleProcess(), AfterPolls(4))
    for job, why in ((plain, "the run averaged no weights"), (late, "averaging.swa_from is epoch 2")):
        with pytest.raises(InputError, match=why):
            evaluate(job.run_dir, [], EvaluationRequest(averaged=True), SingleProcess(), Never())
    assert train(plain, SingleProcess(), Never()).others == ()
    assert RunFolder(plain.run_dir).newest_checkpoint().averaged is None


@pytest.mark.parametrize(
    "settings, message",
    [
        (["averaging.ema=0.9", "averaging.swa_from=1"], "averaging.swa_from: expected one kind of average"),
        (["averaging.swa_from=3"], "averaging.swa_from: expected at most 2, the last epoch"),
        (["averaging.ema=1"], "averaging.ema: 1: expected less than 1"),
    ],
)
def test_averages_that_cannot_be_formed_are_refused(tmp_path, settings, message):
    with pytest.raises(JobError) as failure:
        quick(tmp_path / "run", *settings)
    assert message in str(failure.value)
