"""The local cost: f_i of DAT's eq. (2), and the clean and adversarial halves of ConAdv's eq. (2) and (4).

The robustness regulariser phi of DAT's eq. (2) is the loss of the perturbed image (case 1), or the TRADES
regulariser (Zhang et al. 2019, eq. (5)): the divergence between what the net says of an image and of its
perturbation, which needs no label.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from hpcdat.models.split_batch_norm import routed

Phi = Literal["loss", "trades"]


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


def divergence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """KL(p(x) || p(x + delta)) of each sample: the TRADES regulariser without its weight.

    Args:
        logits: of the perturbed images, (N, classes).
        clean_logits: of the images as they are, (N, classes).

    Returns:
        One divergence a sample, (N,), >= 0 but for rounding.
    """
    clean, perturbed = log_softmax(clean_logits, 1), log_softmax(logits, 1)
    return kl_div(perturbed, clean, reduction="none", log_target=True).sum(1)


def local_cost(
    model: nn.Module,
    clean: Labelled | None,
    adversarial: Labelled | None,
    *,
    weights: tuple[float, float],
    phi: Phi = "loss",
    label_smoothing: float = 0.0,
) -> LocalCost:
    """w_clean l(clean) + w_adv phi(adversarial), summed over the samples of a batch.

    DAT's eq. (2) has the weights lambda and 1 (phi = l, Sec. 3, case 1), plain training 1 and 0,
    TRADES 1 and beta; ConAdv's eq. (2) has 1 and 1, its eq. (4) 1/2 and 1/2.

    Args:
        model: from images to logits (N, classes).
        clean: images as they are, or None where another worker sees to them.
        adversarial: the perturbed images that the oracle (A1) found, or None likewise.
        weights: of the two, >= 0; what has weight 0 does not pass the model.
        phi: ``loss``, or ``trades``, whose gradient goes through clean and perturbed images alike.
        label_smoothing: of the losses, in [0, 1).

    Returns:
        The cost. Clean and perturbed images pass the model one after the other, each normalised with
        its own batch statistics and, with split batch norm, through its own branch.
    """
    costs, clean_logits, correct = [], None, None
    if adversarial is not None and weights[1]:
        with routed(model, "adversarial"):
            logits = model(adversarial.x)
    if clean is not None and weights[0]:
        with routed(model, "clean"):
            clean_logits = model(clean.x)
        correct = (clean_logits.argmax(1) == clean.y).sum()
        costs.append(weights[0] * clean_loss(clean_logits, clean.y, label_smoothing).sum())
    if adversarial is not None and weights[1]:
        if phi == "trades":
            assert clean_logits is not None  # TRADES has weight 1 for clean images
            regulariser = divergence(logits, clean_logits)
        else:
            regulariser = clean_loss(logits, adversarial.y, label_smoothing)
        costs.append(weights[1] * regulariser.sum())
    nothing = next(model.parameters()).new_zeros(())
    return LocalCost(sum(costs[1:], costs[0]) if costs else nothing, nothing if correct is None else correct)
