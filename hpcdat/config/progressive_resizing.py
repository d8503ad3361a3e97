"""The setting ``data.progressive_resizing``: the size of training images from epoch to epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator

from hpcdat.config.settings import refusal

KEY = "data.progressive_resizing"


def _in_order(stages: list[list[int]]) -> list[list[int]]:
    """The stages, if they are pairs of an epoch and a size in the order of epochs.

    Raises:
        PydanticCustomError: they are not.
    """
    if not all(len(stage) == 2 and min(stage) >= 1 for stage in stages):
        raise refusal(KEY, "pairs of an epoch and a size, both 1 or more, as in [[1, 24], [6, 32]]")
    epochs = [epoch for epoch, _ in stages]
    if stages and (epochs[0] != 1 or any(later <= earlier for earlier, later in pairwise(epochs))):
        raise refusal(KEY, "epochs in increasing order, the first of them 1, as in [[1, 24], [6, 32]]")
    return stages


Stages = Annotated[list[list[int]], AfterValidator(_in_order)]
"""Pairs of an epoch, counted from 1, and the height and width of training images from then on, pixels."""


def check_stages(stages: Stages, image_size: int, epochs: int) -> None:
    """Check that training ends with images of the size that is evaluated.

    Args:
        stages: of the job, at least one.
        image_size: height and width of evaluated images, pixels.
        epochs: of the training.

    Raises:
        PydanticCustomError: it does not, or a size is larger.
    """
    last_epoch, last_size = stages[-1]
    if last_size != image_size:
        raise refusal(KEY, f"data.image_size = {image_size} as the last size, at which images are evaluated")
    if max(size for _, size in stages) > image_size:
        raise refusal(KEY, f"sizes of at most data.image_size = {image_size}")
    if last_epoch > epochs:
        raise refusal(
            KEY,
            f"epochs of at most {epochs}, the last one, so that training ends with data.image_size = "
            f"{image_size}",
        )


def size_in_epoch(stages: Sequence[Sequence[int]], epoch: int, image_size: int) -> int:
    """Height and width of the training images of an epoch, pixels.

    Args:
        stages: of the job.
        epoch: epochs done before it.
        image_size: the size without any stage.
    """
    return next((size for first, size in reversed(stages) if first <= epoch + 1), image_size)
