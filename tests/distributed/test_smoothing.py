"""Smooth-AT with its noisy copies on one worker and spread over several."""

import pytest
import torch

from tests.distributed.rank import run_alone

pytestmark = pytest.mark.distributed

SMOOTH = [
    *(
        "data.last_batch=short",
        "smoothing.sigma=0.25",
        "smoothing.copies=4",
        "attack.norm=l2",
        "attack.eps=0.5",
        "attack.steps=3",
    ),
    *("epochs=2", "schedule.decay_epochs=[1]", "data.train_images=90", "data.test_images=20"),
    *("evaluation.every=0", "evaluation.steps=1", "batch_size=20"),
]


@pytest.mark.parametrize(
    "team, sharing",
    [
        pytest.param("Gloo 4 divisible", 4, marks=pytest.mark.full),
        pytest.param("torch 4", 2, marks=pytest.mark.full),
        ("MPI 4 divisible", 2),
    ],
    indirect=["team"],
)
def test_copies_on_one_worker_equal_copies_over_four(tmp_path, digits, team, sharing):
    """Four workers that share one batch, or, two and two, two; 90 images make a short last step.

    Weights and costs of a net without batch norm, in float64.
    """
    spread = team.run(
        "training.train_small", 20, digits, tmp_path / "spread", *SMOOTH, f"smoothing.workers={sharing}"
    )
    assert all(answer["weights"] == spread[0]["weights"] for answer in spread)
    virtual = f"virtual_workers={4 // sharing}"
    alone = run_alone("training.train_small", 20, digits, tmp_path / "alone", *SMOOTH, virtual)
    for what in ("weights", "costs"):
        one, other = (torch.tensor(run[what], dtype=torch.float64) for run in (spread[0], alone))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
