"""The local cost: f_i of DAT's eq. (2), and the clean and adversarial halves of ConAdv's eq. (2) and (4)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hpcdat.models.split_batch_norm import routed


class Labelled(NamedTuple):
    """Images (N, C, H, W) in [0, 1] and their labels (N,), int64; N may be 0."""

    x: Tensor
    y: Tensor


class LocalCost(NamedTuple):
    """What a worker's part of a batch costs.

    Attributes:
        total: summed over the samples, with its gradient history.
        correct: clean images that were classified right on the way, (); 0 where none was looked at.
    """

    total: Tensor
    correct: Tensor


def clean_loss(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """l(theta; x, y): the cross entropy of each sample.

    Args:
        logits: (N, classes).
        y: labels (N,), int64.
        label_smoothing: share of the target given to all classes alike, in [0, 1).

    Returns:
        One loss a sample, (N,).
    """
    return cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)


def local_cost(
    model: nn.Module,
    clean: Labelled | None,
    adversarial: Labelled | None,
    *,
    weights: tuple[float, float],
    label_smoothing: float = 0.0,
) -> LocalCost:
    """w_clean l(clean) + w_adv l(adversarial), summed over the samples of a batch.

    DAT's eq. (2) has the weights lambda and 1 (phi = l, Sec. 3, case 1), plain training 1 and 0;
    ConAdv's eq. (2) has 1 and 1, its eq. (4) 1/2 and 1/2.

    Args:
        model: from images to logits (N, classes).
        clean: images as they are, or None where another worker sees to them.
        adversarial: the perturbed images that the oracle (A1) found, or None likewise.
        weights: of the two, >= 0; what has weight 0 does not pass the model.
        label_smoothing: of both losses, in [0, 1).

    Returns:
        The cost. Clean and perturbed images pass the model one after the other, each normalised with
        its own batch statistics and, with split batch norm, through its own branch.
    """
    total, correct = None, None
    for images, weight, branch in ((adversarial, weights[1], "adversarial"), (clean, weights[0], "clean")):
        if images is None or not weight:
            continue
        with routed(model, branch):
            logits = model(images.x)
        cost = weight * clean_loss(logits, images.y, label_smoothing).sum()
        total = cost if total is None else total + cost
        if branch == "clean":
            correct = (logits.argmax(1) == images.y).sum()
    nothing = next(model.parameters()).new_zeros(())
    return LocalCost(nothing if total is None else total, nothing if correct is None else correct)
