"""FLOPs of a training: the counted passes and the formula of a step, against shapes and whole steps."""

import dataclasses

import pytest
import torch
from torch import nn

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import Stopped
from hpcdat.models import build_model, build_model_for
from hpcdat.storage.checkpoint_format import load_checkpoint, save_checkpoint
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.flops import PassFlops, TrainingFlops, count_passes, flops_of, flops_per_image
from hpcdat.training.step import Algorithm1
from tests.conftest import CHECKOUT, DEMO, Never
from tests.training.network_steps import algorithm_of, images
from tests.training.test_resume import AfterPolls, quick

NETWORKS = [
    ("digits-cnn", 8, 1.0),
    ("preact-resnet18", 16, 0.25),
    ("wide-resnet28-10", 16, 0.1),
    ("resnet50", 32, 1.0),
]
OWN = "tests.own_networks"


def model_of(name, width=1.0):
    given = {"channels": 3, "num_classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3, "seed": 0}
    return build_model(name, width=width, **given)


def from_shapes(model, size):
    """FLOPs of an image in a forward pass, and in its first layer, from the shapes of weights and outputs."""
    found = []

    def count(layer, _, output):
        # Of each output a product and a sum for every weight that leads to it.
        found.append(2 * output.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    return sum(found), found[0]


@pytest.mark.parametrize("name, size, width", NETWORKS)
def test_the_passes_of_the_packages_networks_follow_from_the_shapes_of_their_layers(name, size, width):
    model = model_of(name, width)
    passes = count_passes(model, (3, size, size))
    forward, first = from_shapes(model, size)
    assert passes == (forward, 2 * forward, 3 * forward - first)
    # The rule of thumb for published results: 2 f for a step of the attack, 3 f for an update.
    assert 2 * passes.attack + passes.update == pytest.approx(7 * forward, rel=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        ["method=plain"],
        ["method=dat-pgd", "attack.steps=3"],
        ["method=dat-pgd", "attack.steps=3", "attack.fold_batch_norm=false"],
        ["method=dat-fgsm"],
        ["method=dat-fgsm", "attack.name=n-fgsm", "objective.lambda=0.5"],
        ["method=dat-pgd", "attack.steps=2", "virtual_workers=2"],
        ["method=dat-pgd", "attack.steps=2", "objective.regulariser=trades"],
        ["method=dat-pgd", "attack.steps=2", "objective.regulariser=trades", "objective.beta=0"],
        ["method=dat-pgd", "attack.steps=2", "smoothing={sigma: 0.1, copies: 3}"],
        ["method=dat-fgsm", "model.precision=bfloat16"],
        ["method=disadv"],
        ["method=dat-fgsm", f"model.name={OWN}:Odd"],
        ["method=dat-fgsm", f"model.name={OWN}:Attention"],
        ["method=dat-fgsm", f"model.name={OWN}:frozen_backbone"],
    ],
    ids=" ".join,
)
def test_the_formula_of_a_step_is_what_torch_counts_in_it(settings):
    attack = [] if any("steps" in one for one in settings) else ["attack.steps=1"]
    job = read_job(DEMO, [*attack, *settings])
    algorithm = algorithm_of(job, SingleProcess())
    read = {number: images(job, 4 * number, 4) for number in algorithm.role.reads}
    step = Batch(0, 0, 4 * len(read), read)
    per_image = TrainingFlops(job, algorithm.model).of_image(8)
    assert flops_of(lambda: algorithm.step(step, None)) == per_image * 4 * len(read) > 0
    algorithm.exchange.close()


def test_concurrent_attacks_take_what_others_take():
    job = read_job(DEMO, ["method=conadv", "attack.steps=1"])
    algorithm = algorithm_of(job, SingleProcess())
    first, second = (Batch(0, step, 4, {0: images(job, 4 * step, 4)}) for step in (0, 1))
    algorithm.adversary.begin_epoch([first])
    counted = flops_of(lambda: algorithm.step(first, second))
    assert counted == 4 * TrainingFlops(job, algorithm.model).of_image(8)
    algorithm.exchange.close()


def test_the_copies_of_an_image_are_counted_whichever_workers_have_them():
    shared, alone = (
        read_job(DEMO, ["method=dat-pgd", f"smoothing={{sigma: 0.1, copies: 4, workers: {workers}}}"])
        for workers in (2, 1)
    )
    passes = PassFlops(10, 20, 29)
    assert flops_per_image(shared, passes) == flops_per_image(alone, passes) == 4 * (10 * 20 + 29)


def test_attention_is_counted_alike_whatever_kernel_would_compute_it():
    class Fused(nn.Module):
        def __init__(self, explicit):
            super().__init__()
            self.project, self.explicit = nn.Linear(64, 4 * 16), explicit

        def forward(self, x):
            q = self.project(x.flatten(1)).view(-1, 1, 4, 16)
            if self.explicit:
                return ((q @ q.transpose(2, 3) / 4).softmax(-1) @ q).flatten(1)
            return nn.functional.scaled_dot_product_attention(q, q, q).flatten(1)

    fused, explicit = (count_passes(Fused(one), (1, 8, 8)) for one in (False, True))
    linear, attention = 2 * 64 * 64, 2 * 2 * 4 * 4 * 16
    # Both factors of a product of activations need a gradient; of the projection, only one in each pass.
    assert fused == explicit == (linear + attention, 2 * linear + 3 * attention, 2 * linear + 3 * attention)


def test_counting_leaves_no_trace():
    model = build_model_for(read_job(DEMO, []), 10).train()
    arrived = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(arrived.append)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    count_passes(model, (1, 8, 8))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not arrived
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_counted_is_not_a_number():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            raise RuntimeError("not in evaluation mode")

    counted = TrainingFlops(read_job(DEMO, []), Failing())
    assert counted.of_image(8) is None
    assert counted.remark == "the FLOPs of the training are not counted: not in evaluation mode"


def flops_of_epochs(job):
    return [line["flops"] for line in RunFolder(job.run_dir).metrics("epoch")]


def test_a_run_adds_up_its_epochs_and_goes_on_where_it_was_stopped(tmp_path):
    peace, stopped = (quick(tmp_path / name, "evaluation.every=1") for name in ("in peace", "stopped"))
    result = train(peace, SingleProcess(), Never())
    per_image = TrainingFlops(peace, build_model_for(peace, 10)).of_image(8)
    assert flops_of_epochs(peace) == [200 * per_image, 400 * per_image]
    assert result.flops == 400 * per_image
    for polls in (1, 4):
        with pytest.raises(Stopped):
            train(stopped, SingleProcess(), AfterPolls(polls))
    assert train(stopped, SingleProcess(), Never()).flops == result.flops
    assert flops_of_epochs(stopped) == flops_of_epochs(peace)


def test_the_weights_chosen_at_the_end_change_nothing_in_what_was_computed(tmp_path):
    job = quick(
        tmp_path / "run", "method=plain", "evaluation.every=1", "early_stopping.best_weights=true", "epochs=3"
    )
    result = train(job, SingleProcess(), Never())
    assert (
        result.flops
        == flops_of_epochs(job)[-1]
        == 600 * TrainingFlops(job, build_model_for(job, 10)).of_image(8)
    )


def test_skipped_steps_were_computed(tmp_path, monkeypatch):
    job = quick(tmp_path / "run", "epochs=1")
    step = Algorithm1.step

    def diverges(self, now, *others):
        outcome = step(self, now, *others)
        return dataclasses.replace(outcome, finite=now.step != 1)

    monkeypatch.setattr(Algorithm1, "step", diverges)
    result = train(job, SingleProcess(), Never())
    (line,) = RunFolder(job.run_dir).metrics("epoch")
    assert (line["images"], line["skipped_steps"]) == (150, 1)
    assert result.flops == 200 * TrainingFlops(job, build_model_for(job, 10)).of_image(8)


def test_a_run_of_a_version_that_did_not_count_is_not_counted_from_its_middle_on(tmp_path):
    job = quick(tmp_path / "run")
    with pytest.raises(Stopped):
        train(job, SingleProcess(), AfterPolls(1))
    file = RunFolder(job.run_dir).checkpoints.step_file
    kept = load_checkpoint(file)
    assert kept.flops == 2 * 50 * TrainingFlops(job, build_model_for(job, 10)).of_image(8)
    save_checkpoint(file, dataclasses.replace(kept, flops=None))
    assert train(job, SingleProcess(), Never()).flops is None
    assert flops_of_epochs(job) == [None, None]


def test_the_published_trainings_have_the_pflop_of_the_formula():
    text = (CHECKOUT / "docs" / "papers" / "robustness-per-flop.md").read_text()
    table = text.partition("<!-- published -->")[2].partition("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    forward = count_passes(model_of("preact-resnet18"), (3, 32, 32)).forward
    assert len(rows) == 9 and f"{forward / 1e9:.3f} GFLOP" in text
    for method, parts, passes, epochs, count, pflop, *_ in rows:
        computed = int(passes) * forward * int(epochs) * int(count.replace(",", ""))
        assert pflop == f"{computed / 1e15:.1f}", method
        if "+" in parts:
            assert sum(map(int, parts.rpartition(":")[2].split("+"))) == int(passes), method
