"""The local cost: f_i of DAT's eq. (2), and the clean and adversarial halves of ConAdv's eq. (2) and (4).

The robustness regulariser phi of DAT's eq. (2) is the loss of the perturbed image (case 1), or the TRADES
regulariser (Zhang et al. 2019, eq. (5)): the divergence between the predictions for an image and for its
perturbation, which needs no label.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from hpcdat.models.split_batch_norm import Branch, routed

Phi = Literal["loss", "trades"]


class Labelled(NamedTuple):
    """Images in [0, 1] and their labels; N may be 0.

    Attributes:
        x: (N, C, H, W), floating point.
        y: classes (N,), int64; of mixed images the proportions of all classes, (N, classes), float32.
    """

    x: Tensor
    y: Tensor

    @property
    def main_class(self) -> Tensor:
        """The class of each image, of a mixed one that with the largest proportion: (N,), int64."""
        return self.y if self.y.dim() == 1 else self.y.argmax(1)


class LocalCost(NamedTuple):
    """The cost of a worker's part of a batch.

    Attributes:
        total: summed over the samples, (), with gradient history.
        correct: number of correctly classified clean images, (); 0 if no clean image was evaluated.
    """

    total: Tensor
    correct: Tensor


def clean_loss(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """l(theta; x, y): the cross entropy of each sample.

    Args:
        logits: (N, classes).
        y: labels (N,), int64, or proportions of the classes (N, classes).
        label_smoothing: share of the target that is distributed evenly over all classes, in [0, 1).

    Returns:
        One loss per sample, (N,).
    """
    return cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)


def divergence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """KL(p(x) || p(x + delta)) of each sample: the TRADES regulariser without its weight.

    Args:
        logits: of the perturbed images, (N, classes).
        clean_logits: of the clean images, (N, classes).

    Returns:
        One divergence per sample, (N,), >= 0 up to rounding.
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
    randomness: Callable[[Branch], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> LocalCost:
    """w_clean l(clean) + w_adv phi(adversarial), summed over the samples of a batch.

    DAT's eq. (2) has the weights lambda and 1 (phi = l, Sec. 3, case 1), plain training 1 and 0,
    TRADES 1 and beta; ConAdv's eq. (2) has 1 and 1, its eq. (4) 1/2 and 1/2.

    Args:
        model: from images to logits (N, classes).
        clean: clean images, or None if another worker processes them.
        adversarial: the perturbed images from the oracle (A1), or None likewise.
        weights: of the two, >= 0; images with weight 0 are not evaluated.
        phi: ``loss``, or ``trades``, whose gradient includes that through the clean images.
        label_smoothing: of the losses, in [0, 1).
        randomness: the source of the random numbers that the model draws in a pass of each branch.

    Returns:
        The cost. Clean and perturbed images are evaluated one after the other, each with their own batch
        statistics and, with split batch norm, their own branch.
    """
    costs, clean_logits, correct = [], None, None
    if adversarial is not None and weights[1]:
        with routed(model, "adversarial"), randomness("adversarial"):
            logits = model(adversarial.x)
    if clean is not None and weights[0]:
        with routed(model, "clean"), randomness("clean"):
            clean_logits = model(clean.x)
        correct = (clean_logits.argmax(1) == clean.main_class).sum()
        costs.append(weights[0] * clean_loss(clean_logits, clean.y, label_smoothing).sum())
    if adversarial is not None and weights[1]:
        if phi == "trades":
            assert clean_logits is not None  # TRADES has weight 1 for clean images
            regulariser = divergence(logits, clean_logits)
        else:
            regulariser = clean_loss(logits, adversarial.y, label_smoothing)
        costs.append(weights[1] * regulariser.sum())
    zero = next(model.parameters()).new_zeros(())
    return LocalCost(sum(costs[1:], costs[0]) if costs else zero, zero if correct is None else correct)
