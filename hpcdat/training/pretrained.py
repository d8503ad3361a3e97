"""Weights to start from: those of another run or of another program's file, except a head of other classes.

DAT, Sec. 6.2 and Figure 4: pre-training on one set of images, fine-tuning on another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpcdat.errors import InputError, first_few
from hpcdat.training.classifier import class_tensors, has_other_classes
from hpcdat.training.left_over import compare_normalisation, sort_left
from hpcdat.training.weight_files import Weights, read_weights
from hpcdat.training.weight_names import COMPUTED, Match, match_names, plain_names

CLASSES_SHOWN = 4
"""Class names in the line about a head whose file does not name them."""
NAMES_SHOWN = 4
"""Tensors that a line names."""
SHAPES_SHOWN = 5
"""Tensors of another shape that an error lists."""


class Loaded(NamedTuple):
    """The weights that a model has taken from a file.

    Attributes:
        taken: number of tensors of the file that are in the model.
        fresh: names of the tensors that stay as they were initialised: the head's, if it has other classes.
        found_in: where in the file the tensors are; empty for a plain state dictionary.
        assumed: classes that the head is taken for, in order, as the file does not name its own; else empty.
        remarks: what was left over in the file, and other things to know, a sentence each.
    """

    taken: int
    fresh: list[str]
    found_in: str
    assumed: list[str]
    remarks: list[str]

    def describe(self, path: Path) -> str:
        """For the user: one line, and one for each remark."""
        place = f" ({self.found_in})" if self.found_in else ""
        names = first_few([name.removeprefix("1.") for name in self.fresh], NAMES_SHOWN)
        new = f"; initialised at random: {names}" if self.fresh else ""
        order = "; its last layer is taken to be for the classes "
        head = f"{order}{first_few(self.assumed, CLASSES_SHOWN)}, in this order" if self.assumed else ""
        line = f"starting from {path}: {self.taken} tensors{place}{new}{head}"
        return "\n".join([line, *(f"  {remark}" for remark in self.remarks)])


def load_pretrained(model: nn.Module, path: Path, classes: list[str], *, averaged: bool = False) -> Loaded:
    """Give a model the weights of a file.

    Args:
        model: normalisation and network, as :func:`~hpcdat.models.build_model` makes them. Its own mean and
            standard deviation of the pixels stay.
        path: a checkpoint of a run, a run's folder, for the weights of its result, or a state dictionary of
            the network, with the wrappers of :mod:`~hpcdat.training.weight_files` and any prefix before all
            names.
        classes: of the model. A run's head has other classes if a name differs, even if their number is the
            same; a file without names, if their number differs.
        averaged: take the averaged weights, which must be there.

    Raises:
        InputError: the file cannot be read, its tensors do not fit this model, or are not finite. The model
            is unchanged.
    """
    weights = read_weights(path, averaged=averaged)
    names = plain_names(model)
    match = match_names(names, weights.tensors)
    if len(match.prefixes) > 1:
        copies = " and ".join(repr(prefix) for prefix in match.prefixes[:NAMES_SHOWN])
        raise _misfit(path, f"it has the network more than once, under {copies}", "save one of them alone")
    state = model.state_dict()
    own = {name: state[name] for name in names}
    head = {f"1.{name}" for name in class_tensors(model.get_submodule("1"), len(classes))} & own.keys()
    found = _with_tied(path, own, match.found)
    normalisation = [state[name].flatten().tolist() for name in ("0.mean", "0.std")]
    left = sort_left(
        match,
        names,
        channels=len(normalisation[0]),
        missing_head=[own[name] for name in head - found.keys()],
    )
    needed = {_plain(name) for name in own if name in found or not _is_computed(name)}
    _check_names(path, _missing(own, found, head), len(needed), left.unknown)
    fresh = _find_fresh(path, own, found, head, weights.classes, classes)
    taken = {name: found[name] for name in own if name in found and name not in fresh}
    _check_numbers(path, taken, own)
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    remarks = [
        *_count_classes(own, found, fresh),
        *left.remarks,
        *_kept_tables(own, found),
        *compare_normalisation(
            weights.normalisation or left.normalisation, (normalisation[0], normalisation[1])
        ),
        *([weights.remark] if weights.remark else []),
    ]
    assumed = classes if weights.classes is None and not fresh else []
    count = len({id(tensor) for tensor in taken.values()})
    return Loaded(count, [name for name in own if name in fresh], _place(weights, match), assumed, remarks)


def _with_tied(path: Path, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors found, also under the other names of parameters that the network shares between layers.

    Raises:
        InputError: the file has two values for one parameter.
    """
    shared: dict[tuple[int, torch.Size], list[str]] = {}
    for name, tensor in own.items():
        if tensor.numel():
            shared.setdefault((tensor.data_ptr(), tensor.shape), []).append(name)
    every = dict(found)
    for names in shared.values():
        given = [name for name in names if name in found]
        for other in given[1:]:
            if not torch.equal(found[given[0]], found[other]):
                raise _misfit(
                    path,
                    f"{_plain(given[0])} and {_plain(other)} differ there and are one tensor here",
                    "set model.name and model.options to the network of the file",
                )
        every |= dict.fromkeys(names, found[given[0]]) if given else {}
    return every


def _missing(own: Mapping[str, Tensor], found: Mapping[str, Tensor], head: Collection[str]) -> list[str]:
    """The tensors that the file lacks and that the model needs: any, except those of a head or computed."""
    missing = [name for name in own if name not in found and not _is_computed(name)]
    return [] if head.issuperset(missing) else sorted({_plain(name) for name in missing})


def _check_names(path: Path, missing: Sequence[str], count: int, unknown: Sequence[str]) -> None:
    """Check that the file has what the model needs, and nothing that another network would need."""
    problems = [
        *([f"it lacks {len(missing)} of {count} tensors ({first_few(missing, 3)})"] if missing else []),
        *([f"it has {len(unknown)} others ({first_few(unknown, 3)})"] if unknown else []),
    ]
    if problems:
        raise _misfit(path, "; ".join(problems), "set model.name to the network of the file")


def _find_fresh(
    path: Path,
    own: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    head: set[str],
    theirs: list[str] | None,
    classes: list[str],
) -> set[str]:
    """The tensors that stay as they were initialised: a head that is missing or has other classes.

    Raises:
        InputError: other shapes differ, or the head is unknown.
    """
    fresh = head - found.keys()
    if theirs not in (None, classes):
        if not head:
            raise _misfit(
                path, "it has other classes, and no layer here has a row for each", "set model.name"
            )
        fresh |= head
    unlike = {name: t for name, t in own.items() if name in found and t.shape != found[name].shape}
    rest = {name: t for name, t in unlike.items() if name not in fresh}
    if rest and theirs != classes and has_other_classes(rest, found, len(classes)):
        return fresh | rest.keys()
    _check_shapes(path, rest, found)
    return fresh


def _check_shapes(path: Path, unlike: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Report tensors of other shapes, if any."""
    texts = {
        name: f"{_plain(name)} is {tuple(given[name].shape)} there and {tuple(t.shape)} here"
        for name, t in unlike.items()
    }
    positions = [text for name, text in texts.items() if "pos" in name.rpartition(".")[2].split("_")]
    if positions:
        raise _misfit(
            path,
            f"positional embeddings of another size: {first_few(positions, 1)}",
            "set data.image_size, and the size of patches, as for the file; embeddings are not interpolated",
        )
    if texts:
        advice = "set model.width, data.channels and model.name as for the file"
        raise _misfit(path, first_few(list(texts.values()), SHAPES_SHOWN), advice)


def _check_numbers(path: Path, taken: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Check that all numbers are finite and of the model's kind."""
    for name, tensor in taken.items():
        if tensor.layout != torch.strided:
            raise _misfit(path, f"{_plain(name)} is sparse", "save it with .to_dense()")
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise _misfit(
                path,
                f"{_plain(name)} is {tensor.dtype} there and {own[name].dtype} here",
                "save the weights as float32",
            )
        if bad := int((~tensor.isfinite()).sum()):
            raise InputError(
                f"model.pretrained: {path}: {bad:,} of the {tensor.numel():,} numbers of {_plain(name)} "
                "are NaN or infinite: take weights from before that training diverged"
            )


def _count_classes(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], fresh: Collection[str]
) -> list[str]:
    """A remark if the file's head has another number of classes."""
    numbers = {(len(found[name]), len(own[name])) for name in fresh if name in found}
    return [
        f"the file is for {there:,} classes, the model for {here:,}"
        for there, here in numbers
        if there != here
    ]


def _kept_tables(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """A remark if tables that the network computes as it is built are not in the file."""
    kept = [
        _plain(name)
        for name in own
        if name not in found and _is_computed(name) and not name.endswith(".num_batches_tracked")
    ]
    return (
        [f"not in the file, kept as the network computes them: {first_few(kept, NAMES_SHOWN)}"]
        if kept
        else []
    )


def _place(weights: Weights, match: Match) -> str:
    """Where in the file the tensors are, for the user; layer 1 of a model is its network."""
    prefix = match.prefixes[0].removesuffix("1.")
    return ", ".join(part for part in (weights.found_in, f"without {prefix!r}" if prefix else "") if part)


def _is_computed(name: str) -> bool:
    return name.rpartition(".")[2] in COMPUTED


def _plain(name: str) -> str:
    """A tensor's name as files have it."""
    return name.removeprefix("1.").replace(".main.", ".").replace(".auxiliary.", ".")


def _misfit(path: Path, problem: str, advice: str) -> InputError:
    return InputError(f"model.pretrained: {path} does not fit this model: {problem}: {advice}")
