"""AA: robust accuracy under AutoAttack's standard version (Croce and Hein 2020), through pyautoattack.

The standard version is defined for ten classes or more: its targeted attacks take nine targets. For fewer
classes they take as many as there are, and the result says so.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hpcdat.config.sections import Norm
from hpcdat.errors import InputError
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.evaluation.pgd import is_correct
from hpcdat.evaluation.sharded_runner import Measurement
from hpcdat.seeds import derive

NORMS = {"linf": "Linf", "l2": "L2"}
"""The package's names of the norms."""
STANDARD = {
    "apgd-ce": {"iterations": 100, "restarts": 1, "averaged_gradients": 1},
    "apgd-t": {"iterations": 100, "restarts": 1, "averaged_gradients": 1, "targets": 9},
    "fab-t": {"iterations": 100, "restarts": 1, "targets": 9},
    "square": {"queries": 5000, "restarts": 1},
}
"""The four attacks of the standard version in order, with their settings."""
STANDARD_CLASSES = 10
"""Classes that the standard version needs: 9 targets in addition to the image's own class."""
TARGETED_DLR_CLASSES = 4
"""Classes that APGD's targeted loss needs, which takes the four largest logits."""


def attacks_for(classes: int) -> dict[str, dict[str, int]]:
    """The attacks that are called AA for a number of classes, with their settings as in :data:`STANDARD`."""
    attacks = {name: {**settings} for name, settings in STANDARD.items()}
    for settings in attacks.values():
        if "targets" in settings:
            settings["targets"] = min(settings["targets"], classes - 1)
    if classes < TARGETED_DLR_CLASSES:
        del attacks["apgd-t"]
    return attacks


class AutoAttack(Measurement[Outcomes]):
    """The four attacks one after the other, each on the images that are robust to the attacks before it.

    Columns: ``correct``, and for each attack whether the image is robust to it and to all before it. This is
    the package's own evaluation, applied to each batch as a whole.

    Args:
        eps: radius, [0, 1] units, > 0.
        norm: of the ball.
        classes: number of classes, >= 2.
        seed: the job's.

    Raises:
        InputError: the package is not installed, there is a single class, or eps is 0.
    """

    name = "autoattack"
    outcome = Outcomes

    def __init__(self, eps: float, norm: Norm, classes: int, seed: int) -> None:
        if classes < 2:
            raise InputError(f"AutoAttack needs 2 classes or more, not {classes}")
        if eps <= 0:
            raise InputError("AutoAttack: evaluation.eps must be above 0")
        self.eps, self.norm, self.classes, self.seed = eps, norm, classes, seed
        try:
            self.package = f"pyautoattack {importlib.metadata.version('pyautoattack')}"
            attacks = settings_of(self._adversary(nn.Identity(), torch.device("cpu"), 0))
        except ImportError as error:
            raise InputError(
                f"AutoAttack needs the package pyautoattack ({error}): pip install pyautoattack==0.2.0"
            ) from None
        self.settings = {"norm": norm, "eps": eps, "package": self.package, "attacks": attacks}

    @property
    def is_standard(self) -> bool:
        """Whether the attacks are those of the standard version, none missing, weakened or added."""
        return bool(self.settings["attacks"] == STANDARD)

    @property
    def is_complete(self) -> bool:
        """Whether the attacks are all that are defined for this number of classes, none weakened or added."""
        return bool(self.settings["attacks"] == attacks_for(self.classes))

    @property
    def version(self) -> str | None:
        """How the attacks differ from the standard version because there are few classes; None if not."""
        if self.classes >= STANDARD_CLASSES:
            return None
        targets = self.classes - 1
        text = f"{targets} target{'s' if targets > 1 else ''} in place of 9"
        if self.classes < TARGETED_DLR_CLASSES:
            text += " and without targeted APGD"
        return f"AutoAttack for {self.classes} classes: {text}"

    def measure(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, number: int, *, folded: nn.Module | None = None
    ) -> Outcomes:
        robust = is_correct(model, x, y)
        columns = {"correct": robust}
        with _logged_warnings() as warnings, _globals_preserved(model, x.device):
            for attack in self.settings["attacks"]:
                if robust.any():
                    seed = derive(self.seed, "autoattack", number)
                    x_left, y_left = x[robust], y[robust]
                    adversary = self._adversary(folded or model, x.device, seed, only=attack)
                    x_adv, _ = adversary.run_standard_evaluation(x_left, y_left, batch_size=len(x_left))
                    robust = robust.masked_scatter(robust, is_correct(model, x_adv, y_left))
                columns[attack] = robust
        return Outcomes.from_tensors(columns, sorted(warnings))

    def _adversary(self, model: nn.Module, device: torch.device, seed: int, only: str | None = None) -> Any:
        """The package's standard version with the targets that there are, or only one of its attacks."""
        import pyautoattack

        adversary = pyautoattack.AutoAttack(
            model, norm=NORMS[self.norm], eps=self.eps, device=device, seed=seed, version="standard"
        )
        if self.classes < STANDARD_CLASSES:
            possible = attacks_for(self.classes)
            adversary.attacks_to_run = [name for name in adversary.attacks_to_run if name in possible]
            for attack in (adversary.apgd_targeted, adversary.fab):
                attack.n_target_classes = min(attack.n_target_classes, self.classes - 1)
        if only:
            # The package has no other way to restrict the standard version.
            adversary.attacks_to_run = [only]
        return adversary


def settings_of(adversary: Any) -> dict[str, dict[str, int]]:
    """The attacks that a ``pyautoattack.AutoAttack`` will run, with their settings as in :data:`STANDARD`."""
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
def _logged_warnings() -> Iterator[set[str]]:
    """Collect the warnings that the package's own checks log inside the block, without numbers."""
    warnings: set[str] = set()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().split("!")[0].split(" See ")[0]
            warnings.add(re.sub(r"\d+(\.\d+)?", "some", text))

    logger, handler = logging.getLogger("auto-attack"), Collect(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield warnings
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextmanager
def _globals_preserved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Preserve what the package changes: torch's global random state, and gradients of the parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for p in parameters:
            p.requires_grad_()
