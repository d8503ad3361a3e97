"""The local cost f_i of eq. (2): lambda * l(clean) + phi(adversarial), with phi = l (Sec. 3, case 1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy


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
    x: Tensor,
    y: Tensor,
    x_adv: Tensor | None,
    *,
    lambda_: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """f_i of eq. (2) for each sample of a batch.

    Args:
        model: from images to logits (N, classes).
        x: clean images (N, C, H, W), [0, 1].
        y: labels (N,), int64.
        x_adv: the perturbed images that the oracle (A1) found, or None for plain training, whose
            cost is l(theta; x, y) alone.
        lambda_: weight of the clean loss, >= 0.
        label_smoothing: of both losses, in [0, 1).

    Returns:
        One cost a sample, (N,). Clean and perturbed images pass the model one after the other,
        each normalised with its own batch statistics.
    """
    if x_adv is None:
        return clean_loss(model(x), y, label_smoothing)
    cost = clean_loss(model(x_adv), y, label_smoothing)
    if lambda_ > 0:
        cost = lambda_ * clean_loss(model(x), y, label_smoothing) + cost
    return cost
