"""Smooth-AT with its noisy copies on one worker and spread over several."""

import pytest
import torch

from hpcdat.data.digits import write_digits
from tests.distributed.ranks import run_program

pytestmark = pytest.mark.distributed

SMOOTH = [
    *("smoothing.sigma=0.25", "smoothing.copies=4", "attack.norm=l2", "attack.eps=0.5", "attack.steps=3"),
    *("epochs=2", "schedule.decay_epochs=[1]", "data.train_images=90", "data.test_images=20"),
    *("evaluation.every=0", "evaluation.steps=1", "batch_size=20"),
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root)
    return root


def trained(folder, digits, transport, size, *settings):
    """Weights and costs of a net without batch norm, in float64."""
    settings = [*SMOOTH, *settings]
    answers = run_program(
        "training.train_small", transport, size, folder, 20, digits, folder / "run", *settings
    )
    assert all(answer["weights"] == answers[0]["weights"] for answer in answers)
    return answers[0]


@pytest.mark.parametrize("transport, sharing", [("Gloo", 4), ("MPI", 2)])
def test_copies_on_one_worker_equal_copies_over_four(tmp_path, digits, transport, sharing):
    """Four workers that share one batch, or, two and two, two; 90 images make a short last step."""
    spread = trained(tmp_path / "spread", digits, transport, 4, f"smoothing.workers={sharing}")
    alone = trained(tmp_path / "alone", digits, "none", 1, f"virtual_workers={4 // sharing}")
    for what in ("weights", "costs"):
        one, other = (torch.tensor(run[what], dtype=torch.float64) for run in (spread, alone))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
