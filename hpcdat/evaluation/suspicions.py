"""Signs that a measured robustness is not to be believed.

After Athalye et al. 2018 (obfuscated gradients), Carlini et al. 2019 (on evaluating robustness, Sec. 4)
and the checks of AutoAttack. Each function is pure and returns its findings in words, none if all is well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from hpcdat.evaluation.outcomes import Flags, Outcomes
from hpcdat.job import Evaluation, Norm

FEW = 0.002
"""Share of images up to which a weaker attack may be luckier than a stronger one; AutoAttack's."""
ZERO_GRADIENTS = 0.01
"""Share of the correctly classified images whose loss may have no gradient: a net may be that sure."""
FALL = 0.01
"""That RA has to lose over a sweep which reaches the radius of the evaluation, unless it is nearly 0."""


def pixels_out_of_range(low: float, high: float) -> list[str]:
    """Images must lie in [0, 1], or a radius means nothing.

    Args:
        low, high: extremes of the pixels.
    """
    # Not a number is neither.
    if low >= 0 and high <= 1:
        return []
    return [
        f"images reach from {low:.4g} to {high:.4g}, not within [0, 1]: eps has no meaning there "
        "(normalisation belongs inside the model)"
    ]


def batch_norm_in_train_mode(model: nn.Module) -> list[str]:
    """Batch norm that uses the statistics of the batch: outcomes depend on which images come together."""
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and (module.training or module.running_mean is None)
    ]
    if not layers:
        return []
    return [
        f"batch norm is in train mode ({len(layers)} layers, {layers[0]} the first): what becomes of an "
        "image depends on the others of its batch, and attacks gain or lose by that"
    ]


def short_steps(settings: Evaluation) -> list[str]:
    """All steps together must be able to reach the surface of the ball.

    Args:
        settings: resolved.
    """
    if settings.steps * settings.step_size >= settings.eps:
        return []
    return [
        f"{settings.steps} steps of {settings.step_size:.3g} cannot cross a ball of radius "
        f"{settings.eps:.3g}: RA is too high; set evaluation.step_size"
    ]


def zero_gradients(correct: Flags, gradient: Flags) -> list[str]:
    """Images on which an attack by gradients cannot take a step.

    Args:
        correct: images classified right, (N,).
        gradient: images whose loss has a gradient that is not zero, (N,).
    """
    count = int((correct & ~gradient).sum())
    if count <= ZERO_GRADIENTS * correct.sum():
        return []
    return [
        f"zero gradients: on {count} of {int(correct.sum())} correctly classified images the loss has none, "
        "so attacks by gradients do nothing there; RA is too high"
    ]


def black_box_beats_white_box(white: Flags, black: Flags, *, names: tuple[str, str]) -> list[str]:
    """An attacker without gradients must not break what one with gradients leaves standing.

    Args:
        white, black: images that withstood the attack by gradients, and the one without, (N,).
        names: of the two attacks.
    """
    count = int((white & ~black).sum())
    if count <= max(1, FEW * len(white)):
        return []
    return [
        f"black box beats white box: {names[1]} breaks {count} of the {int(white.sum())} images that "
        f"withstood {names[0]}: gradients may be masked, and RA is too high"
    ]


def does_not_fall(
    curve: Mapping[float, float], *, eps: float, norm: Norm, pixels: int, most_frequent: float
) -> list[str]:
    """RA must fall with the radius, and to chance where the ball makes all images alike.

    Args:
        curve: RA in [0, 1] by radius in [0, 1] units.
        eps: radius of the evaluation.
        norm: of the balls.
        pixels: numbers in an image.
        most_frequent: share of the images that are of the most frequent class.
    """
    found = []
    radii = sorted(radius for radius in curve if radius > 0)
    if len(radii) > 1 and radii[-1] >= eps:
        first, last = curve[radii[0]], curve[radii[-1]]
        if last > 5 * FALL and first - last < FALL:
            found.append(
                f"RA does not fall with eps: {100 * first:.1f} % at {radii[0]:.3g}, {100 * last:.1f} % at "
                f"{radii[-1]:.3g}: the attack does not work"
            )
    # The grey image is in every such ball, whatever it is around.
    reach = 0.5 if norm == "linf" else 0.5 * np.sqrt(pixels)
    for radius in radii:
        if radius >= reach and curve[radius] > most_frequent:
            found.append(
                f"RA is {100 * curve[radius]:.1f} % at {radius:.3g}, where all images can be made the same "
                f"and no model is better than {100 * most_frequent:.1f} %: the attack does not work"
            )
            break
    return found


def of_accuracy(outcomes: Outcomes, settings: Evaluation) -> list[str]:
    """All that the outcomes of :class:`~hpcdat.evaluation.measurements.PgdAccuracy` tell."""
    columns = outcomes.columns
    names = (f"PGD-{settings.steps}", "random noise of the same radius")
    return [
        *short_steps(settings),
        *zero_gradients(columns["correct"], columns["gradient"]),
        *black_box_beats_white_box(columns["robust"], columns["steady"], names=names),
    ]


def of_autoattack(outcomes: Outcomes) -> list[str]:
    """All that the outcomes of :class:`~hpcdat.evaluation.autoattack.AutoAttack` tell."""
    columns = outcomes.columns
    return [
        *black_box_beats_white_box(columns["fab-t"], columns["square"], names=("APGD and FAB", "Square")),
        *(f"AutoAttack says: {remark}" for remark in outcomes.remarks),
    ]
