"""Which tensors of a network belong to its classes: the last layer, and auxiliary ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hpcdat.training.weight_names import AUXILIARY_HEADS


def class_tensors(network: nn.Module, classes: int) -> set[str]:
    """The names of the tensors with one row per class: of the last layer, and of auxiliary classifiers.

    A network of timm names its last layer. That of another network is the layer with the last matrix, or
    else the last convolution, of as many rows as there are classes, in the order in which its layers are
    registered: ``fc``, ``classifier``, ``classifier.N``, ``head`` and ``heads.head`` of torchvision's.

    Args:
        network: from normalised images to logits.
        classes: number of logits.
    """
    rows = {name: t for name, t in network.named_parameters() if t.dim() and t.shape[0] == classes}
    layers = [layer for layer in _named_by_timm(network) if any(_is_in(name, layer) for name in rows)]
    if not layers:
        matrices = [name for name, t in rows.items() if t.dim() == 2]
        weights = matrices or [name for name, t in rows.items() if t.dim() > 2]
        layers = [_layer_of(name) for name in weights[-1:]]
    return {
        name
        for name in rows
        if any(_is_in(name, layer) for layer in layers) or set(name.split(".")) & set(AUXILIARY_HEADS)
    }


def has_other_classes(own: Mapping[str, Tensor], given: Mapping[str, Tensor], classes: int) -> bool:
    """Whether tensors of two networks differ in nothing but the number of classes.

    Args:
        own: tensors of the network, at least one, whose shapes differ from those given.
        given: of another one, by the same names.
        classes: number of the network's classes.
    """
    rows = {given[name].shape[:1] for name in own}
    same = all(t.shape[:1] == (classes,) and t.shape[1:] == given[name].shape[1:] for name, t in own.items())
    return same and len(rows) == 1


def _named_by_timm(network: nn.Module) -> tuple[str, ...]:
    """The layers that a network of timm names as its classifiers; none of another network."""
    settings = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    named = settings.get("classifier") if isinstance(settings, Mapping) else None
    return (named,) if isinstance(named, str) else tuple(named or ())


def _layer_of(name: str) -> str:
    """The layer of a parameter, also where ``torch.nn.utils.parametrizations`` computes it from others."""
    return (
        name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
    )


def _is_in(name: str, layer: str) -> bool:
    return name.startswith(f"{layer}.") if layer else "." not in name
