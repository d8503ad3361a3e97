"""An upper bound on robust accuracy for a twentieth of AutoAttack's forward passes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpcdat.attacks.margin import RelaxedMarginAttack, linearised_margins
from hpcdat.config.sections import Norm
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.evaluation.pgd import is_correct
from hpcdat.evaluation.sharded_runner import Measurement
from hpcdat.seeds import derive

TARGETS, STARTS = 3, 9
"""Attacks on an image: on classes with the largest linearised margins, then on the largest wrong logit."""
CANDIDATES = 9
"""Largest number of wrong classes, those with the largest logits, among which the targets are chosen."""
STEPS, RELAXATION = 30, 2.0
"""Settings of each attack."""


class FastBound(Measurement[Outcomes]):
    """The images that withstand :class:`~hpcdat.attacks.margin.RelaxedMarginAttack` from twelve starts.

    Columns are ``correct``, ``targeted`` (also withstands the attacks on :data:`TARGETS` fixed classes) and
    ``robust`` (withstands all attacks).

    Args:
        eps: radius of the ball, [0, 1] units, above 0.
        norm: of the ball.
        seed: the job's.
    """

    name = "fast-bound"
    outcome = Outcomes

    def __init__(self, eps: float, norm: Norm, seed: int) -> None:
        self.seed = seed
        self.attack = RelaxedMarginAttack(eps=eps, norm=norm, steps=STEPS, relaxation=RELAXATION)
        self.settings = {
            **{"norm": norm, "eps": eps, "steps": STEPS, "relaxation": RELAXATION},
            **{"candidates": CANDIDATES, "targets": TARGETS, "starts": STARTS},
        }

    def measure(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, number: int, *, folded: nn.Module | None = None
    ) -> Outcomes:
        generator = torch.Generator(x.device).manual_seed(derive(self.seed, "fast bound", number))
        with torch.no_grad():
            logits = model(x)
        robust = logits.argmax(1) == y
        columns = {"correct": robust}
        attacked = folded or model
        targets = self._targets(attacked, x, y, logits)
        for column, classes in (("targeted", targets), ("robust", [None] * STARTS)):
            for target in classes:
                if robust.any():
                    x_left, y_left = x[robust], y[robust]
                    there = None if target is None else target[robust]
                    points = self.attack(attacked, x_left, y_left, generator, target=there)
                    robust = robust.masked_scatter(robust, is_correct(model, points, y_left))
            columns[column] = robust
        return Outcomes.from_tensors(columns)

    def _targets(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> list[Tensor]:
        """Wrong classes, at most :data:`TARGETS` tensors (N,), int64, largest linearised margin first."""
        count = min(CANDIDATES, logits.shape[1] - 1)
        candidates = logits.scatter(1, y[:, None], -torch.inf).topk(count).indices
        margins = linearised_margins(model, x, y, candidates, eps=self.attack.eps, norm=self.attack.norm)
        order = margins.argsort(1, descending=True)[:, :TARGETS]
        return list(candidates.gather(1, order).T)
