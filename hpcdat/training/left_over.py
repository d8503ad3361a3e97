"""Tensors of a file that a network does not have: which ones do not matter, and what is said of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hpcdat.errors import first_few
from hpcdat.training.weight_names import (
    AUXILIARY_HEADS,
    DEVIATIONS,
    MEANS,
    Match,
    find_copies,
    is_computed,
    is_of_normalisation,
)

NAMES_SHOWN = 3
"""Tensors of a kind that a remark names."""
SAME_NORMALISATION = 1e-4
"""Means and standard deviations that differ by no more are equal: papers round them to four digits."""

Statistics = tuple[list[float], list[float]]
"""Mean and standard deviation of the pixels, one value per channel."""


class LeftOver(NamedTuple):
    """The tensors of a file that a network does not have.

    Attributes:
        remarks: on those that the network does not need, one sentence per kind.
        unknown: names of the others: the file is of another network.
        normalisation: the file's mean and standard deviation of the pixels; None if it has none.
    """

    remarks: list[str]
    unknown: list[str]
    normalisation: Statistics | None


def sort_left(
    match: Match, own: Mapping[str, str], *, channels: int, missing_head: Collection[Tensor]
) -> LeftOver:
    """Sort the tensors that a network does not have.

    Args:
        match: of the file.
        own: see :func:`~hpcdat.training.weight_names.plain_names`.
        channels: of the images.
        missing_head: the weights of the network's last layer, if the file has none of its name: then the
            file may have one of another name.
    """
    left = dict(match.left)
    statistics = {name: t for name, t in left.items() if is_of_normalisation(name, t, channels)}
    kinds: dict[str, Collection[str]] = {
        "": statistics,
        "batch norm for adversarial images": match.adversarial,
        "auxiliary classifiers": [name for name in left if set(name.split(".")) & set(AUXILIARY_HEADS)],
        "further copies of the network, such as averages": find_copies(own, left),
        "counters and tables": [name for name in left if is_computed(name)],
        "a last layer": _layer_like(missing_head, left),
    }
    remarks = []
    for kind, names in kinds.items():
        these = [name for name in left if name in names]
        for name in these:
            del left[name]
        if kind and these:
            remarks.append(f"left over: {kind} ({first_few(these, NAMES_SHOWN)})")
    return LeftOver(remarks, sorted(left), _statistics(statistics))


def compare_normalisation(theirs: Statistics | None, ours: Statistics) -> list[str]:
    """A remark if a file's weights were trained with another normalisation of the pixels."""
    if theirs is None:
        return []
    differs = any(
        not torch.allclose(torch.tensor(a), torch.tensor(b), rtol=0, atol=SAME_NORMALISATION)
        for a, b in zip(theirs, ours, strict=True)
    )
    if not differs:
        return []
    return [
        f"the file's normalisation is not used: {_describe(theirs)} there, {_describe(ours)} here "
        "(model.mean, model.std)"
    ]


def _statistics(tensors: Mapping[str, Tensor]) -> Statistics | None:
    """Mean and standard deviation among the tensors; None unless both are there."""
    pair = []
    for names in (MEANS, DEVIATIONS):
        found = [t for name, t in tensors.items() if name.rpartition(".")[2] in names]
        if not found:
            return None
        pair.append([float(value) for value in found[0].flatten()])
    return pair[0], pair[1]


def _layer_like(missing_head: Collection[Tensor], left: Mapping[str, Tensor]) -> Collection[str]:
    """The tensors of the one layer that takes as many features as a missing head does; none if unclear."""
    features = {weight.shape[1:] for weight in missing_head if weight.dim() > 1}
    layers = {name.rpartition(".")[0] for name, t in left.items() if t.dim() > 1 and t.shape[1:] in features}
    if len(layers) != 1:
        return []
    layer = layers.pop()
    return [name for name in left if name in (f"{layer}.weight", f"{layer}.bias")]


def _describe(statistics: Statistics) -> str:
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in statistics)
    return f"mean {mean}, std {std}"
