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
from hpcdat.training.weight_names import Match, is_computed, match_names, plain_names

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
    if len(match.prefixes) > 1 and 2 * len(match.found) >= len(names):
        copies = " and ".join(repr(prefix) for prefix in match.prefixes[:NAMES_SHOWN])
        raise _misfit(path, f"it has the network more than once, under {copies}", "save one of them alone")
    state = model.state_dict()
    head = {f"1.{name}" for name in class_tensors(model.get_submodule("1"), len(classes))} & names.keys()
    pair = _Pair(path, names, {name: state[name] for name in names}, match.found, head)
    pair = pair._replace(found=_with_tied(pair))
    ours = state["0.mean"].flatten().tolist(), state["0.std"].flatten().tolist()
    missing_head = [pair.own[name] for name in head - pair.found.keys()]
    left = sort_left(match, names, channels=len(ours[0]), missing_head=missing_head)
    _check_names(pair, left.unknown)
    fresh = _find_fresh(pair, weights.classes, classes)
    taken = {name: pair.found[name] for name in names if name in pair.found and name not in fresh}
    _check_numbers(pair, taken)
    with torch.no_grad():
        for name, tensor in taken.items():
            pair.own[name].copy_(tensor)
    remarks = [
        *_count_classes(pair, fresh),
        *left.remarks,
        *_kept_tables(pair),
        *compare_normalisation(weights.normalisation or left.normalisation, ours),
        *([weights.remark] if weights.remark else []),
    ]
    assumed = classes if weights.classes is None and not fresh else []
    count = len({id(tensor) for tensor in taken.values()})
    return Loaded(count, [name for name in names if name in fresh], _place(weights, match), assumed, remarks)


class _Pair(NamedTuple):
    """The tensors of a model and those of a file.

    Attributes:
        path: of the file.
        names: by name in the model, the name that files have.
        own, found: of the model, and those of the file that were found for it, by name in the model.
        head: names in the model of the tensors that belong to its classes.
    """

    path: Path
    names: dict[str, str]
    own: dict[str, Tensor]
    found: dict[str, Tensor]
    head: set[str]

    def lacks(self) -> list[str]:
        """The names that the model needs and that are not in the file."""
        missing = [name for name in self.own if name not in self.found and not is_computed(name)]
        return [] if self.head.issuperset(missing) else sorted({self.names[name] for name in missing})

    def unlike(self) -> dict[str, Tensor]:
        """The tensors of the model that have another shape in the file."""
        return {n: t for n, t in self.own.items() if n in self.found and t.shape != self.found[n].shape}


def _with_tied(pair: _Pair) -> dict[str, Tensor]:
    """The tensors found, also under the other names of parameters that the network shares between layers.

    Raises:
        InputError: the file has two values for one parameter.
    """
    shared: dict[tuple[int, torch.Size], list[str]] = {}
    for name, tensor in pair.own.items():
        if tensor.numel():
            shared.setdefault((tensor.data_ptr(), tensor.shape), []).append(name)
    every = dict(pair.found)
    for names in shared.values():
        given = [name for name in names if name in pair.found]
        for other in given[1:]:
            if not torch.equal(pair.found[given[0]], pair.found[other]):
                raise _misfit(
                    pair.path,
                    f"{pair.names[given[0]]} and {pair.names[other]} differ there and are one tensor here",
                    "set model.name and model.options to the network of the file",
                )
        every |= dict.fromkeys(names, pair.found[given[0]]) if given else {}
    return every


def _check_names(pair: _Pair, unknown: Sequence[str]) -> None:
    """Check that the file has what the model needs, and nothing that another network would need."""
    missing = pair.lacks()
    needed = {pair.names[name] for name in pair.own if name in pair.found or not is_computed(name)}
    problems = [
        *([f"it lacks {len(missing)} of {len(needed)} tensors ({first_few(missing, 3)})"] if missing else []),
        *([f"it has {len(unknown)} others ({first_few(unknown, 3)})"] if unknown else []),
    ]
    if problems:
        raise _misfit(pair.path, "; ".join(problems), "set model.name to the network of the file")


def _find_fresh(pair: _Pair, theirs: list[str] | None, classes: list[str]) -> set[str]:
    """The tensors that stay as they were initialised: a head that is missing or has other classes.

    Args:
        pair: the tensors.
        theirs: classes of the file; None if unknown.
        classes: of the model.

    Raises:
        InputError: other shapes differ, or the head is unknown.
    """
    fresh = pair.head - pair.found.keys()
    if theirs not in (None, classes):
        if not pair.head:
            problem = "it has other classes, and no layer of the model has a row for each of its own"
            raise _misfit(pair.path, problem, "let the network end in a linear layer")
        fresh |= pair.head
    rest = {name: t for name, t in pair.unlike().items() if name not in fresh}
    if rest and theirs != classes and has_other_classes(rest, pair.found, len(classes)):
        return fresh | rest.keys()
    _check_shapes(pair, rest)
    return fresh


def _check_shapes(pair: _Pair, unlike: Mapping[str, Tensor]) -> None:
    """Report tensors of other shapes, if any."""
    texts = {
        pair.names[name]: f"{pair.names[name]} is {tuple(pair.found[name].shape)} there and {tuple(t.shape)} "
        "here"
        for name, t in unlike.items()
    }
    words = {"pos", "position"}
    positions = [text for name, text in texts.items() if words & set(name.rpartition(".")[2].split("_"))]
    if positions:
        raise _misfit(
            pair.path,
            f"positional embeddings of another size: {first_few(positions, 1)}",
            "set data.image_size, and the size of patches, as for the file; embeddings are not interpolated",
        )
    if texts:
        advice = "set model.width, data.channels and model.name as for the file"
        raise _misfit(pair.path, first_few(list(texts.values()), SHAPES_SHOWN), advice)


def _check_numbers(pair: _Pair, taken: Mapping[str, Tensor]) -> None:
    """Check that all numbers are finite and of the model's kind."""
    for name, tensor in taken.items():
        plain, kind = pair.names[name], pair.own[name].dtype
        if tensor.layout != torch.strided:
            raise _misfit(pair.path, f"{plain} is sparse", "save it with .to_dense()")
        if tensor.is_floating_point() != kind.is_floating_point:
            problem = f"{plain} is {tensor.dtype} there and {kind} here"
            raise _misfit(pair.path, problem, "save the weights as float32")
        # Float32, since some narrow types have no isfinite, and a wide one may hold more than the model can.
        values = tensor.float() if kind.is_floating_point else tensor
        if bad := int((~values.isfinite()).sum()):
            raise InputError(
                f"model.pretrained: {pair.path}: {bad:,} of the {tensor.numel():,} numbers of {plain} "
                "are NaN or infinite: take weights from before that training diverged"
            )


def _count_classes(pair: _Pair, fresh: Collection[str]) -> list[str]:
    """A remark if the file's head has another number of classes."""
    numbers = {(len(pair.found[name]), len(pair.own[name])) for name in fresh if name in pair.found}
    return [
        f"the file is for {there:,} classes, the model for {here:,}"
        for there, here in numbers
        if there != here
    ]


def _kept_tables(pair: _Pair) -> list[str]:
    """A remark if tables that the network computes as it is built are not in the file."""
    kept = [
        plain
        for name, plain in pair.names.items()
        if name not in pair.found and is_computed(name) and not name.endswith(".num_batches_tracked")
    ]
    shown = first_few(kept, NAMES_SHOWN)
    return [f"not in the file, kept as the network computes them: {shown}"] if kept else []


def _place(weights: Weights, match: Match) -> str:
    """Where in the file the tensors are, for the user; layer 1 of a model is its network."""
    prefix = match.prefixes[0].removesuffix("1.")
    return ", ".join(part for part in (weights.found_in, f"without {prefix!r}" if prefix else "") if part)


def _misfit(path: Path, problem: str, advice: str) -> InputError:
    return InputError(f"model.pretrained: {path} does not fit this model: {problem}: {advice}")
