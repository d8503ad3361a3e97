"""RA over radii and over numbers of steps: Figure 3 of the DAT paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from hpcdat.config.sections import Evaluation, Norm
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.evaluation.pgd import attack_generator, is_correct, pgd
from hpcdat.evaluation.sharded_runner import Measurement


class Sweep(Measurement[Outcomes]):
    """RA over radii or over numbers of steps.

    One column per value: whether the image is robust at this value and at all smaller ones, so RA cannot
    rise. Over radii, the attack continues from its last points in the smaller ball, which lie in the larger
    one; over steps, each number of steps is a separate attack. Steps are 2.5 eps / steps long.

    Args:
        over: the setting that varies.
        values: radii in [0, 1] units, or numbers of steps, in increasing order.
        settings: all other settings, resolved.
        norm: of the ball.
        seed: the job's.
    """

    outcome = Outcomes

    def __init__(
        self,
        over: Literal["eps", "steps"],
        values: Sequence[float],
        settings: Evaluation,
        norm: Norm,
        seed: int,
    ) -> None:
        self.over, self.values, self.evaluation = over, list(values), settings
        self.norm, self.seed = norm, seed
        self.name = f"sweep-{over}"
        fixed: dict[str, object] = {"norm": norm, "random_start": settings.random_start}
        fixed |= {"steps": settings.steps} if over == "eps" else {"eps": settings.eps}
        self.settings = {over: self.values, **fixed}

    def measure(self, model: nn.Module, x: Tensor, y: Tensor, number: int) -> Outcomes:  # noqa: D102
        generator = attack_generator(x.device, self.seed, number)
        robust, columns = is_correct(model, x, y), {}
        points: Tensor | None = None
        for value in self.values:
            eps = value if self.over == "eps" else self.evaluation.resolved_eps
            steps = self.evaluation.steps if self.over == "eps" else int(value)
            if eps > 0 and robust.any():
                settings = self.evaluation.with_usual_step_size(eps=eps, steps=steps)
                x_left, y_left = x[robust], y[robust]
                start = points[robust] if points is not None else None
                x_adv = pgd(model, x_left, y_left, settings, self.norm, generator, start)
                if self.over == "eps":
                    points = x.clone() if points is None else points
                    points[robust] = x_adv
                robust = robust.masked_scatter(robust, is_correct(model, x_adv, y_left))
            columns[str(value)] = robust
        return Outcomes.from_tensors(columns)
