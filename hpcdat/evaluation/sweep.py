"""RA over radii and over numbers of steps: Figure 3 of the DAT paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from hpcdat.config.measurements import Evaluation
from hpcdat.config.sections import Norm
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.evaluation.pgd import PgdEvaluation, attack_generator, is_correct
from hpcdat.evaluation.request import SweepKind
from hpcdat.evaluation.sharded_runner import Measurement


class Sweep(Measurement[Outcomes]):
    """RA over radii or over numbers of steps, one column per value.

    ``plain``: at each value one PGD attack from its own random start, independent of the other values. At
    the radius and number of steps of the evaluation it is the attack of RA with one restart, image by image.

    ``accumulating``: whether the image is robust at this value and at all smaller ones, so RA cannot rise.
    Over radii, each attack continues from the points that the attack in the next smaller ball ended at,
    which lie in the larger ball; over steps, each number of steps is an attack from its own start.

    Steps are 2.5 eps / steps long in both.

    Args:
        over: the setting that varies.
        values: radii in [0, 1] units, or numbers of steps, in increasing order.
        settings: all other settings, resolved.
        norm: of the ball.
        seed: the job's.
        kind: ``plain`` or ``accumulating``.
    """

    outcome = Outcomes

    def __init__(
        self,
        over: Literal["eps", "steps"],
        values: Sequence[float],
        settings: Evaluation,
        norm: Norm,
        seed: int,
        kind: SweepKind = "plain",
    ) -> None:
        self.over, self.values, self.norm, self.seed, self.kind = over, list(values), norm, seed, kind
        self.name = sweep_name(over, kind)
        fixed: dict[str, object] = {"kind": kind, "norm": norm, "random_start": settings.random_start}
        fixed |= {"steps": settings.steps} if over == "eps" else {"eps": settings.eps}
        self.settings = {over: self.values, **fixed}
        eps, steps = settings.resolved_eps, settings.steps
        attacks = {
            value: settings.with_usual_step_size(
                eps=value if over == "eps" else eps, steps=steps if over == "eps" else int(value)
            ).model_copy(update={"restarts": 1})
            for value in self.values
        }
        # With a radius of 0 there is no attack.
        self.attacks = {
            value: PgdEvaluation(attack, norm) if attack.resolved_eps > 0 else None
            for value, attack in attacks.items()
        }

    def measure(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, number: int, *, folded: nn.Module | None = None
    ) -> Outcomes:
        correct = is_correct(model, x, y)
        robust = self._plain if self.kind == "plain" else self._accumulating
        return Outcomes.from_tensors(robust(model, x, y, correct, number, folded))

    def _plain(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        correct: Tensor,
        number: int,
        folded: nn.Module | None,
    ) -> dict[str, Tensor]:
        columns = {}
        for value, attack in self.attacks.items():
            robust = correct
            if attack and correct.any():
                # Reseeded for each value, so that values do not depend on one another.
                generator = attack_generator(x.device, self.seed, number)
                robust = attack.robust(model, x, y, correct, generator, folded=folded)
            columns[str(value)] = robust
        return columns

    def _accumulating(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        robust: Tensor,
        number: int,
        folded: nn.Module | None,
    ) -> dict[str, Tensor]:
        generator, columns = attack_generator(x.device, self.seed, number), {}
        points: Tensor | None = None
        for value, attack in self.attacks.items():
            if attack and robust.any():
                attacked = robust
                robust, x_adv = attack.still_robust(model, x, y, attacked, generator, points, folded=folded)
                if self.over == "eps":
                    points = x.clone() if points is None else points
                    points[attacked] = x_adv
            columns[str(value)] = robust
        return columns


def sweep_name(over: str, kind: str) -> str:
    """Name of a sweep among the results of an evaluation, such as ``sweep-eps``."""
    return f"sweep-{over}" if kind == "plain" else f"{kind}-sweep-{over}"
