"""Sanity checks of robustness evaluations: signs that an attack failed rather than that a model is robust.

After Athalye et al. 2018 (obfuscated gradients), Carlini et al. 2019 (On Evaluating Adversarial Robustness,
Sec. 4) and AutoAttack's own checks. Each function is pure and returns a list of warnings.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from hpcdat.config.measurements import Evaluation
from hpcdat.config.sections import Norm
from hpcdat.evaluation.outcomes import Flags, Outcomes

BLACK_BOX_TOLERANCE = 0.002
"""Fraction of images that a weaker attack may break though a stronger one does not; AutoAttack's value."""
MAX_ZERO_GRADIENTS = 0.01
"""Fraction of correctly classified images whose loss may have zero gradient without a warning."""
MIN_FALL = 0.01
"""Smallest plausible fall of RA over a sweep that reaches the evaluation's radius, unless RA is nearly 0."""


def pixels_out_of_range(low: float, high: float) -> list[str]:
    """Images must lie in [0, 1], otherwise eps has no meaning.

    Args:
        low, high: smallest and largest value of a pixel.
    """
    # False for NaN.
    if low >= 0 and high <= 1:
        return []
    return [
        f"images range from {low:.4g} to {high:.4g}, not within [0, 1], so eps has no meaning "
        "(normalisation belongs inside the model)"
    ]


def batch_norm_in_train_mode(model: nn.Module) -> list[str]:
    """With batch norm in train mode, an image's outcome depends on the other images in its batch."""
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and (module.training or module.running_mean is None)
    ]
    if not layers:
        return []
    return [
        f"batch norm is in train mode ({len(layers)} layers, the first is {layers[0]}): the outcome of an "
        "image depends on the others in its batch, which helps or hinders attacks"
    ]


def short_steps(settings: Evaluation) -> list[str]:
    """All steps together must be able to reach the surface of the ball.

    Args:
        settings: resolved.
    """
    assert settings.step_size is not None
    if settings.steps * settings.step_size >= settings.resolved_eps:
        return []
    return [
        f"{settings.steps} steps of {settings.step_size:.3g} cannot cross a ball of radius "
        f"{settings.eps:.3g}: RA is too high; set evaluation.step_size"
    ]


def zero_gradients(correct: Flags, gradient: Flags) -> list[str]:
    """Images on which a gradient-based attack cannot take a step.

    Args:
        correct: images classified correctly, (N,).
        gradient: images where the gradient of the loss is not zero, (N,).
    """
    count = int((correct & ~gradient).sum())
    if count <= MAX_ZERO_GRADIENTS * correct.sum():
        return []
    return [
        f"zero gradients: on {count} of {int(correct.sum())} correctly classified images the gradient of the "
        "loss is zero, so gradient-based attacks do nothing; RA is too high"
    ]


def black_box_beats_white_box(white: Flags, black: Flags, *, names: tuple[str, str]) -> list[str]:
    """An attack without gradients should not break images that one with gradients does not.

    Args:
        white, black: images that are robust to the attack with gradients, and to the one without, (N,).
        names: of the two attacks.
    """
    count = int((white & ~black).sum())
    if count <= max(1, BLACK_BOX_TOLERANCE * len(white)):
        return []
    return [
        f"black box beats white box: {names[1]} breaks {count} of the {int(white.sum())} images that "
        f"are robust to {names[0]}: gradients may be masked, and RA is too high"
    ]


def does_not_fall(
    curve: Mapping[float, float], *, eps: float, norm: Norm, pixels: int, most_frequent: float
) -> list[str]:
    """RA must fall with the radius, and to chance where the balls of all images share a point.

    Args:
        curve: RA in [0, 1] by radius in [0, 1] units.
        eps: radius of the evaluation.
        norm: of the balls.
        pixels: number of values in an image, channels included.
        most_frequent: fraction of images in the most frequent class.
    """
    warnings = []
    radii = sorted(radius for radius in curve if radius > 0)
    if len(radii) > 1 and radii[-1] >= eps:
        first, last = curve[radii[0]], curve[radii[-1]]
        if last > 5 * MIN_FALL and first - last < MIN_FALL:
            warnings.append(
                f"RA does not fall with eps: {100 * first:.1f} % at {radii[0]:.3g}, {100 * last:.1f} % at "
                f"{radii[-1]:.3g}: the attack does not work"
            )
    # Every ball of this radius contains the grey image.
    reach = 0.5 if norm == "linf" else 0.5 * np.sqrt(pixels)
    for radius in radii:
        if radius >= reach and curve[radius] > most_frequent:
            warnings.append(
                f"RA is {100 * curve[radius]:.1f} % at {radius:.3g}, where all images can be made the same "
                f"and no model is better than {100 * most_frequent:.1f} %: the attack does not work"
            )
            break
    return warnings


def check_accuracy(outcomes: Outcomes, settings: Evaluation) -> list[str]:
    """All checks of the outcomes of :class:`~hpcdat.evaluation.accuracy.CheckedAccuracy`."""
    columns = outcomes.columns
    names = (f"PGD-{settings.steps}", "random noise of the same radius")
    return [
        *short_steps(settings),
        *zero_gradients(columns["correct"], columns["gradient"]),
        *black_box_beats_white_box(columns["robust"], columns["steady"], names=names),
    ]


def beaten_by_pgd(pgd: Flags, stronger: Flags, *, name: str, attack: str) -> list[str]:
    """A stronger attack should not leave more images robust than PGD.

    Of different images nothing is said.

    Args:
        pgd, stronger: images that are robust to each, (N,).
        name: of the stronger attack's robust accuracy.
        attack: the stronger attack's own name.
    """
    # Images that could not be read for one measurement may be read for the other.
    if len(stronger) != len(pgd) or stronger.sum() <= pgd.sum():
        return []
    only_by_pgd = int((stronger & ~pgd).sum())
    return [
        f"{name} is above RA on the same {len(pgd)} images: PGD breaks {only_by_pgd} that are robust to "
        f"{attack}; RA is the bound"
    ]


def check_autoattack(outcomes: Outcomes, pgd: Outcomes) -> list[str]:
    """All checks of the outcomes of :class:`~hpcdat.evaluation.autoattack.AutoAttack`.

    Args:
        outcomes: of AutoAttack.
        pgd: of :class:`~hpcdat.evaluation.accuracy.PgdAccuracy` on the same images.
    """
    columns = outcomes.columns
    return [
        *black_box_beats_white_box(columns["fab-t"], columns["square"], names=("APGD and FAB", "Square")),
        *beaten_by_pgd(pgd.columns["robust"], columns["square"], name="AA", attack="AutoAttack"),
        *(f"AutoAttack warns: {warning}" for warning in outcomes.warnings),
    ]
