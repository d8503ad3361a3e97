"""Compiled or not, attack, cost, gradient and statistics are the same; only full batches are compiled.

Only the front end of torch.compile is used (aot_eager): inductor rounds differently and takes a minute.
"""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from hpcdat.attacks.pgd import PGD
from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.models import build_model, build_model_for
from hpcdat.models.compiled import Compiled
from hpcdat.models.losses import Labelled, clean_loss, local_cost
from hpcdat.models.split_batch_norm import split_batch_norm
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training import step
from tests.conftest import DEMO, Never


def step_of(called, model, x, y, batch_norm, branch):
    """Perturbed images, gradients and running statistics of one training step.

    Args:
        called: the model or its compiled wrapper.
        model: holds parameters and buffers.
        x, y: the batch.
        batch_norm, branch: of the attack.
    """
    called.train()
    model.zero_grad(set_to_none=True)
    x_adv = PGD(eps=0.1, step_size=0.05, steps=2, batch_norm=batch_norm, branch=branch)(
        called, partial(clean_loss, y=y), x, torch.Generator().manual_seed(0)
    )
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    local_cost(called, Labelled(x, y), Labelled(x_adv, y), weights=(0.5, 0.5)).total.backward()
    return x_adv, [p.grad.clone() for p in model.parameters()], list(model.buffers())


@pytest.mark.parametrize("split, precision", [(True, "float32"), (False, "bfloat16")])
def test_a_compiled_step_is_the_step(split, precision):
    torch.compiler.reset()
    models = []
    for _ in range(2):
        given = {"mean": [0.5], "std": [0.25], "precision": precision, "channels_last": True}
        models.append(build_model("digits-cnn", channels=1, num_classes=10, seed=0, **given))
        if split:
            split_batch_norm(models[-1])
    generator = torch.Generator().manual_seed(1)
    counter = CompileCounterWithBackend("aot_eager")
    compiled_model = Compiled(models[1], 8, counter)
    mode = ("train", "adversarial") if split else ("eval", "clean")
    for count in (8, 5, 8):
        x, y = torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count)
        plain = step_of(models[0], models[0], x, y, *mode)
        compiled = step_of(compiled_model, models[1], x, y, *mode)
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
    # Of the attack, and of training in each branch; nothing for the short batch or a second time.
    assert counter.frame_count == (3 if split else 2)


def test_a_run_is_trained_by_compiled_code_where_the_job_says_so(tmp_path, monkeypatch):
    """The digits, with a short last batch: the same weights but for rounding."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(step, "Compiled", partial(Compiled, backend=counter))
    short = ["epochs=1", "batch_size=300", "data.last_batch=short", "attack.steps=2"]
    short += ["evaluation.steps=1", "data.loader=device"]
    weights = []
    for compiled in ("false", "true"):
        settings = [*short, f"model.compiled={compiled}", f"run_dir={tmp_path / compiled}"]
        train(read_job(DEMO, settings), SingleProcess(), Never())
        weights.append(RunFolder(tmp_path / compiled).newest_checkpoint().model)
        assert counter.frame_count == (2 if compiled == "true" else 0)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_be_compiled_is_reported_in_a_line():
    torch.compiler.reset()
    model = build_model_for(read_job(DEMO, ["model.name=tests.own_networks:Branching"]), 10)
    with pytest.raises(
        InputError, match=r"cannot compile this network: .*: set model\.compiled: false"
    ) as caught:
        Compiled(model, 4, "aot_eager")(torch.rand(4, 1, 8, 8))
    assert "\n" not in str(caught.value)
    assert Compiled(model, 4, "aot_eager")(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_images_may_take_more_sizes_than_the_compiler_keeps_variants():
    torch.compiler.reset()
    model = build_model("digits-cnn", channels=1, num_classes=10, mean=[0.5], std=[0.25], seed=0).eval()
    counter = CompileCounterWithBackend("eager")
    compiled_model = Compiled(model, 2, counter)
    sizes = (*range(4, 13), 4)
    for size in sizes:
        x = torch.rand(2, 1, size, size)
        torch.testing.assert_close(compiled_model(x), model(x))
    assert counter.frame_count == len(sizes)
