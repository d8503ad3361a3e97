"""Smooth-AT with its noisy copies on one worker and spread over several."""

import pytest
import torch

from hpcdat.data.digits import write_digits
from tests.distributed.ranks import run_program

pytestmark = pytest.mark.distributed

SMOOTH = [
    *("smoothing.sigma=0.25", "smoothing.copies=4", "attack.norm=l2", "attack.eps=0.5", "attack.steps=3"),
    *(
        "epochs=2",
        "data.train_images=90",
        "data.test_images=20",
        "optimizer.lr=0.02",
        "schedule.decay_epochs=[1]",
    ),
    *("evaluation.every=0", "evaluation.steps=1"),
]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The workers share two cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """Weights and costs, by transport, workers, workers that share a batch, and images in a batch."""
    known = {}

    def train(*key):
        if key not in known:
            transport, size, sharing, batch = key
            folder = tmp_path_factory.mktemp("run")
            settings = [*SMOOTH, f"smoothing.workers={sharing}", f"batch_size={batch}"]
            answers = run_program(
                "train_small", transport, size, folder, batch, digits, folder / "run", *settings
            )
            assert all(answer["weights"] == answers[0]["weights"] for answer in answers)
            known[key] = answers[0]
        return known[key]

    return train


@pytest.mark.parametrize("sharing, whole, transport", [(4, 1, "Gloo"), (2, 2, "MPI")])
def test_copies_on_one_worker_equal_copies_over_several(trained, sharing, whole, transport):
    """Four workers that share one batch, or two; 90 images make a short last batch."""
    spread = trained(transport, 4, sharing, 20)
    alone = trained("MPI" if whole > 1 else "none", whole, 1, 20)
    for what in ("weights", "costs"):
        one, other = (torch.tensor(run[what], dtype=torch.float64) for run in (spread, alone))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
