"""Weights to start from: those of another run or of another program's file, except a head of other classes.

DAT, Sec. 6.2 and Figure 4: pre-training on one set of images, fine-tuning on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpcdat.errors import InputError, first_few
from hpcdat.training.weight_files import plain_name, read_weights

HEADS = ("fc", "classifier")
"""Names of the last layer in the networks of this package and of torchvision."""

CLASSES_SHOWN = 4
"""Class names in the line about a head whose file does not name them."""


class Loaded(NamedTuple):
    """The weights that a model has taken from a file.

    Attributes:
        taken: number of tensors of the file that are in the model.
        fresh: names of the tensors that stay as they were initialised: the head's, if it has other classes.
        found_in: where in the file the tensors are; empty for a plain state dictionary.
        assumed: classes that the head is taken for, in order, as the file does not name its own; else empty.
    """

    taken: int
    fresh: list[str]
    found_in: str
    assumed: list[str]

    def describe(self, path: Path) -> str:
        """One line for the user."""
        place = f" ({self.found_in})" if self.found_in else ""
        new = f"; initialised at random: {', '.join(map(plain_name, self.fresh))}" if self.fresh else ""
        order = "; its last layer is taken to be for the classes "
        head = f"{order}{first_few(self.assumed, CLASSES_SHOWN)}, in this order" if self.assumed else ""
        return f"starting from {path}: {self.taken} tensors{place}{new}{head}"


def load_pretrained(model: nn.Module, path: Path, classes: list[str]) -> Loaded:
    """Give a model the weights of a file.

    Args:
        model: normalisation and network, as :func:`~hpcdat.models.build_model` makes them. Its own mean and
            standard deviation of the pixels stay.
        path: a checkpoint of a run, a run's folder, for the weights of its result, or a state dictionary of
            the model, with or without its normalisation layer, and with the wrappers and prefixes of
            :mod:`~hpcdat.training.weight_files`.
        classes: of the model. A run's head has other classes if a name differs, even if their number is the
            same; a file without names, if their number differs.

    Raises:
        InputError: the file cannot be read, its tensors do not fit this model, or are not finite. The model
            is unchanged.
    """
    weights = read_weights(path)
    given = weights.tensors
    # Older torchvision files do not count the batches that batch norm has seen, and nothing here does.
    own = {
        name: t
        for name, t in model.state_dict().items()
        if name.startswith("1.") and (not name.endswith(".num_batches_tracked") or plain_name(name) in given)
    }
    _check_names(path, {plain_name(name) for name in own}, given)
    head = {name for name in own if plain_name(name).rpartition(".")[0] in HEADS}
    unlike = {name for name, t in own.items() if t.shape != given[plain_name(name)].shape}
    fresh = [name for name in own if name in (head if weights.classes not in (None, classes) else unlike)]
    _check_shapes(path, {plain_name(name): own[name] for name in own if name in unlike - head}, given)
    taken = {name: given[plain_name(name)] for name in own if name not in fresh}
    _check_numbers(path, taken, own)
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    assumed = classes if weights.classes is None and not fresh else []
    return Loaded(len({plain_name(name) for name in taken}), fresh, weights.found_in, assumed)


def _check_names(path: Path, own: set[str], given: Mapping[str, Tensor]) -> None:
    """Check that model and file have the same tensors."""
    missing, unknown = sorted(own - given.keys()), sorted(given.keys() - own)
    problems = [
        *([f"it lacks {len(missing)} of {len(own)} tensors ({first_few(missing, 3)})"] if missing else []),
        *([f"it has {len(unknown)} others ({first_few(unknown, 3)})"] if unknown else []),
    ]
    if problems:
        raise _misfit(path, "; ".join(problems), "set model.name to the network of the file")


def _check_shapes(path: Path, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Check that no tensor outside the head has another shape.

    Args:
        path, given: the file and its tensors.
        own: the model's tensors whose shapes differ, head excepted.
    """
    unlike = [
        f"{name} is {tuple(given[name].shape)} there and {tuple(t.shape)} here" for name, t in own.items()
    ]
    if unlike:
        raise _misfit(
            path, first_few(unlike, 3), "set model.width, data.channels and model.name as for the file"
        )


def _check_numbers(path: Path, taken: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Check that all numbers are finite and of the model's kind."""
    for name, tensor in taken.items():
        if tensor.layout != torch.strided:
            raise _misfit(path, f"{plain_name(name)} is sparse", "save it with .to_dense()")
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise _misfit(
                path,
                f"{plain_name(name)} is {tensor.dtype} there and {own[name].dtype} here",
                "save the weights as float32",
            )
        if bad := int((~tensor.isfinite()).sum()):
            raise InputError(
                f"model.pretrained: {path}: {bad:,} of the {tensor.numel():,} numbers of {plain_name(name)} "
                "are NaN or infinite: take weights from before that training diverged"
            )


def _misfit(path: Path, problem: str, advice: str) -> InputError:
    return InputError(f"model.pretrained: {path} does not fit this model: {problem}: {advice}")
