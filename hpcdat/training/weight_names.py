"""Which tensor of a file is which of a model, by their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from hpcdat.models.split_batch_norm import SplitBatchNorm

USUAL_PREFIX = re.compile(r"((module|model|network|net|1)\.)*")
"""Prefixes of DataParallel, of an outer module, and of a network after a normalisation layer."""
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)
"""Names in files of torchvision that its networks rename as they load them."""
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""Tensors of a batch norm."""
AUXILIARY_HEADS = ("aux", "aux1", "aux2", "AuxLogits", "aux_classifier")
"""Classifiers that networks, such as torchvision's GoogLeNet and Inception, have for training only."""
COMPUTED = (
    *("num_batches_tracked", "n_averaged", "total_ops", "total_params"),
    *("attn_mask", "position_ids", "relative_position_index", "relative_coords_table"),
)
"""Counters, and tables that a network computes as it is built: no weights."""
MEANS, DEVIATIONS = ("mean", "mu", "_mean"), ("std", "sigma", "_std")
"""Names of the tensors of a normalisation layer."""


class Match(NamedTuple):
    """The tensors of a file, divided into those of a network and others.

    Attributes:
        found: by the names of the model; one tensor of the file may be both branches of split batch norm.
        left: the others, by their names in the file, without ``_orig_mod.``.
        adversarial: names of those among them that are split batch norm's for adversarial images.
        prefixes: what precedes the names in the file. Several if the network is in it several times; then
            ``found`` is the first.
    """

    found: dict[str, Tensor]
    left: dict[str, Tensor]
    adversarial: set[str]
    prefixes: list[str]


def plain_names(model: nn.Module) -> dict[str, str]:
    """The names of a network's tensors alone, without normalisation layer and split batch norm.

    Args:
        model: normalisation and network, as :func:`~hpcdat.models.build_model` makes them.

    Returns:
        By the names in the model.
    """
    split = {name for name, layer in model.named_modules() if isinstance(layer, SplitBatchNorm)}
    names = {}
    for name in model.state_dict():
        layer, _, last = name.rpartition(".")
        outer = layer.rpartition(".")[0]
        if name.startswith("1."):
            names[name] = (f"{outer}.{last}" if outer in split else name).removeprefix("1.")
    return names


def match_names(own: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Match:
    """Find the tensors of a network in a file: those whose names end as in the network, behind one prefix.

    Args:
        own: see :func:`plain_names`.
        tensors: of the file.
    """
    given = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    branches = {name: name.removeprefix("1.") for name in own}
    merged = without_split(given)
    best = Match({}, given, set(), [""])
    for searched, spelt in (
        (branches, {name: name for name in given}),
        (own, merged),
        (own, {name: _renamed(plain) for name, plain in merged.items()}),
    ):
        prefixes = _find_prefixes(set(searched.values()), spelt.values())
        places = {plain: name for name, plain in spelt.items()}
        found = {
            name: places[prefixes[0] + plain]
            for name, plain in searched.items()
            if prefixes[0] + plain in places
        }
        if len(found) > len(best.found):
            left = given.keys() - found.values()
            best = Match(
                {name: given[place] for name, place in found.items()},
                {name: tensor for name, tensor in given.items() if name in left},
                left - merged.keys(),
                prefixes,
            )
    raw = _as_written(best.prefixes[0], tensors) if best.found else ""
    return best._replace(prefixes=[raw, *best.prefixes[1:]])


def without_split(names: Collection[str]) -> dict[str, str]:
    """Names with one batch norm in place of both branches; those for adversarial images are left out."""
    merged = {}
    for name in names:
        layer, _, last = name.rpartition(".")
        outer, _, branch = layer.rpartition(".")
        others = {"main": "auxiliary", "auxiliary": "main"}
        if last in BATCH_NORM and branch in others and f"{outer}.{others[branch]}.{last}" in names:
            if branch == "main":
                merged[name] = f"{outer}.{last}"
        else:
            merged[name] = name
    return merged


def find_copies(own: Mapping[str, str], left: Collection[str]) -> set[str]:
    """The names that belong to further copies of at least half of a network, such as averages."""
    searched = set(own.values())
    counts = _count_prefixes(searched, left)
    prefixes = tuple(prefix for prefix, count in counts.items() if 2 * count >= len(searched))
    return {name for name in left if prefixes and name.startswith(prefixes)}


def is_computed(name: str) -> bool:
    """Whether a tensor is a counter, or a table that a network computes as it is built."""
    return name.rpartition(".")[2] in COMPUTED


def is_of_normalisation(name: str, tensor: Tensor, channels: int) -> bool:
    """Whether a tensor outside the network is the mean or standard deviation of the pixels."""
    parts = USUAL_PREFIX.sub("", name, count=1).split(".")
    return (
        parts[-1] in (*MEANS, *DEVIATIONS)
        and len(parts) <= 2
        and tensor.is_floating_point()
        and tensor.numel() in (1, channels)
    )


def _find_prefixes(searched: Collection[str], names: Collection[str]) -> list[str]:
    """The prefix behind which most of the searched names are found; several if they are equally good."""
    counts = _count_prefixes(searched, names)
    best = sorted((p for p, count in counts.items() if count == max(counts.values())), key=len)
    usual = [prefix for prefix in best if USUAL_PREFIX.fullmatch(prefix)]
    return usual[:1] or best or [""]


def _as_written(prefix: str, names: Collection[str]) -> str:
    """A prefix of names with the ``_orig_mod.`` that the file has in it or after it."""
    pattern = re.compile(
        r"(_orig_mod\.)?" + "".join(rf"{re.escape(part)}\.(_orig_mod\.)?" for part in prefix.split(".")[:-1])
    )
    return next(found.group() for name in names if (found := pattern.match(name)))


def _count_prefixes(searched: Collection[str], names: Collection[str]) -> Counter[str]:
    """How many of the searched names stand behind each prefix."""
    starts = ((name, at) for name in names for at in (0, *(dot.end() for dot in re.finditer(r"\.", name))))
    return Counter(name[:at] for name, at in starts if name[at:] in searched)


def _renamed(name: str) -> str:
    for old, new in RENAMED:
        name = old.sub(new, name)
    return name
