"""AA: robust accuracy under AutoAttack's standard version (Croce and Hein 2020), through pyautoattack."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hpcdat.errors import InputError
from hpcdat.evaluation.measurements import right, seen
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.job import Norm
from hpcdat.seeds import derive

NORMS = {"linf": "Linf", "l2": "L2"}
STANDARD = {
    "apgd-ce": {"iterations": 100, "restarts": 1, "averaged_gradients": 1},
    "apgd-t": {"iterations": 100, "restarts": 1, "averaged_gradients": 1, "targets": 9},
    "fab-t": {"iterations": 100, "restarts": 1, "targets": 9},
    "square": {"queries": 5000, "restarts": 1},
}
"""The four attacks and their settings, in their order: what deserves the name AA."""
CLASSES = 10
"""That the standard version needs: 9 targets and the image's own."""


class AutoAttack:
    """The four attacks one after the other, each on the images that withstood those before it.

    Columns: ``correct``, and for each attack whether the image has withstood it and all before it. It is
    the package's own evaluation with a batch of ours as its batch and all its images.

    Args:
        eps: radius, [0, 1] units, > 0.
        norm: of the ball.
        classes: of the model.

    Raises:
        InputError: the package is not there, or the standard version does not exist for so few classes.
    """

    name = "autoattack"

    def __init__(self, eps: float, norm: Norm, classes: int) -> None:
        if classes < CLASSES:
            raise InputError(
                f"--autoattack: its standard version is for {CLASSES} classes or more, not {classes}"
            )
        if eps <= 0:
            raise InputError("--autoattack: evaluation.eps must be above 0")
        self.eps, self.norm = eps, norm
        try:
            self.package = f"pyautoattack {importlib.metadata.version('pyautoattack')}"
            attacks = settings_of(self._adversary(nn.Identity(), torch.device("cpu"), 0))
        except ImportError as error:
            raise InputError(
                f"--autoattack needs the package pyautoattack ({error}): pip install pyautoattack==0.2.0"
            ) from None
        self.settings = {"norm": norm, "eps": eps, "package": self.package, "attacks": attacks}
        self.columns = ["correct", *attacks]

    @property
    def is_standard(self) -> bool:
        """Whether the attacks are those that AA is named after, none left out, weakened or added."""
        return self.settings["attacks"] == STANDARD

    def outcomes(self, model: nn.Module, x: Tensor, y: Tensor, seed: int, number: int) -> Outcomes:  # noqa: D102
        standing = right(model, x, y)
        columns = {"correct": standing}
        with _said() as remarks, _undisturbed(model, x.device):
            for attack in self.settings["attacks"]:
                if standing.any():
                    adversary = self._adversary(model, x.device, derive(seed, "autoattack", number))
                    adversary.attacks_to_run = [attack]
                    left, labels = x[standing], y[standing]
                    _, answers = adversary.run_standard_evaluation(left, labels, batch_size=len(left))
                    standing = standing.masked_scatter(standing, answers == labels)
                columns[attack] = standing
        return seen(columns, sorted(remarks))

    def _adversary(self, model: nn.Module, device: torch.device, seed: int) -> Any:
        import pyautoattack

        return pyautoattack.AutoAttack(
            model, norm=NORMS[self.norm], eps=self.eps, device=device, seed=seed, version="standard"
        )


def settings_of(adversary: Any) -> dict[str, dict[str, int]]:
    """The attacks that a ``pyautoattack.AutoAttack`` will run, and what :data:`STANDARD` says of them."""
    apgd, targeted = adversary.apgd, adversary.apgd_targeted
    known = {
        "apgd-ce": {
            "iterations": apgd.n_iter,
            "restarts": apgd.n_restarts,
            "averaged_gradients": apgd.eot_iter,
        },
        "apgd-t": {
            "iterations": targeted.n_iter,
            "restarts": targeted.n_restarts,
            "averaged_gradients": targeted.eot_iter,
            "targets": targeted.n_target_classes,
        },
        "fab-t": {
            "iterations": adversary.fab.n_iter,
            "restarts": adversary.fab.n_restarts,
            "targets": adversary.fab.n_target_classes,
        },
        "square": {"queries": adversary.square.n_queries, "restarts": adversary.square.n_restarts},
    }
    return {name: known.get(name, {}) for name in adversary.attacks_to_run}


@contextmanager
def _said() -> Iterator[set[str]]:
    """What the package's own checks complain of inside the block, without its numbers."""
    remarks: set[str] = set()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().split("!")[0].split(" See ")[0]
            remarks.add(re.sub(r"\d+(\.\d+)?", "some", text))

    logger, keep = logging.getLogger("auto-attack"), Keep(logging.WARNING)
    passed_on, logger.propagate = logger.propagate, False
    logger.addHandler(keep)
    try:
        yield remarks
    finally:
        logger.removeHandler(keep)
        logger.propagate = passed_on


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep torch's global random state, and parameters without gradients: the package touches both."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for p in wanted:
            p.requires_grad_()
